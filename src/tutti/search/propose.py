"""What is searched where the user says nothing: few settings that mostly matter, around what `auto` would take."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tutti.config import Choice, Config, Dimension, Plain, Range, value_at
from tutti.data.labelled import PreparedExamples
from tutti.tasks import make_text_task

#: The learning rate: so many times less to so many times more.
_TIMES = 5
_WEIGHT_DECAYS = (0.0, 0.01, 0.1)
_WARMUPS = (0.01, 0.15)
_RANKS = (4, 8, 16)


@dataclass(frozen=True)
class Proposal:
    """A dimension, and why it is one."""

    dimension: Dimension
    reason: str


def propose(config: Config, resolved: Config, prepared: Any) -> list[Proposal]:
    """What to try for `config`, of which `resolved` is what it comes to without `auto`."""
    rate = resolved.train.learning_rate
    assert isinstance(rate, float | int)
    found = [
        Proposal(
            Range("train.learning_rate", _plain(rate / _TIMES), _plain(rate * _TIMES), log=True, whole=False),
            f"matters most; {_TIMES} times less to {_TIMES} times more than {rate:g}",
        )
    ]
    epochs = epochs_of(config, resolved, prepared)
    if epochs is not None and config.train.epochs is None:
        lengths = [float(max(1, round(share * epochs))) for share in (0.5, 1, 1.5)]
        found += _choice(
            "train.epochs", lengths, "half as long to half as long again; what decays sooner may do"
        )
    if epochs is not None or config.train.epochs is not None:
        smallest = max(1, int(resolved.replicas) * config.layout.shard)
        batch = int(resolved.train.batch)
        sizes = (batch // 2, batch, 2 * batch)
        found += _choice(
            "train.batch",
            [s for s in sizes if s >= smallest],
            "the work is the same; steps are more or fewer",
        )
    else:
        warmup, steps = resolved.train.warmup, resolved.train.steps
        assert isinstance(warmup, int) and isinstance(steps, int)
        shares = sorted({warmup, *(max(1, round(share * steps)) for share in _WARMUPS)})
        found += _choice("train.warmup", shares, "too short a warm-up hurts high learning rates")
    if config.tune.method == "lora":
        ranks = sorted({*_RANKS, config.tune.rank})
        found += _choice("tune.rank", ranks, "how much adapters can learn")
    else:
        decays = sorted({*_WEIGHT_DECAYS, config.train.weight_decay})
        found += _choice("train.weight_decay", decays, "few examples want more of it, or none")
    return found


def first_settings(
    config: Config, resolved: Config, prepared: Any, space: Iterable[Dimension]
) -> dict[str, Plain] | None:
    """What `config` itself would take, if that lies in `space`: the first trial shows what it is worth."""
    found: dict[str, Plain] = {}
    for dimension in space:
        value = value_at(config, dimension.key)
        if value == "auto":
            value = value_at(resolved, dimension.key)
        elif dimension.key == "train.epochs" and value is None:
            value = epochs_of(config, resolved, prepared)
        if not dimension.has(value):
            return None
        found[dimension.key] = value
    return found


def epochs_of(config: Config, resolved: Config, prepared: Any) -> float | None:
    """Epochs that `auto` comes to where it goes by the examples; None: the length is said otherwise."""
    if config.train.steps != "auto" or config.train.epochs is not None:
        return None
    if not isinstance(prepared, PreparedExamples):
        return None
    steps = resolved.train.steps
    assert isinstance(steps, int)
    samples = max(1, prepared.rows("train") // make_text_task(config.task).group)
    return float(max(1, round(steps * int(resolved.train.batch) / samples)))


def _choice(key: str, values: list[Any], reason: str) -> list[Proposal]:
    """Nothing where there is nothing to choose from."""
    distinct = tuple(dict.fromkeys(values))
    return [Proposal(Choice(key, distinct), reason)] if len(distinct) > 1 else []


def _plain(number: float) -> float:
    return float(f"{number:.2g}")
