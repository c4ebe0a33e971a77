"""Runs of Tutti whose compute takes a stated time a sample, replica by replica: there are more replicas than cores.

Everything else is what it is, and runs on the real cores beside it: data, exchanges, optimizer, restarts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import tutti.supervise.local
from benchmarks.network.pace import at_pace
from tutti.train import worker
from tutti.train.rank import Assignment


class PacedWorker:
    """The worker of `tutti train`, on replica r at `seconds[r]` a sample. Picklable."""

    def __init__(self, seconds: tuple[float, ...]) -> None:
        self._seconds = seconds
        self.__qualname__ = type(self).__qualname__  # torch elastic wants to name what it starts

    def __call__(self, assignment: Assignment) -> None:
        replica = assignment.elastic.replica if assignment.elastic is not None else 0
        make_policy = worker.make_policy

        def pace(samples: int) -> float:
            return samples * self._seconds[replica]

        worker.make_policy = lambda *a, **k: at_pace(make_policy(*a, **k), pace)  # type: ignore[attr-defined]
        worker.main(assignment)


@contextmanager
def paced(seconds: tuple[float, ...]) -> Iterator[None]:
    """What `tutti.train` and `tutti.chaos` start meanwhile goes at this pace."""
    real = tutti.supervise.local.worker_main
    tutti.supervise.local.worker_main = PacedWorker(seconds)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        tutti.supervise.local.worker_main = real  # type: ignore[attr-defined]
