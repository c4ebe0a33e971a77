"""Seconds of a step, predicted from what was measured before the run: of computing, of links, of codecs.

    all-reduce    step = C + max(K, X) + l
    rounds        step = C + (M + K + W) / every

C: seconds in which all replicas have computed a step. K: processor time of the codec for all parameters, which
backward has to share. l, M: of summing a few numbers, and of agreeing on who is there. W = calls × latency + bytes ÷
rate: an exchange of everything, with the bytes of `summing.bytes_sent`. X: what of the exchanges is left when backward
has ended; they go one after the other, each from when its bucket is full:

    end ← max(end, −lead) + K_bucket + W_bucket        X = max(0, end)        lead: seconds before the end of backward

Every member measures; the slowest decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tutti.config.agreement import SyncConfig
from tutti.sync.codecs import Codec, Floats, PowerSGD, Shaped, make_codec
from tutti.sync.summing import bytes_sent

#: Links by what travels: numbers that add up on the way (by the codec's name), or bytes.
PACKETS = "packets"


@dataclass(frozen=True)
class Link:
    """What one call of a collective costs a member: `latency_seconds` + what it sends ÷ `bytes_per_second`."""

    latency_seconds: float
    bytes_per_second: float


@dataclass(frozen=True)
class CodecCost:
    """Processor time of a sum, apart from what travels: of each call and of each number."""

    call_seconds: float
    number_seconds: float


@dataclass(frozen=True)
class Filled:
    """A bucket of gradients: the shapes in it, and how long before the end of backward it is full."""

    shapes: tuple[tuple[int, ...], ...]
    lead_seconds: float

    @property
    def parts(self) -> list[Shaped]:
        """The parameters, one after the other."""
        found, start = list[Shaped](), 0
        for number, shape in enumerate(self.shapes):
            found.append(Shaped(str(number), torch.Size(shape), start))
            start += found[-1].size
        return found


@dataclass(frozen=True)
class Measured:
    """What one rank measured. `links`: by what travels; `codecs`: of a sum over `members`, by name."""

    replica: int
    members: int
    compute_seconds: float
    buckets: tuple[Filled, ...]
    links: dict[str, Link]
    meeting_seconds: float
    codecs: dict[str, CodecCost]


def travels_as(codec: str) -> str:
    """The kind of link that `codec` needs."""
    if codec in ("fp32", "fp16", "bf16"):
        return codec
    return "fp32" if codec == "powersgd" else PACKETS


def step_seconds(sync: SyncConfig, ranks: Sequence[Measured]) -> float:
    """Of a run with `sync`, in which nothing is open, on the ranks that measured."""
    assert not isinstance(sync.every, str)
    computing = compute_seconds(sync, ranks)
    if sync.policy != "allreduce":
        return computing + max(_round_end(sync, rank) for rank in ranks) / sync.every
    return computing + max(_step_end(sync, rank) for rank in ranks)


def compute_seconds(sync: SyncConfig, ranks: Sequence[Measured]) -> float:
    """Until all replicas have computed a step: as the slowest does, or, where samples go by speed, all together."""
    replicas: dict[int, float] = {}
    for rank in ranks:
        replicas[rank.replica] = max(replicas.get(rank.replica, 0.0), rank.compute_seconds)
    by_speed = sync.policy == "allreduce" and sync.membership == "elastic" and sync.shares == "measured"
    if by_speed:
        return len(replicas) / sum(1 / seconds for seconds in replicas.values())
    return max(replicas.values())


def _step_end(sync: SyncConfig, rank: Measured) -> float:
    """What a step takes beyond computing."""
    codec, end, processor = make_codec(sync), float("-inf"), 0.0
    for bucket in rank.buckets:
        parts = bucket.parts
        coding = _coding_seconds(codec, parts, rank)
        end = max(end, -bucket.lead_seconds) + coding + _wire_seconds(sync, codec, parts, rank)
        processor += coding
    return max(processor, end, 0.0) + rank.links["fp32"].latency_seconds


def _round_end(sync: SyncConfig, rank: Measured) -> float:
    """What a meeting takes."""
    codec = make_codec(sync)
    shapes = tuple(shape for bucket in rank.buckets for shape in bucket.shapes)
    parts = Filled(shapes, 0.0).parts  # all parameters travel as one vector
    return (
        rank.meeting_seconds + _coding_seconds(codec, parts, rank) + _wire_seconds(sync, codec, parts, rank)
    )


def _coding_seconds(codec: Codec | PowerSGD, parts: Sequence[Shaped], rank: Measured) -> float:
    cost = rank.codecs[codec.name]
    return cost.call_seconds + cost.number_seconds * _count(parts)


def _wire_seconds(
    sync: SyncConfig, codec: Codec | PowerSGD, parts: Sequence[Shaped], rank: Measured
) -> float:
    link = rank.links[travels_as(codec.name)]
    sent = bytes_sent(
        codec, _count(parts), parts, rank.members, 0
    )  # member 0's piece is never the shorter one
    calls = _calls(codec) * (2 if sync.then is not None else 1)  # lengths first, where they are not known
    return calls * link.latency_seconds + sent / link.bytes_per_second


def _calls(codec: Codec | PowerSGD) -> int:
    """Collectives of one sum: see `summing`."""
    return 1 if isinstance(codec, Floats) or (isinstance(codec, Codec) and codec.sparse) else 2


def _count(parts: Sequence[Shaped]) -> int:
    return sum(part.size for part in parts)
