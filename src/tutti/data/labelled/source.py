"""Rows of labelled examples as samples: by number, whoever asks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tutti.core.types import Batch, SampleSource
from tutti.data.labelled.prepared import PreparedExamples
from tutti.tasks.augment import augmented
from tutti.tasks.task import Row, TextTask


class ExampleSource(SampleSource):
    """The rows of one part, the same number in every epoch; batches are those of the task."""

    def __init__(
        self, prepared: PreparedExamples, part: str, task: TextTask, *, vary: int | None = None
    ) -> None:
        """`vary`: a seed with which words are left out and moved as `task.regularise` says; None: none are."""
        self.part = prepared.parts[part]
        self.fingerprint = f"{prepared.fingerprint} {part}"
        self._task = task
        self._pad = prepared.pad
        drop, swap = task.regularise.word_drop, task.regularise.word_swap
        self._vary = (vary, drop, swap) if vary is not None and (drop or swap) else None

    def samples_in_epoch(self, epoch: int) -> int:
        """Number of rows."""
        return self.part.rows

    def load(self, epoch: int, indices: Sequence[int] | NDArray[np.int64]) -> Batch:
        """The rows `indices`, in that order."""
        return self._task.batch([self._row(epoch, int(number)) for number in indices], self._pad)

    def _row(self, epoch: int, number: int) -> Row:
        row = self.part.table[number]
        if self._vary is None:
            return row
        seed, drop, swap = self._vary
        return augmented(row, drop, swap, np.random.default_rng([seed, epoch, number]))

    def empty(self) -> Batch:
        """The first row with nothing to learn."""
        return self._task.batch([self._task.blank(self.part.table[0])], self._pad)
