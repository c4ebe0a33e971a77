"""What members tell each other at a meeting, and what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tutti.sync.joining import Standing


@dataclass
class Entry:
    """One member's line in the roll call.

    `samples`: of its lease that it has done. `targets`: that it has seen since each fragment was exchanged last.
    `waiting`: it stands still for this meeting (it may also meet in the background, while it trains).
    """

    standing: Standing
    replica: int
    incarnation: int
    samples: int
    step: int
    stop: bool
    milliseconds: int
    waiting: bool
    targets: list[int]

    def row(self) -> Tensor:
        """As int64 [11 + fragments - 1]."""
        numbers = [self.replica, self.incarnation, self.samples, self.step, self.stop, self.milliseconds]
        return torch.tensor([*self.standing.row(), *numbers, self.waiting, *self.targets], dtype=torch.int64)

    @classmethod
    def of(cls, row: Sequence[int]) -> Entry:
        """Read `row()`."""
        replica, incarnation, samples, step, stop, milliseconds, waiting = row[3:10]
        return cls(
            Standing.of(row[:3]),
            replica,
            incarnation,
            samples,
            step,
            bool(stop),
            milliseconds,
            bool(waiting),
            list(row[10:]),
        )

    @property
    def name(self) -> str:
        """Who this is to the ledger: a reborn replica must not pass for its former self."""
        return member_name(self.replica, self.incarnation)


@dataclass
class Minutes:
    """The roll call, the ranks of those who had the run's state, and the mean Δ of each fragment that was exchanged
    (none where nobody had done anything)."""

    roll: list[Entry]
    current: list[int]
    means: dict[int, Tensor] = field(default_factory=dict)

    @property
    def members(self) -> list[int]:
        """The replicas that were there."""
        return [entry.replica for entry in self.roll]

    @property
    def step(self) -> int:
        """How far the run is."""
        return max(entry.step for entry in self.roll)

    @property
    def stop(self) -> bool:
        """Whether anybody was asked to stop."""
        return any(entry.stop for entry in self.roll)


@dataclass
class Round:
    """A replica makes `steps` local steps while the run goes from `start` over `length` steps; `done` of them are made.

    Faster replicas make more, slower ones fewer; each is numbered by how far in the run's steps it reaches.
    """

    start: int
    length: int
    steps: int
    done: int = 0

    @property
    def left(self) -> int:
        """Local steps to go."""
        return self.steps - self.done

    def next_step(self) -> int:
        """The number of the local step that comes now: the end of the round for the last one alone."""
        return self.start + (self.done + 1) * self.length // self.steps

    def skip(self, share: float) -> None:
        """Come late by `share` of the round; at least one step is left."""
        self.done = min(int(self.steps * share), max(self.steps - 1, 0))


def member_name(replica: int, incarnation: int) -> str:
    """A borrower in the ledger."""
    return f"replica-{replica}.{incarnation}"
