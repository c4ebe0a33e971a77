"""The numbers that the loop goes by: the resolved configuration without its sources."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TypeVar

import torch

from tutti.config.schema import Config
from tutti.sync.batches import BatchSizes
from tutti.train.precision import compute_context

Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class Settings:
    """What the loop needs of a `Config` in which every `auto` has been replaced."""

    steps: int
    patience: int | None
    batch: int
    batches: BatchSizes
    micro_batch: int
    learning_rate: float
    warmup: int
    schedule: str
    final_learning_rate: float
    clip: float | None
    precision: str
    compiled: bool
    validate_every: int
    validation_samples: int
    checkpoint_every: int
    keep: int
    seed: int
    context: AbstractContextManager[None]


def settings_of(config: Config, device: torch.device) -> Settings:
    """Settings of a resolved `config` on `device`."""
    train = config.train
    return Settings(
        steps=_resolved(train.steps),
        patience=train.patience,
        batch=_resolved(train.batch),
        batches=BatchSizes.of(train, _resolved(train.batch)),
        micro_batch=_resolved(train.micro_batch),
        learning_rate=_resolved(train.learning_rate),
        warmup=_resolved(train.warmup),
        schedule=train.schedule,
        final_learning_rate=train.final_learning_rate,
        clip=train.clip,
        precision=train.precision,
        compiled=train.compile,
        validate_every=_resolved(config.evaluate.every),
        validation_samples=_resolved(config.evaluate.samples),
        checkpoint_every=_resolved(config.checkpoint.every),
        keep=config.checkpoint.keep,
        seed=train.seed,
        context=compute_context(train.precision, device, sharded=config.layout.data > 1),
    )


def _resolved(value: Number | str) -> Number:
    assert not isinstance(value, str), "api.py resolves every auto before a worker starts"
    return value
