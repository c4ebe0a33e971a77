"""The main job: a causal language model on prepared text."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel

from tutti.config.schema import Config
from tutti.core.types import Objective
from tutti.data import InfillSource, Prepared, RecallSource, TokenSource, open_prepared
from tutti.data.labelled import ExampleSource, PreparedExamples, encoder_of, open_examples
from tutti.models import Blueprint, count_parameters, draw_blueprint, flops_per_token, generate
from tutti.models.tuning import is_plain, tune
from tutti.parallel import Arithmetic, Split, World, apply_language_layout, apply_layout
from tutti.tasks import CausalLanguageModelling, find_manner, make_text_task
from tutti.tasks.talk import begin_turns
from tutti.train.handover import export_tuned
from tutti.train.job import Job
from tutti.train.labelled import reader_of
from tutti.train.teaching import find_token_teachers
from tutti.train.writing import examine_writing


@dataclass(kw_only=True)
class LanguageModelJob(Job):
    """Next-token prediction with any causal Hugging Face architecture."""

    config: Config
    prepared: Prepared | PreparedExamples

    def whole_model(self) -> nn.Module:
        return tune(_blueprint(self.config, self.prepared).build(), self.config).model

    def export(self, model: nn.Module, destination: Path) -> None:
        blueprint = _blueprint(self.config, self.prepared)
        export_tuned(model, self.config, blueprint, self.prepared.tokenizer_directory, destination)

    def write_samples(
        self, model: nn.Module, say: Callable[[str, str], None], new_tokens: int | None = None
    ) -> None:
        prompts = self.config.evaluate.prompts
        if not prompts:
            return
        assert isinstance(model, PreTrainedModel)
        tokenizer = AutoTokenizer.from_pretrained(self.prepared.tokenizer_directory)
        texts = generate(
            model,
            tokenizer,
            self.asked(prompts),
            new_tokens or self.config.evaluate.new_tokens,
            seed=self.config.train.seed,
        )
        for prompt, text in zip(prompts, texts, strict=True):
            say(f"{prompt} → " if self.config.task.labelled else prompt, text)

    def examine(self, model: nn.Module, context: AbstractContextManager[None]) -> dict[str, Any] | None:
        if not isinstance(self.prepared, PreparedExamples):
            return None
        source = source_of(self.config, self.prepared, "test")
        if source is None:
            return None
        objective = CausalLanguageModelling(model)
        return examine_writing(model, objective, source, self.config, self.prepared, context)

    def asked(self, prompts: list[str]) -> list[str] | list[list[int]]:
        """What the model is given for `prompts`: of an assistant the beginning of its turn."""
        if not isinstance(self.prepared, PreparedExamples):
            return prompts
        encoder = encoder_of(self.prepared, make_text_task(self.config.task), reader_of(self.config))
        return begin_turns(encoder, prompts)


def language_model_job(config: Config, prepared_directory: Path) -> LanguageModelJob:
    """The job of a run with `config` on the text prepared in `prepared_directory`, its model whole on the CPU."""
    prepared = _open(config, prepared_directory)
    return _tuned_job(config, prepared, _blueprint(config, prepared))


def split_language_model_job(
    config: Config, prepared_directory: Path, world: World, arithmetic: Arithmetic
) -> tuple[LanguageModelJob, Split]:
    """The same, with the model split over the ranks of `world` from the start: no rank ever holds the whole.

    One of which a part alone learns is built whole, and sharded then.
    """
    prepared = _open(config, prepared_directory)
    blueprint = _blueprint(config, prepared)
    if not is_plain(config):
        job = _tuned_job(config, prepared, blueprint)
        _hear_teachers(job)
        return job, apply_layout(job.objective.to(world.device).train(), world, arithmetic)
    manner = find_manner(blueprint.twin())
    assert not isinstance(config.train.micro_batch, str), "api.py resolves every auto before a worker starts"
    split = apply_language_layout(
        blueprint,
        manner,
        world,
        arithmetic,
        micro_batch=config.train.micro_batch,
        sequence=config.data.sequence,
    )
    job = _job(config, prepared, split.objective, blueprint.lay_out())
    job.choices += [manner.notice] if manner.notice else []
    _hear_teachers(job)
    return job, split


def _hear_teachers(job: LanguageModelJob) -> None:
    """Give the objective of `job`, which is about to learn, its teachers."""
    objective, prepared = job.objective, job.prepared
    if isinstance(objective, CausalLanguageModelling):  # a layout that cuts it has none
        objective.term = find_token_teachers(job.config, prepared.tokenizer_directory, objective.model)


def _tuned_job(
    config: Config, prepared: Prepared | PreparedExamples, blueprint: Blueprint
) -> LanguageModelJob:
    tuned = tune(blueprint.build(), config)
    objective = CausalLanguageModelling(tuned.model)
    if tuned.allocation is not None:
        objective.penalty = tuned.allocation.penalty
    job = _job(config, prepared, objective, tuned.model)
    job.choices += tuned.choices
    job.allocation = tuned.allocation
    return job


def _open(config: Config, directory: Path) -> Prepared | PreparedExamples:
    return open_examples(directory) if config.task.labelled else open_prepared(directory)


def _job(
    config: Config, prepared: Prepared | PreparedExamples, objective: Objective, model: nn.Module
) -> LanguageModelJob:
    """`model`: in memory or not, the whole that is counted."""
    sequence = config.data.sequence
    notice = getattr(objective, "notice", "")
    train_data = source_of(config, prepared, "train")
    assert train_data is not None, "refused before a worker starts"
    token_bytes = train_data.token_bytes if isinstance(train_data, TokenSource) else None
    return LanguageModelJob(
        objective=objective,
        train_data=train_data,
        validation_data=source_of(config, prepared, "validation"),
        tokens_per_sample=sequence,
        flops_per_sample=flops_per_token(model, sequence) * sequence,
        target_bytes=None if token_bytes is None else torch.from_numpy(token_bytes.astype("int64")),
        choices=[notice] if notice else [],
        parameters=count_parameters(model).total,
        config=config,
        prepared=prepared,
    )


def source_of(
    config: Config, prepared: Prepared | PreparedExamples, part: str, *, shift: bool = True
) -> TokenSource | ExampleSource | None:
    """The samples of `part`; None: it has none. `shift`: those to train on begin elsewhere in every epoch."""
    sequence, seed = config.data.sequence, config.train.seed
    if isinstance(prepared, PreparedExamples):
        if not prepared.rows(part):
            return None
        task = make_text_task(config.task)
        task.fixed = sequence  # as running text has it, whatever the layout
        return ExampleSource(prepared, part, task)
    if part not in prepared.splits or not prepared.splits[part].tokens:
        return None
    if config.task.infill and part == "train":
        return InfillSource(prepared, part, sequence, seed, shift=shift, share=config.task.infill)
    if config.task.recall and part == "train":
        return RecallSource(prepared, part, sequence, seed, shift=shift, share=config.task.recall)
    return TokenSource(prepared, part, sequence, seed, shift=shift and part == "train")


def _blueprint(config: Config, prepared: Prepared | PreparedExamples) -> Blueprint:
    drawn = draw_blueprint(
        config.model,
        vocabulary=prepared.vocabulary,
        sequence=config.data.sequence,
        seed=config.train.seed,
        end_token=prepared.end_token,
    )
    return replace(drawn, stops=prepared.stops) if isinstance(prepared, PreparedExamples) else drawn
