"""Asking a model that answers: from records to predictions, or to metrics, whatever computes it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tutti.core import DataError, Objective
from tutti.data.labelled import ListedRows
from tutti.evaluate import listening
from tutti.tasks import Answers, Labels, RowEncoder, Task
from tutti.tasks.task import Example, Record, Rows

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

    def predict(self, records: Sequence[Mapping[str, Any] | str]) -> list[dict[str, Any]]:
        """What the model says of `records`: texts, or the fields of examples as the user's files have them.

        Raises:
            TuttiError: a record is no example of the task.
        """
        examples = self.task.asked_about(records)
        rows = ListedRows(self.task.rows(examples, self.labels, self.encoder) if examples else [])
        return self.task.decode(self._answers(rows), rows, examples, self.labels)

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
        rows = ListedRows(task.rows(examples, labels, self.encoder))
        return task.score(self._answers(rows), rows, examples, labels)

    def _answers(self, rows: Rows) -> Answers:
        """What the model says to each of `rows`."""
        task = self.task
        found: dict[int, NDArray[np.float64]] = {}
        # Alike lengths together: less padding.
        order = sorted(range(len(rows)), key=lambda number: len(rows[number]["input_ids"]))
        together = task.group * max(1, _AT_ONCE // task.group)
        self.objective.eval()
        with torch.no_grad(), self.context:
            for start in range(0, len(order), together):
                some = order[start : start + together]
                batch = [rows[number] for number in some]
                batch += [task.blank(batch[0])] * (-len(batch) % task.group)
                with listening(self.objective) as given:
                    self.objective(task.batch(batch, self.encoder.pad))
                answers = given[0].double().reshape(len(batch), -1).numpy()
                found.update(zip(some, answers[: len(some)], strict=True))
        table = np.zeros((len(rows), max(map(len, found.values()), default=1)))
        for number, answer in found.items():
            table[number, : len(answer)] = answer
        return table
