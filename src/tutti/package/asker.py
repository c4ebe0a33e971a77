"""Asking a model that answers: from records to predictions, or to metrics, whatever computes it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tutti.core import DataError, Objective
from tutti.core.record import Asked
from tutti.core.types import module_device
from tutti.data.labelled import ListedRows
from tutti.evaluate import listening
from tutti.package.together import alike
from tutti.tasks import Answers, Labels, RowEncoder, Task
from tutti.tasks.packing import ATTENTION
from tutti.tasks.task import Example, Record, Row, Rows

#: Rows that a model is asked about at once.
_AT_ONCE = 32


@dataclass
class Asker:
    """A model with its task. `context`: of its arithmetic."""

    task: Task
    labels: Labels
    encoder: RowEncoder
    objective: Objective
    context: AbstractContextManager[None] = field(default_factory=nullcontext)

    def predict(self, records: Sequence[Asked]) -> list[dict[str, Any]]:
        """What the model says of `records`: texts, or the fields of examples as the user's files have them.

        Raises:
            TuttiError: a record is no example of the task.
        """
        examples = self.task.asked_about(records)
        rows = self.read(examples)
        return self.decode(self._answers(rows, 1), rows, examples)

    def read(self, examples: Sequence[Example]) -> ListedRows:
        """What the model reads of `examples`."""
        return ListedRows(self.task.rows(examples, self.labels, self.encoder) if examples else [])

    @property
    def pads(self) -> bool:
        """Whether rows are filled up to the longest, and that is computed too: not by encoders that `tasks.dense` has
        taken charge of."""
        model: Any = getattr(self.objective, "model", None)
        config = getattr(model, "config", None)
        dense = getattr(config, "_attn_implementation", None) == ATTENTION
        return not dense or self.task.kind == "recommend"  # which is no encoder

    def passes(self, rows: Sequence[Row]) -> list[list[int]]:
        """Numbers of the `rows` that are best computed together, pass by pass: such of like length where it pads."""
        if self.pads:
            return list(alike([len(row["input_ids"]) for row in rows]))
        return [list(range(len(rows)))] if rows else []

    def answer(self, rows: Sequence[Row]) -> list[NDArray[np.float64]]:
        """What the model says to each of `rows` in one pass; of rows that are judged by each other whole groups."""
        if self.objective.training:
            self.objective.eval()
        device = module_device(self.objective)
        batch = self.task.batch(rows, self.encoder.pad)
        with torch.inference_mode(), self.context, listening(self.objective) as given:
            self.objective.say({name: tensor.to(device) for name, tensor in batch.items()})
        return list(given[0].double().reshape(len(rows), -1).cpu().numpy())

    def decode(
        self, answers: Sequence[NDArray[np.float64]], rows: Rows, examples: Sequence[Example]
    ) -> list[dict[str, Any]]:
        """Predictions for `examples` from the `answers` to their `rows`."""
        return self.task.decode(_side_by_side(answers), rows, examples, self.labels)

    def score(self, records: Iterable[Record]) -> dict[str, float]:
        """Metrics of what the model says of `records` that say themselves what would be right.

        Raises:
            TuttiError: there are none, one is no example of the task, or has a label that the model does not know.
        """
        task, labels = self.task, self.labels
        examples: list[Example] = []
        for record in records:
            examples.append(example := task.example(record))
            unknown = set(task.label_names(example)) - set(labels.names) if task.closed else set()
            if unknown:
                raise DataError(
                    f"{record.origin} has the label '{min(unknown)}', which the model does not know",
                    f"leave it out, or train with it; the model knows {', '.join(labels.names[:8])}"
                    + (", …" if len(labels.names) > 8 else ""),
                )
        if not examples:
            raise DataError(
                "there are no examples to judge the model by", "check that this is the right file"
            )
        rows = self.read(examples)
        return task.score(_side_by_side(self._answers(rows, task.group)), rows, examples, labels)

    def _answers(self, rows: Rows, group: int) -> list[NDArray[np.float64]]:
        """What the model says to each of `rows`, of which so many are judged by each other."""
        found: dict[int, NDArray[np.float64]] = {}
        # Alike lengths together: less padding.
        order = sorted(range(len(rows)), key=lambda number: len(rows[number]["input_ids"]))
        together = group * max(1, _AT_ONCE // group)
        for start in range(0, len(order), together):
            some = order[start : start + together]
            batch = [rows[number] for number in some]
            batch += [self.task.blank(batch[0])] * (-len(batch) % group)
            found.update(zip(some, self.answer(batch)[: len(some)], strict=True))
        return [found[number] for number in range(len(rows))]


def _side_by_side(answers: Sequence[NDArray[np.float64]]) -> Answers:
    """One table, shorter lines filled up with zeros."""
    table = np.zeros((len(answers), max(map(len, answers), default=1)))
    for line, answer in zip(table, answers, strict=True):
        line[: len(answer)] = answer
    return table
