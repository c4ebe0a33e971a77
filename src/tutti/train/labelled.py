"""A model that learns from labelled examples: any task of `tutti.tasks`."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tutti.config.schema import Config
from tutti.core import ModelError
from tutti.core.types import SampleSource, module_device
from tutti.data.labelled import FORMER, ExampleSource, PreparedExamples, Reader, encoder_of, open_examples
from tutti.evaluate import Answering, Evaluation, answers_in, sum_losses
from tutti.models import (
    HeadedBlueprint,
    add_rows_only,
    count_parameters,
    draw_headed_blueprint,
    find_blocks,
    find_body,
    is_encoder_decoder,
)
from tutti.models.quantized import train_quantized
from tutti.models.tuning import has_prompt, tune
from tutti.parallel import Split, World
from tutti.tasks import Answers, RowEncoder, Task, make_task
from tutti.tasks.contrast import fit_head, labels_of, last_layer, read_by_head
from tutti.tasks.dense import install
from tutti.tasks.dropout import quicken_dropout
from tutti.tasks.packing import ATTENTION
from tutti.tasks.recommend import start_from
from tutti.tasks.task import Row, Rows
from tutti.tasks.teachers import Thinker
from tutti.train.handover import export_tuned
from tutti.train.job import Job
from tutti.train.remembering import find_known
from tutti.train.teaching import find_teachers

#: Rows of the final test that are read at once.
_EXAMINED_AT_ONCE = 32


@dataclass(kw_only=True)
class LabelledJob(Job):
    """A task with labelled examples, and the model that learns it."""

    config: Config
    prepared: PreparedExamples
    task: Task

    def whole_model(self) -> nn.Module:
        return tune(blueprint_of(self.config, self.prepared).build(), self.config).model

    def twin(self) -> nn.Module:
        """A small model of its model's kind: see `Blueprint.twin`."""
        return blueprint_of(self.config, self.prepared).twin()

    def export(self, model: nn.Module, destination: Path) -> None:
        beside = self.task.exported(model, self.config.data.sequence)
        blueprint = blueprint_of(self.config, self.prepared)
        export_tuned(model, self.config, blueprint, self.prepared.tokenizer_directory, destination, beside)

    def __post_init__(self) -> None:
        labels = self.prepared.labels
        widths = [
            self.task.width(part.table, labels, self.objective.model) for part in self.prepared.parts.values()
        ]
        self.answer_width = self.task.group * max(widths)
        self.main_metric = self.task.main

    def source(self, part: str) -> ExampleSource:
        """The rows of `train`, `validation` or `test`."""
        return ExampleSource(self.prepared, part, self.task)

    def score(self, source: SampleSource, numbers: NDArray[np.int64], answers: Answers) -> dict[str, float]:
        assert isinstance(source, ExampleSource)
        table, examples = source.part.table, source.part.read()
        if self.task.group > 1:
            numbers, answers = rows_of_groups(numbers, answers, self.task.group, len(table))
        whole = whole_examples(table.example, numbers)
        kept = np.flatnonzero(np.isin(table.example[numbers], whole))
        rows = Chosen(table, numbers[kept], np.searchsorted(whole, table.example[numbers[kept]]))
        return self.task.score(answers[kept], rows, [examples[at] for at in whole], self.prepared.labels)

    def complete(self, model: nn.Module, context: AbstractContextManager[None]) -> None:
        """Where the model learned by contrast: its last layer, fitted on the training examples."""
        if not self.config.task.contrast:
            return
        source, training = self.source("train"), model.training
        count, device = source.samples_in_epoch(0), module_device(model)
        model.eval()
        with torch.no_grad(), context:
            vectors = [
                read_by_head(
                    model, {name: tensor.to(device) for name, tensor in source.load(0, some).items()}
                )
                for some in np.array_split(np.arange(count), -(-count // _EXAMINED_AT_ONCE))
            ]
        model.train(training)
        head = fit_head(
            torch.cat(vectors).double().cpu().numpy(),
            labels_of(source.part.table),
            balance=self.config.task.balance,
        )
        layer = last_layer(model)
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(head.weight))
            layer.bias.copy_(torch.from_numpy(head.bias))

    def examine(self, model: nn.Module, context: AbstractContextManager[None]) -> dict[str, Any] | None:
        if "test" not in self.prepared.parts:
            return None
        source = self.source("test")
        count, objective = source.samples_in_epoch(0), self.task.objective(model, self.prepared.labels)
        sums = sum_losses(
            partial(Split(objective, World.alone()).measure, context=context),
            source,
            samples=count,
            part=0,
            parts=1,
            micro_batch=max(1, _EXAMINED_AT_ONCE // self.task.group),
            device=module_device(model),
            target_bytes=None,
            answering=Answering(objective, self.answer_width),
        )
        metrics = self.score(source, np.arange(count), answers_in(sums, count))
        return {"loss": Evaluation.of(sums).loss, "metrics": metrics}

    @property
    def encoder(self) -> RowEncoder:
        """What turns new texts into rows."""
        return encoder_of(self.prepared, self.task, reader_of(self.config))


class Chosen:
    """Some rows of a table, `numbers`, and the examples that they are of, counted anew."""

    def __init__(self, table: Rows, numbers: NDArray[np.int64], example: NDArray[np.int64]) -> None:
        self.example = example
        self._table, self._numbers = table, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, number: int) -> Row:
        return self._table[int(self._numbers[number])]


def rows_of_groups(
    numbers: NDArray[np.int64], answers: Answers, group: int, rows: int
) -> tuple[NDArray[np.int64], Answers]:
    """The rows in the groups `numbers` of a part that has so many `rows`, and the answers to each; the last group may
    not be full."""
    each = (numbers[:, None] * group + np.arange(group)).flatten()
    kept = each < rows
    return each[kept], answers.reshape(len(each), -1)[kept]


def whole_examples(example: NDArray[np.int64], numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """The examples of which all rows are among `numbers`, in order."""
    had = np.bincount(example[numbers], minlength=int(example.max()) + 1)
    return np.flatnonzero((had == np.bincount(example)) & (had > 0))


def reader_of(config: Config) -> Reader:
    """The model of `config` as one that reads rows.

    Raises:
        ModelError: there is none for the task, or it cannot see `data.sequence` tokens.
    """
    if not has_head(config):
        return Reader(config.data.sequence, types=False)
    body = find_body(config.model, config.task.kind)
    prompt = config.tune.tokens if has_prompt(config) else 0
    if body.length is not None and body.length < config.data.sequence + prompt:
        raise ModelError(
            f"the model in {config.model.path} sees {body.length} tokens at once, but data.sequence is "
            f"{config.data.sequence}"
            + (f", and {prompt} of a learned prompt stand before them" if prompt else ""),
            f"set data.sequence to {body.length - prompt} or less",
        )
    return Reader(config.data.sequence, body.types and config.task.asks, decodes=not config.task.asks)


def has_head(config: Config) -> bool:
    """Whether the model of `config` is none that continues text: it is asked, or reads one text and writes another."""
    return config.task.asks or (config.task.labelled and is_encoder_decoder(config.model))


def labelled_job(config: Config, prepared_directory: Path, *, learns: bool = False) -> LabelledJob:
    """The job of a run with `config` on the examples prepared in `prepared_directory`, its model whole on the CPU.

    `learns`: it is about to, so it has its teachers.
    """
    prepared = open_examples(prepared_directory)
    task = make_task(config.task, config.regularise)
    blueprint = blueprint_of(config, prepared)
    fresh = blueprint.build()
    if (vectors := prepared.vectors) is not None and blueprint.directory is None:
        start_from(fresh, vectors)
    tuned = tune(fresh, config)
    model, choices = tuned.model, tuned.choices
    blocks = find_blocks(model)
    can = config.memory.recompute == "none" and bool(blocks) and not has_prompt(config)
    if not (can and install(model, blocks, ATTENTION)):
        choices.append("padding is computed with the tokens: this architecture, or setting, needs it")
    quicken_dropout(model)
    if config.tune.quantize is not None:  # after: whether padding can be left out is tried with exact numbers
        count = train_quantized(model, 8 if config.tune.quantize == "int8" else 4)
        choices.append(f"tune.quantize = {config.tune.quantize}: {count} layers compute with rounded weights")
    objective = task.objective(model, prepared.labels)
    if tuned.allocation is not None:
        objective.penalty = tuned.allocation.penalty
    if learns and (teachers := find_teachers(config, prepared, task)) is not None:
        assert isinstance(objective, Thinker)
        if config.distil.hidden:
            teachers.look_into(blocks, find_blocks(teachers.models[0]))
        objective.teachers = teachers
    known = None
    if learns and config.remember.ewc:
        known = find_known(objective, ExampleSource(prepared, FORMER, task))
        choices.append(
            f"remember.ewc = {config.remember.ewc:g}: weights are held by what {prepared.rows(FORMER)} rows of former "
            "examples make of each"
        )
    if config.sync.implementation != "ddp":  # which waits for a gradient of every parameter
        add_rows_only(model)
    parts = prepared.parts
    train = parts["train"]
    tokens = max(1, round(task.group * train.tokens / train.rows))
    return LabelledJob(
        objective=objective,
        train_data=ExampleSource(prepared, "train", task, vary=config.train.seed),
        validation_data=ExampleSource(prepared, "validation", task) if "validation" in parts else None,
        tokens_per_sample=tokens,
        choices=choices,
        known=known,
        allocation=tuned.allocation,
        parameters=count_parameters(model).total,
        config=config,
        prepared=prepared,
        task=task,
    )


def blueprint_of(config: Config, prepared: PreparedExamples) -> HeadedBlueprint:
    """The model of `config` for the labels of `prepared`."""
    return draw_headed_blueprint(
        config.model,
        config.task.kind,
        vocabulary=prepared.vocabulary,
        labels=prepared.labels.names,
        length=config.data.sequence,
        seed=config.train.seed,
        pad=prepared.pad,
        end=prepared.end_token,
    )
