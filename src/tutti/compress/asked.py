"""A model that is asked: it is judged by the metric of its task, and timed by answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from tutti.compress.drills import Asking
from tutti.compress.quantize.inputs import Enough
from tutti.compress.recipes import Recipe, ladder
from tutti.compress.subject import Subject
from tutti.compress.table import Metric, Words
from tutti.core import Batch, Objective, RunError
from tutti.models.onnx import onnx_runtime
from tutti.models.tuning import merged
from tutti.package import Engine, Package, open_package
from tutti.tasks.task import Row
from tutti.train.labelled import LabelledJob, reader_of
from tutti.trained import Trained, load_trained, measure, objective_with

#: Rows that are timed one by one.
_TIMED = 32
#: Training examples that show what goes into layers.
_SHOWN, _AT_ONCE = 256, 32


@dataclass
class AskedSubject(Subject):
    """An encoder with labels, from its run."""

    job: LabelledJob

    words = Words("ms, batch 1", "ms, batch 32", "rows", ", texts already in tokens")
    usual = ("int8-mixed", "int4-gptq", "onnx+int8", "onnx+int8-mixed")
    reference = Recipe("onnx", onnx=True)

    @classmethod
    def of(cls, run: Path) -> AskedSubject:
        """The model of `run`.

        Raises:
            TuttiError: there is none that can be made smaller.
        """
        return cls.from_trained(run, load_trained(run))

    @classmethod
    def from_trained(cls, run: Path, trained: Trained) -> AskedSubject:
        """The same, once it is in memory."""
        job, config, step = trained
        if not isinstance(job, LabelledJob) or job.task.words == "labels":
            raise RunError(
                f"{run} learned to {config.task.learned}, of which no smaller model is made here",
                "compress a run with another task",
            )
        if "validation" not in job.prepared.parts:
            raise RunError(
                f"{run} has no validation examples to judge a smaller model by", "train it with some"
            )
        model = merged(job.objective.model).eval()
        assert isinstance(model, PreTrainedModel)
        return cls(run, config, step, model, job)

    @property
    def metric(self) -> Metric:
        return Metric(self.job.task.main)

    @property
    def judged(self) -> tuple[int, str]:
        examples = self.job.prepared.parts["validation"].examples
        return examples, f"the {examples} validation examples"

    @property
    def tokenizer_directory(self) -> Path:
        return self.job.prepared.tokenizer_directory

    def check(self, recipe: Recipe) -> None:
        super().check(recipe)
        if recipe.onnx:
            onnx_runtime()

    def ladder(self, layers: int, done: Sequence[str]) -> list[str]:
        assert self.reference is not None
        return ladder(layers, "onnx+int8-mixed" if self.reference.name in done else "int8-mixed")

    @property
    def length(self) -> int:
        """Tokens of a text, at most."""
        return reader_of(self.config).length

    @property
    def types(self) -> bool:
        """Whether it tells first and second texts apart."""
        return reader_of(self.config).types

    def quality(self, model: nn.Module, part: str = "validation") -> dict[str, float]:
        """Metrics of `model` on all examples of `part`."""
        return self.quality_of(objective_with(self.job, model), part)

    def quality_of(self, objective: Objective, part: str = "validation") -> dict[str, float]:
        """The same of an `objective` of the task."""
        objective.eval()
        found = measure(self.job, objective, self.job.source(part), self.config, context=nullcontext())
        return {name: value for name, value in found.items() if name != "targets"}

    def batches(self) -> Iterator[Batch]:
        """Some training examples, spread evenly, as they are given to the model."""
        source = self.job.source("train")
        count, group = source.samples_in_epoch(0), self.job.task.group
        shown, at_once = min(count, max(1, _SHOWN // group)), max(1, _AT_ONCE // group)
        numbers = np.arange(shown) * count // shown
        for start in range(0, len(numbers), at_once):
            yield source.load(0, numbers[start : start + at_once])

    def running(self, model: nn.Module) -> Iterator[Batch]:
        objective = objective_with(self.job, model).eval()
        with torch.no_grad():
            for batch in self.batches():
                with suppress(Enough):
                    objective(batch)
                yield batch

    def rows(self, count: int) -> list[Row]:
        """Up to `count` rows of validation examples, spread evenly, each as it is asked about by itself."""
        table = self.job.prepared.parts["validation"].table
        count = min(count, len(table))
        return [self.job.task.alone(table[number * len(table) // count]) for number in range(count)]

    def drill(self) -> Asking:
        return Asking(self.rows(_TIMED))

    def open(self, directory: Path) -> nn.Module:
        return open_package(directory).objective.model

    def inputs(self) -> dict[str, torch.Tensor]:
        """An example of what the model itself is called with: two rows."""
        rows = sorted(self.rows(64), key=lambda row: len(row["input_ids"]))
        batch = self.job.task.batch([rows[0], rows[-1]], self.job.prepared.pad)
        names = ("input_ids", "attention_mask", "token_type_ids")
        return {name: batch[name] for name in names if name in batch}

    def package(self, engine: Engine, recipe: str, made_from: dict[str, Any]) -> Package:
        labels = self.job.prepared.labels
        return Package(
            engine=engine,
            task=self.config.task,
            labels=labels.names,
            label_counts=labels.counts,
            length=self.length,
            types=self.types,
            recipe=recipe,
            made_from=made_from,
        )

    def made_from(self) -> dict[str, Any]:
        return {"run": self.run.name, "step": self.step, "data": self.job.prepared.fingerprint}
