"""What `sync: auto` chooses among: a ladder from the least to the most lossy way to agree.

Every rung has a price: how many times as many steps training is taken to need on it. Links and step time are measured;
the prices are a judgement, on the side of whatever loses less:

* int8 and int4 (with error feedback) end within 0.02 % of bf16's loss (`benchmarks/network`, one learning rate).
* Local rounds cost small models trained from scratch 10 to 15 % of loss at 20 to 100 steps a round (large models far
  less: DiLoCo, arXiv 2311.08105); four bits then cost nothing that could be measured (Streaming DiLoCo, arXiv
  2501.18512).
* `powersgd` and `topk` with AdamW need the most steps, and `topk` still sends more than a long round: they are chosen
  only where the policy is given.
"""

from __future__ import annotations

import typing
from collections.abc import Iterator
from dataclasses import dataclass

from tutti.config.agreement import CodecName, PolicyName, SyncConfig
from tutti.core import ConfigError
from tutti.sync.admissible import inadmissible

#: The outer momentum of a round has to build up: fewer rounds than this are too few.
LEAST_ROUNDS = 10
_ROUNDS = (10, 20, 50, 100)

#: Of sums at every step, by codec, in the order of what is lost.
_CODEC_PRICES: dict[str, float] = {
    "fp32": 1.0, "bf16": 1.0, "fp16": 1.0, "int8": 1.01, "int4": 1.02, "powersgd": 1.8, "topk": 2.5,
}  # fmt: skip
#: Of rounds, by the steps of one; in between, as the nearest shorter one.
_ROUND_PRICES = {1: 1.2, 10: 1.5, 20: 1.6, 50: 1.8, 100: 2.0}
#: Codecs of rounds: error feedback makes up for little when meetings are rare.
_ROUND_CODEC_PRICES = _CODEC_PRICES | {"int8": 1.0}
#: What `auto` takes where policy and codec are both its to choose.
_OPEN_CODECS = {"allreduce": ("fp32", "bf16", "int8", "int4"), "diloco": ("bf16", "int4")}


@dataclass(frozen=True)
class Rung:
    """`sync`: a way to agree, with nothing left open but what every policy leaves open."""

    sync: SyncConfig
    price: float

    @property
    def name(self) -> str:
        """In messages."""
        every = "" if self.sync.policy == "allreduce" else f" {self.sync.every}"
        return f"{self.sync.policy}{every} {self.sync.codec}"


def rungs(sync: SyncConfig, precision: str, steps: int) -> list[Rung]:
    """What `sync` leaves to be chosen, from the least to the most lossy, for a run of `steps` in `precision`.

    Raises:
        ConfigError: nothing can be chosen; why not.
    """
    found, reasons = list[Rung](), list[str]()
    for rung in _all(sync, steps):
        reason = inadmissible(rung.sync, precision)
        if reason is None:
            found.append(rung)
        else:
            reasons.append(f"{rung.name}: {reason}")
    if not found:
        raise ConfigError(
            f"sync: nothing is left to choose from ({reasons[0]})",
            "the table of what goes together: docs/reference/sync.md",
        )
    return sorted(found, key=lambda rung: rung.price)


def left_open(sync: SyncConfig) -> SyncConfig:
    """`sync: auto` among the same members: all ways to agree that could stand instead of `sync`."""
    return SyncConfig(
        policy="auto", codec="auto", every="auto", membership=sync.membership, min_replicas=sync.min_replicas,
        shares=sync.shares, topology=sync.topology, bucket_mb=sync.bucket_mb,
    )  # fmt: skip


def _all(sync: SyncConfig, steps: int) -> Iterator[Rung]:
    for policy in ("allreduce", "diloco") if sync.policy == "auto" else (sync.policy,):
        for every in _rounds(policy, sync, steps):
            for codec in _codecs(policy, sync):
                chosen = {"policy": policy, "codec": codec, "every": every}
                if policy != "diloco":  # nothing of what only that one has stays behind
                    chosen |= {key: SyncConfig.model_fields[key].default for key in ("fragments", "merge")}
                yield Rung(sync.model_copy(update=chosen), _price(policy, codec, every))


def _rounds(policy: PolicyName, sync: SyncConfig, steps: int) -> list[int]:
    if sync.every != "auto":
        return [sync.every]
    if policy == "allreduce":
        return [SyncConfig.model_fields["every"].default]
    fitting = [every for every in _ROUNDS if every * LEAST_ROUNDS <= steps]
    return fitting if fitting or sync.policy == "auto" else [_ROUNDS[0]]


def _codecs(policy: PolicyName, sync: SyncConfig) -> tuple[CodecName, ...]:
    if sync.codec != "auto":
        return (sync.codec,)
    if sync.policy == "auto":
        return typing.cast(tuple[CodecName, ...], _OPEN_CODECS[policy])
    return tuple(codec for codec in typing.get_args(CodecName) if codec != "fp16")


def _price(policy: str, codec: str, every: int) -> float:
    if policy == "allreduce":
        return _CODEC_PRICES[codec]
    return _ROUND_PRICES[max(e for e in _ROUND_PRICES if e <= every)] * _ROUND_CODEC_PRICES[codec]
