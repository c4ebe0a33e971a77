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
        """`vary`: a seed with which words are left out and moved as `task.regularise` says, and rows come together
        that are one sample; None: rows are as they are and in order."""
        self.part = prepared.parts[part]
        self.fingerprint = f"{prepared.fingerprint} {part}"
        self._task = task
        self._pad = prepared.pad
        drop, swap = task.regularise.word_drop, task.regularise.word_swap
        self._vary = (vary, drop, swap) if vary is not None and (drop or swap) else None
        self._group, self._drawn = task.group, vary
        self._order: tuple[int, NDArray[np.int64]] | None = None

    def samples_in_epoch(self, epoch: int) -> int:
        """Number of rows, or of groups of them: those that are drawn are all full."""
        rows, group = self.part.rows, self._group
        return -(-rows // group) if self._drawn is None else max(1, rows // group)

    def sizes(self, indices: NDArray[np.int64]) -> NDArray[np.int64] | None:
        """Tokens of the samples `indices`; None: all are as much work."""
        return None if self._group > 1 or self._task.fixed else self.part.table.lengths[indices]

    def load(self, epoch: int, indices: Sequence[int] | NDArray[np.int64]) -> Batch:
        """The rows (of the groups) `indices`, in that order."""
        rows: list[Row] = []
        for number in indices:
            rows += [self._row(epoch, row) for row in self._rows(epoch, int(number))]
            rows += [self._task.blank(self.part.table[0])] * (-len(rows) % self._group)
        return self._task.batch(rows, self._pad)

    def _rows(self, epoch: int, number: int) -> list[int]:
        """The rows of sample `number`; the last group may have fewer."""
        if self._group == 1:
            return [number]
        places = range(number * self._group, min((number + 1) * self._group, self.part.rows))
        if self._drawn is None:
            return list(places)
        if self._order is None or self._order[0] != epoch:
            dice = np.random.default_rng([self._drawn, epoch])
            self._order = (epoch, self._task.order(self.part.table, dice))
        return [int(self._order[1][place]) for place in places]

    def _row(self, epoch: int, number: int) -> Row:
        row = self.part.table[number]
        if self._vary is None:
            return row
        seed, drop, swap = self._vary
        return augmented(row, drop, swap, np.random.default_rng([seed, epoch, number]))

    def empty(self) -> Batch:
        """The first row with nothing to learn."""
        return self._task.batch([self._task.blank(self.part.table[0])] * self._group, self._pad)
