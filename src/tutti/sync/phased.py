"""A synchronous start: the first steps by all-reduce, then rounds.

Lin et al. 2020 (post-local SGD, arXiv 1808.07217): replicas that have learnt nothing yet pull apart too fast for their
mean to be a good model, so they begin together. After the last of those steps all are equal, and rounds begin.

Whoever comes late does not know which phase the others are in. Members therefore tell it when they meet
(`transport.phase`), and who is behind goes on to where they are.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor, nn

from tutti.sync.allreduce import AllReduce
from tutti.sync.ledger import Range
from tutti.sync.policy import Meeting, Policy, T, Totals
from tutti.sync.rounds import Rounds
from tutti.sync.transport import LaterPhase


class SynchronousStart(Policy):
    """`together` for the first `steps` steps, `apart` afterwards, over one transport and one ledger."""

    def __init__(self, together: AllReduce, apart: Rounds, steps: int) -> None:
        super().__init__(together.transport, together.place, together.ledger, together.batch)
        self._together = together
        self._apart = apart
        self._steps = steps
        self._now: Policy = together
        self._step = 0
        self._last_step = 0
        self._news: Meeting | None = None

    @property
    def drifts(self) -> bool:  # type: ignore[override]
        return self._now.drifts

    @property
    def behind(self) -> bool:  # type: ignore[override]
        return self._now.behind

    @property
    def leads(self) -> bool:
        return self._now.leads

    @property
    def rounds(self) -> int:
        return self._now.rounds

    @rounds.setter
    def rounds(self, number: int) -> None:
        self._together.rounds = self._apart.rounds = number

    @property
    def evaluation_numbers(self) -> int:
        return self._together.evaluation_numbers

    @evaluation_numbers.setter
    def evaluation_numbers(self, numbers: int) -> None:
        self._together.evaluation_numbers = numbers

    def attach(self, objective: nn.Module) -> nn.Module:
        return self._apart.attach(self._together.attach(objective))

    def resume_at(self, step: int) -> None:
        if step > self._steps:  # what was saved right after the last step together is still all-reduce's
            self._go_apart()

    def start(self, step: int, last_step: int) -> Meeting | None:
        self._step, self._last_step = step, last_step
        if step >= self._steps:
            self._go_apart()
            return self._now.start(step, last_step)
        self._apart.rounds = 0
        try:
            return self._now.start(step, last_step)
        except LaterPhase:
            return self._follow()

    def make_step(self, step: int, work: Callable[[int], T]) -> tuple[int, T]:
        if self._now is self._together and self._step >= self._steps:
            self._go_apart()
            self._news = self._now.start(self._step, self._last_step)
        try:
            self._step, result = self._now.make_step(step, work)
        except LaterPhase:
            self._news = self._follow()
            self._step, result = self._now.make_step(step, work)
        return self._step, result

    def samples(self, step: int) -> list[Range]:
        return self._now.samples(step)

    def micro_batch(self, *, last: bool) -> AbstractContextManager[None]:
        return self._now.micro_batch(last=last)

    def before_step(self, totals: Totals) -> Totals:
        return self._now.before_step(totals)

    def after_step(self, step: int, last_step: int, totals: Totals) -> Meeting | None:
        meeting = self._now.after_step(step, last_step, totals)
        news, self._news = self._news, None
        return meeting if news is None else news if meeting is None else meeting.after(news)

    def catch_up(self) -> int | None:
        return self._now.catch_up()

    def consensus(self) -> AbstractContextManager[None]:
        return self._now.consensus()

    def sum_evaluation(self, measure: Callable[[int, int], Tensor]) -> Tensor:
        return self._now.sum_evaluation(measure)

    def zero_gradients(self, objective: nn.Module) -> None:
        self._now.zero_gradients(objective)

    def tensors(self) -> dict[str, Tensor]:
        return self._apart.tensors()

    def owed(self) -> dict[str, Tensor]:
        return self._now.owed()

    def figures(self) -> dict[str, float]:
        return self._now.figures()

    def give(self) -> dict[str, Any]:
        return self._now.give()

    def take(self, state: dict[str, Any]) -> None:
        self._now.take(state)

    def sent_bytes(self) -> int:
        return self._together.sent_bytes()

    def _go_apart(self) -> None:
        """What all-reduce's codec still owed is forgotten: it was of gradients."""
        if self._now is self._apart:
            return
        if self._together.behind:
            self._apart.fall_behind()
        self._together.rest()
        self._now = self._apart
        self.transport.phase = 1

    def _follow(self) -> Meeting | None:
        """Go where the others are, who have the run's state."""
        self._go_apart()
        self._apart.fall_behind()
        return self._now.start(self._step, self._last_step)
