"""Asking a model that answers: from records to predictions, whatever computes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tutti.core import Objective
from tutti.data.labelled import ListedRows
from tutti.evaluate import listening
from tutti.tasks import Labels, RowEncoder, Task

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
        task, labels = self.task, self.labels
        examples = task.asked_about(records)
        rows = ListedRows(task.rows(examples, labels, self.encoder)) if examples else ListedRows([])
        found: dict[int, NDArray[np.float64]] = {}
        # Alike lengths together: less padding.
        order = sorted(range(len(rows)), key=lambda number: len(rows[number]["input_ids"]))
        self.objective.eval()
        with torch.no_grad(), self.context:
            for start in range(0, len(order), _AT_ONCE):
                some = order[start : start + _AT_ONCE]
                with listening(self.objective) as given:
                    self.objective(task.batch([rows[number] for number in some], self.encoder.pad))
                found.update(zip(some, given[0].double().numpy(), strict=True))
        answers = np.zeros((len(rows), max(map(len, found.values()), default=1)))
        for number, answer in found.items():
            answers[number, : len(answer)] = answer
        return task.decode(answers, rows, examples, labels)
