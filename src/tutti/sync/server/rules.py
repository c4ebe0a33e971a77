"""What a parameter server goes by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tutti.sync.codecs import Codec
from tutti.sync.server.centre import MakeStepper


@dataclass
class Rules:
    """`factor(step)`: of the peak learning rate."""

    batch: int
    steps: int
    replicas: int
    parts: int
    staleness: int | None
    min_replicas: int
    compensation: float
    clip: float | None
    squeeze: bool
    codec: Codec
    factor: Callable[[int], float]
    make_stepper: MakeStepper
