"""The engine of models that do not write: what waits is computed together, as many rows as a budget of tokens allows.

One thread has the model. It takes what waits and computes it at once, so a request that comes alone waits for nobody,
and while a pass runs those of the next one gather: the busier the service, the larger its passes, up to the budget.
Whose rows are taken is up to `fair`. A pass that fails takes with it those who are in it and nobody else, for nothing
is kept from one pass to the next.
"""

from __future__ import annotations

import logging
import math
import time
from typing import Protocol

from tutti.serve.engine.fair import FairQueue, Part
from tutti.serve.engine.job import Job, Outcome, RowAnswer, length_of
from tutti.serve.engine.thread import EngineThread, Full
from tutti.tasks.task import Row

_LOG = logging.getLogger(__name__)
#: How fast it is said to be: the mean over about so many passes.
_REMEMBERED_PASSES = 16


class Backend(Protocol):
    """What computes."""

    def answer(self, rows: list[Row]) -> list[RowAnswer]:
        """What the model says to each of `rows`."""


class EncoderEngine(EngineThread[Job]):
    """`budget_tokens`: of a pass. `queue_length`: rows that may wait; a request that comes alone may have any
    number."""

    def __init__(self, backend: Backend, *, budget_tokens: int, queue_length: int) -> None:
        super().__init__()
        self._backend = backend
        self._budget_tokens = budget_tokens
        self._queue_length = queue_length
        self._waiting = FairQueue()
        self._queued = self._queued_tokens = self._computing = 0
        self._tokens_per_second = math.inf
        self._failure: str | None = None  # of the last pass
        self.begin()

    @property
    def problem(self) -> str | None:
        if self.stopped is not None:
            return self.stopped
        return None if self._failure is None else f"the last pass failed: {self._failure}"

    @property
    def queued(self) -> int:
        """Rows that wait, or are being computed."""
        return self._queued

    @property
    def load(self) -> tuple[int, int]:
        """Rows that are being computed, and that wait."""
        return self._computing, max(0, self._queued - self._computing)

    @property
    def seconds_to_go(self) -> float:
        """How long it will take to compute what waits, as fast as it went so far."""
        return self._queued_tokens / self._tokens_per_second

    def submit(self, job: Job) -> None:
        """Compute the rows of `job`, and tell it.

        Raises:
            Full, Stopped: too many wait already, or it has ended.
        """
        self._let_in(job)

    def _count_in(self, asked: Job) -> None:
        if self._queued and self._queued + len(asked.rows) > self._queue_length:
            raise Full
        self._count(asked, 1)

    # The thread ----------------------------------------------------------------------------------------------

    def _round(self) -> None:
        for job in self._arrived(wait=not self._waiting):
            self._waiting.add(job)
        parts, over = self._waiting.take(self._budget_tokens, time.monotonic())
        for job in over:
            self._end(job, job.over(time.monotonic()) or "cancelled")
        if parts:
            self._pass(parts)

    def _farewell(self, problem: str | None) -> None:
        for job in [*self._waiting.clear(), *self._arrived(wait=False)]:
            self._end(job, "cancelled")

    def _pass(self, parts: list[Part]) -> None:
        rows = [part.job.rows[part.row] for part in parts]
        self._computing = len(rows)
        began = time.perf_counter()
        try:
            answered = list(zip(parts, self._backend.answer(rows), strict=True))
        except Exception as error:
            self._failure = f"{type(error).__name__}: {error}"
            _LOG.exception("a pass of %d rows failed", len(rows))
            for job in dict.fromkeys(part.job for part in parts):
                job.cancelled = True  # none of its other rows is computed
                self._end(job, "error")
            return
        finally:
            self._computing = 0
        self._failure = None
        self._remember(sum(map(length_of, rows)) / (time.perf_counter() - began))
        for (job, row), answer in answered:
            job.answers[row] = answer
            job.left -= 1
            if not job.left:
                self._end(job, "done")

    def _remember(self, tokens_per_second: float) -> None:
        share = 1.0 if math.isinf(self._tokens_per_second) else 1 / _REMEMBERED_PASSES
        before = 0.0 if share == 1.0 else self._tokens_per_second
        self._tokens_per_second = (1 - share) * before + share * tokens_per_second

    def _end(self, job: Job, outcome: Outcome) -> None:
        if job.outcome is not None:  # rows of it were still waiting when it ended
            return
        with self._lock:
            self._count(job, -1)
        job.end(outcome)

    def _count(self, job: Job, sign: int) -> None:
        self._queued += sign * len(job.rows)
        self._queued_tokens += sign * sum(map(length_of, job.rows))
