"""Runs of Tutti whose compute takes a stated time a sample, replica by replica: there are more replicas than cores.

Everything else is what it is, and runs on the real cores beside it: data, exchanges, optimizer, restarts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

import tutti.supervise.local
from benchmarks.network.pace import Pace
from tutti.sync import Policy, Totals
from tutti.sync.ledger import Range
from tutti.train import worker
from tutti.train.worker import Assignment


class PacedWorker:
    """The worker of `tutti train`, on replica r at `seconds[r]` a sample. Picklable."""

    def __init__(self, seconds: tuple[float, ...]) -> None:
        self._seconds = seconds
        self.__qualname__ = type(self).__qualname__  # torch elastic wants to name what it starts

    def __call__(self, assignment: Assignment) -> None:
        replica = assignment.elastic.replica if assignment.elastic is not None else 0
        make_policy = worker.make_policy
        worker.make_policy = lambda *a, **k: at_pace(make_policy(*a, **k), self._seconds[replica])  # type: ignore[attr-defined]
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


def at_pace(policy: Policy, seconds: float) -> Policy:
    """`policy`, under which the objective takes `seconds` for each sample that this replica has in a step."""
    pace = Pace(0.0)
    attach, samples = policy.attach, policy.samples
    zero_gradients, before_step = policy.zero_gradients, policy.before_step

    def attached(objective: nn.Module) -> nn.Module:
        pace.slow_down(objective)
        return attach(objective)

    def taken(step: int) -> list[Range]:
        ranges = samples(step)
        pace.seconds = seconds * sum(stop - start for start, stop in ranges)
        return ranges

    def begin(objective: nn.Module) -> None:
        zero_gradients(objective)
        pace.begin()

    def end(totals: Totals) -> Totals:
        pace.end()
        return before_step(totals)

    policy.attach, policy.samples = attached, taken  # type: ignore[method-assign]
    policy.zero_gradients, policy.before_step = begin, end  # type: ignore[method-assign]
    return policy
