"""Tutti as it is, with a clock that stands still while it validates, as the peer's does.

Everything else between the first step and the last counts: data, steps, events, checkpoints. CPU time is that of
the worker process with all its threads. Start and rehearsal are not counted, nor are the peer's imports.

    CLOCK=FILE python -m benchmarks.time_to_quality.clocked CONFIG.yaml [train.steps=300 …]
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from benchmarks.tutti_peer import train_with
from tutti.train import worker
from tutti.train.loop import Loop
from tutti.train.rank import Assignment


def clocked_worker(assignment: Assignment) -> None:
    """A worker as usual that appends `{wall_seconds, cpu_seconds}` to $CLOCK before each validation."""
    # Linux gives every session an equal share of a busy machine: the peer has one of its own as well.
    os.setsid()
    path = Path(os.environ["CLOCK"])
    began = [0.0, 0.0]
    run, validate = Loop.run, Loop.validate

    def timed_run(self: Loop) -> str:
        began[:] = time.perf_counter(), time.process_time()
        return run(self)

    def untimed_validate(self: Loop) -> None:
        wall, cpu = time.perf_counter(), time.process_time()
        with path.open("a", encoding="utf-8") as file:
            line = {"wall_seconds": wall - began[0], "cpu_seconds": cpu - began[1]}
            file.write(json.dumps(line) + "\n")
        validate(self)
        began[0] += time.perf_counter() - wall
        began[1] += time.process_time() - cpu

    Loop.run = timed_run  # type: ignore[method-assign]
    Loop.validate = untimed_validate  # type: ignore[method-assign]
    worker.main(assignment)


def main() -> None:
    from benchmarks.time_to_quality.clocked import clocked_worker as importable

    train_with(importable)


if __name__ == "__main__":
    main()
