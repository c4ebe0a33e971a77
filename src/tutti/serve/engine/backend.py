"""What computes the rows of models that do not write, with as little padding as may be."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tutti.package import Asker
from tutti.serve.engine.job import RowAnswer, length_of
from tutti.tasks.packing import ATTENTION
from tutti.tasks.task import Row

#: Of what is computed together, padding is at most this share, where it is computed like tokens.
_PADDING = 0.25


@dataclass(frozen=True)
class AskerBackend:
    """A model with its task. `pads`: rows are filled up to the longest, and that is computed too."""

    asker: Asker
    pads: bool

    @classmethod
    def of(cls, asker: Asker) -> AskerBackend:
        """Whether it pads is looked up: encoders that `tasks.dense` has taken charge of do not (models that recommend
        are none)."""
        model: Any = getattr(asker.objective, "model", None)
        config = getattr(model, "config", None)
        dense = getattr(config, "_attn_implementation", None) == ATTENTION and asker.task.kind != "recommend"
        return cls(asker, pads=not dense)

    def answer(self, rows: Sequence[Row]) -> list[RowAnswer]:
        """What the model says to each of `rows`."""
        if not self.pads:
            return self.asker.answer(rows)
        found: dict[int, RowAnswer] = {}
        for numbers in alike([length_of(row) for row in rows]):
            answers = self.asker.answer([rows[number] for number in numbers])
            found.update(zip(numbers, answers, strict=True))
        return [found[number] for number in range(len(rows))]


def alike(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Numbers of rows that are computed together: such of like length that little of it is padding."""
    order = sorted(range(len(lengths)), key=lambda number: -lengths[number])
    some: list[int] = []
    tokens = 0
    for number in order:
        area = (len(some) + 1) * lengths[some[0]] if some else 0
        if some and area - tokens - lengths[number] > _PADDING * area:
            yield some
            some, tokens = [], 0
        some.append(number)
        tokens += lengths[number]
    if some:
        yield some
