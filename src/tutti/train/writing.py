"""Models that learn from examples to write: what they write, what it is worth, and the encoder-decoders among them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn
from transformers import AutoTokenizer

from tutti.config.schema import Config
from tutti.core.types import SampleSource, module_device
from tutti.data.labelled import ExampleSource, PreparedExamples, encoder_of, open_examples
from tutti.evaluate import Evaluation, sum_losses
from tutti.models import count_parameters
from tutti.models.tuning import tune
from tutti.package import Writer
from tutti.parallel import Split, World
from tutti.tasks import Writing, make_writing_task
from tutti.tasks.sequences import EncoderDecoder
from tutti.train.handover import export_tuned
from tutti.train.job import Job
from tutti.train.labelled import blueprint_of, reader_of
from tutti.train.teaching import find_token_teachers

#: Samples that are examined at once.
_AT_ONCE = 32


def writer_of(
    model: nn.Module, config: Config, prepared: PreparedExamples, new_tokens: int | None = None
) -> Writer:
    """`model`, of a run that learned from examples, to let it write at most `new_tokens` (None:
    `evaluate.new_tokens`)."""
    whole: Any = model
    task = make_writing_task(config.task)
    tokenizer: Any = AutoTokenizer.from_pretrained(prepared.tokenizer_directory)
    encoder = encoder_of(prepared, task, reader_of(config))
    most, beams = new_tokens or config.evaluate.new_tokens, config.evaluate.beams
    return Writer(whole, tokenizer, task, encoder, most, beams)


def score_writing(
    model: nn.Module, config: Config, prepared: PreparedExamples, part: str, examples: int | None = None
) -> dict[str, float]:
    """Metrics of what `model` writes to the first `examples` (None: all) of `part`; {} where its task has none."""
    task = make_writing_task(config.task)
    if type(task).score is Writing.score:
        return {}
    judged = prepared.parts[part].read()[:examples]
    return task.score(writer_of(model, config, prepared).write(judged), judged)


def examine_writing(
    model: nn.Module,
    objective: Any,
    source: SampleSource,
    config: Config,
    prepared: PreparedExamples,
    context: AbstractContextManager[None],
) -> dict[str, Any]:
    """Loss and metrics of the whole `model` on the final test."""
    sums = sum_losses(
        partial(Split(objective, World.alone()).measure, context=context),
        source,
        samples=source.samples_in_epoch(0),
        part=0,
        parts=1,
        micro_batch=_AT_ONCE,
        device=module_device(model),
        target_bytes=None,
    )
    return {"loss": Evaluation.of(sums).loss, "metrics": score_writing(model, config, prepared, "test")}


@dataclass(kw_only=True)
class EncoderDecoderJob(Job):
    """A model that reads one text and writes another."""

    config: Config
    prepared: PreparedExamples

    def whole_model(self) -> nn.Module:
        return tune(blueprint_of(self.config, self.prepared).build(), self.config).model

    def export(self, model: nn.Module, destination: Path) -> None:
        blueprint = blueprint_of(self.config, self.prepared)
        export_tuned(model, self.config, blueprint, self.prepared.tokenizer_directory, destination)

    def examine(self, model: nn.Module, context: AbstractContextManager[None]) -> dict[str, Any] | None:
        if "test" not in self.prepared.parts:
            return None
        source, objective = self.source("test"), EncoderDecoder(model)
        return examine_writing(model, objective, source, self.config, self.prepared, context)

    def write_samples(
        self, model: nn.Module, say: Callable[[str, str], None], new_tokens: int | None = None
    ) -> None:
        prompts = self.config.evaluate.prompts
        writer = writer_of(model, self.config, self.prepared, new_tokens)
        texts = writer.write(make_writing_task(self.config.task).asked_about(prompts))
        for prompt, text in zip(prompts, texts, strict=True):
            say(f"{prompt} → ", text)

    def source(self, part: str) -> ExampleSource:
        """The rows of `train`, `validation` or `test`."""
        return ExampleSource(self.prepared, part, make_writing_task(self.config.task))


def encoder_decoder_job(
    config: Config, prepared_directory: Path, *, learns: bool = False
) -> EncoderDecoderJob:
    """The job of a run with `config` on the examples prepared in `prepared_directory`, its model whole on the CPU.

    `learns`: it is about to, so it has its teachers.
    """
    prepared = open_examples(prepared_directory)
    tuned = tune(blueprint_of(config, prepared).build(), config)
    objective = EncoderDecoder(tuned.model)
    if tuned.allocation is not None:
        objective.penalty = tuned.allocation.penalty
    if learns:
        objective.term = find_token_teachers(config, prepared.tokenizer_directory, tuned.model)
    task, parts = make_writing_task(config.task), prepared.parts
    train = parts["train"]
    return EncoderDecoderJob(
        objective=objective,
        train_data=ExampleSource(prepared, "train", task),
        validation_data=ExampleSource(prepared, "validation", task) if "validation" in parts else None,
        tokens_per_sample=max(1, round(train.tokens / train.rows)),
        parameters=count_parameters(tuned.model).total,
        choices=tuned.choices,
        allocation=tuned.allocation,
        config=config,
        prepared=prepared,
    )
