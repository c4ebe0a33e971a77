"""What computes the rows of models that do not write, with as little padding as may be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tutti.package import Asker
from tutti.serve.engine.job import RowAnswer
from tutti.tasks.task import Row


@dataclass(frozen=True)
class AskerBackend:
    """A model with its task."""

    asker: Asker

    def answer(self, rows: Sequence[Row]) -> list[RowAnswer]:
        """What the model says to each of `rows`."""
        found: dict[int, RowAnswer] = {}
        for numbers in self.asker.passes(rows):
            answers = self.asker.answer([rows[number] for number in numbers])
            found.update(zip(numbers, answers, strict=True))
        return [found[number] for number in range(len(rows))]
