"""A classifier that learns from few examples by contrast (`tutti.tasks.contrast`), as a job of the loop.

While it learns, a validation asks for the vectors of the training texts and of those to be judged, all at once: they
are gathered as any answers are, so every rank fits the same head on the former and judges it on the latter. When it has
learned, `LabelledJob.complete` fits the head that is handed on.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from tutti.config.schema import Config
from tutti.core.types import Batch, SampleSource
from tutti.data.labelled import ExampleSource, PreparedExamples
from tutti.tasks import ByContrast
from tutti.tasks.contrast import fit_head, labels_of, last_layer
from tutti.train.job import Job
from tutti.train.labelled import LabelledJob, labelled_job

_NOBODY = -1


class Compared(SampleSource):
    """In groups, the training rows, of which nothing is learned here, and behind them those to be judged.

    `rows` [samples, G]: which rows are in each group, the training rows counted first; −1: none.
    """

    def __init__(self, prepared: PreparedExamples, task: ByContrast) -> None:
        self.train, self.judged = prepared.parts["train"], prepared.parts["validation"]
        self.fingerprint = f"{prepared.fingerprint} train and validation"
        self._task, self._pad = task, prepared.pad
        order = task.order(self.judged.table, np.random.default_rng(0))
        self.rows = np.concatenate(
            [in_groups(part, task.group) for part in (np.arange(self.train.rows), self.train.rows + order)]
        )

    def samples_in_epoch(self, epoch: int) -> int:
        """Number of groups."""
        return len(self.rows)

    def load(self, epoch: int, indices: Sequence[int] | NDArray[np.int64]) -> Batch:
        """The groups `indices`, in that order."""
        return self._task.batch([self._row(int(row)) for row in self.rows[indices].flatten()], self._pad)

    def _row(self, number: int) -> Any:
        """Row `number`, whose label counts only where it is to be judged."""
        if number >= self.train.rows:
            return self.judged.table[number - self.train.rows]
        return self._task.blank(self.train.table[max(number, 0)])

    def empty(self) -> Batch:
        """A group of nobody."""
        return self._task.batch([self._row(_NOBODY)] * self.rows.shape[1], self._pad)


def in_groups(rows: NDArray[np.int64], group: int) -> NDArray[np.int64]:
    """`rows` in groups of `group`, the last filled up with −1."""
    return np.pad(rows, (0, -len(rows) % group), constant_values=_NOBODY).reshape(-1, group)


def samples_to_judge(train: int, judged: int, group: int) -> int:
    """Groups of `Compared`, with so many rows to train on and to be judged by; 0 where there are none of these."""
    return -(-train // group) + -(-judged // group) if judged else 0


@dataclass(kw_only=True)
class ContrastJob(Job):
    """The first step. `plain`: the same model as the classifier that it becomes."""

    plain: LabelledJob

    def twin(self) -> nn.Module:
        """As the plain job has it."""
        return self.plain.twin()

    def __post_init__(self) -> None:
        if self.validation_data is not None:
            group = self.validation_data.rows.shape[1]  # type: ignore[attr-defined]
            self.answer_width = group * last_layer(self.objective.model).in_features
            self.main_metric = self.plain.main_metric

    def score(
        self, source: SampleSource, numbers: NDArray[np.int64], answers: NDArray[np.float64]
    ) -> dict[str, float]:
        """Metrics of a head that is fitted on the training rows among the `answers`."""
        assert isinstance(source, Compared)
        rows = source.rows[numbers].flatten()
        vectors = answers.reshape(len(rows), -1)
        own, count = self.plain, source.train.rows
        trained, judged = (rows >= 0) & (rows < count), rows >= count
        labels = own.prepared.labels
        head = fit_head(
            vectors[trained],
            labels_of(source.train.table)[rows[trained]],
            balance=own.config.task.balance,
        )
        examples = source.judged.read()
        return own.task.score(
            head.logits(vectors[judged]),
            source.judged.table,
            [examples[row - count] for row in rows[judged]],
            labels,
        )

    def complete(self, model: nn.Module, context: AbstractContextManager[None]) -> None:
        self.plain.complete(model, context)

    def whole_model(self) -> nn.Module:
        return self.plain.whole_model()

    def export(self, model: nn.Module, destination: Path) -> None:
        self.plain.export(model, destination)

    def examine(self, model: nn.Module, context: AbstractContextManager[None]) -> dict[str, Any] | None:
        return self.plain.examine(model, context)


def contrast_job(config: Config, prepared_directory: Path) -> ContrastJob:
    """The job of a run with `config`, which has `task.contrast`, on the examples prepared in `prepared_directory`."""
    plain = labelled_job(config, prepared_directory)
    prepared = plain.prepared
    task = ByContrast(config.task, prepared.rows("train"), config.regularise)
    return ContrastJob(
        objective=task.objective(plain.objective.model, prepared.labels),
        train_data=ExampleSource(prepared, "train", task, vary=config.train.seed),
        validation_data=Compared(prepared, task) if "validation" in prepared.parts else None,
        tokens_per_sample=task.group * plain.tokens_per_sample,
        choices=plain.choices,
        parameters=plain.parameters,
        plain=plain,
    )
