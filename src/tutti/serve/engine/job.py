"""What is asked of the engine of models that do not write, and what comes of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tutti.tasks.task import Row

#: How it ended: with all answers, or because the asker went away, time was up, or its pass failed.
Outcome = Literal["done", "cancelled", "timeout", "error"]
#: What a model says to one row.
RowAnswer = NDArray[np.float64]


@dataclass(eq=False)
class Job:
    """`rows`: at least one. `deliver` is called once with this very job, from the engine's thread, and must not wait.
    `deadline`: by `time.monotonic`.

    `answers`: to each row, when the outcome is `done`.
    """

    rows: Sequence[Row]
    deliver: Callable[[Job], None]
    deadline: float | None = None
    #: Set by whoever does not want it any more.
    cancelled: bool = False
    outcome: Outcome | None = None
    answers: list[RowAnswer | None] = field(init=False)
    left: int = field(init=False)

    def __post_init__(self) -> None:
        self.left = len(self.rows)
        self.answers = [None] * self.left

    def over(self, now: float) -> Outcome | None:
        """Why nobody waits for it any more; None: somebody does."""
        if self.cancelled:
            return "cancelled"
        return "timeout" if self.deadline is not None and now > self.deadline else None

    def end(self, outcome: Outcome) -> None:
        """Tell whoever asked."""
        self.outcome = outcome
        self.deliver(self)


def length_of(row: Row) -> int:
    """Tokens of `row`."""
    return len(row["input_ids"])
