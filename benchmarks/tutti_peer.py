"""Tutti as a peer: `tutti.train` with its own launcher, whose workers wait for their turn before every step.

python -m benchmarks.tutti_peer CONFIG.yaml [train.compile=true …]
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tutti.supervise.local
from tutti import api
from tutti.config import load_config
from tutti.train import worker
from tutti.train.loop import Loop
from tutti.train.rank import Assignment


def gated_worker(assignment: Assignment) -> None:
    """A worker as usual, but for the wait."""
    from benchmarks.turns import Turns

    # torchrun gives each rank of the other peers a session, and Linux gives each session an equal share of a busy
    # machine (autogroups): without this, others' load would hit Tutti's workers twice as hard.
    os.setsid()
    turns: list[Turns] = []
    make_step, note_step = Loop._step, Loop._note_step
    last: list[float] = []

    def note(self: Loop, step: int, gradient: Any, *rest: Any) -> None:
        last[:] = [gradient.loss]
        note_step(self, step, gradient, *rest)

    def gated(self: Loop, step: int) -> bool:
        if not turns:
            turns.append(Turns.of_environment(self.world.rank))
        turns[0].before_step(last[0] if last else None)
        return make_step(self, step)

    Loop._step = gated  # type: ignore[method-assign]
    Loop._note_step = note  # type: ignore[method-assign]
    worker.main(assignment)


def train_with(entry: Callable[[Assignment], None]) -> None:
    """Train as the command line's configuration and overrides say, with `entry` for a worker.

    `entry` goes by its importable name: workers are other processes, in which `__main__` is something else.
    """
    tutti.supervise.local.worker_main = entry
    api.train(load_config(Path(sys.argv[1]), sys.argv[2:]), console=False)


def main() -> None:
    from benchmarks.tutti_peer import gated_worker as importable

    train_with(importable)


if __name__ == "__main__":
    main()
