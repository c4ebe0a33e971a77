"""The main job: a causal language model on prepared text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel

from tutti.config.schema import Config
from tutti.core.types import Objective
from tutti.data import Prepared, TokenSource, open_prepared
from tutti.models import Blueprint, count_parameters, draw_blueprint, export_model, flops_per_token, generate
from tutti.parallel import Arithmetic, Split, World, apply_language_layout
from tutti.tasks import CausalLanguageModelling, find_manner
from tutti.train.job import Job


@dataclass(kw_only=True)
class LanguageModelJob(Job):
    """Next-token prediction with any causal Hugging Face architecture."""

    config: Config
    prepared: Prepared

    def whole_model(self) -> nn.Module:
        return _blueprint(self.config, self.prepared).build()

    def export(self, model: nn.Module, destination: Path) -> None:
        assert isinstance(model, PreTrainedModel)
        export_model(model, self.prepared.tokenizer_directory, destination)

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
            prompts,
            new_tokens or self.config.evaluate.new_tokens,
            seed=self.config.train.seed,
        )
        for prompt, text in zip(prompts, texts, strict=True):
            say(prompt, text)


def language_model_job(config: Config, prepared_directory: Path) -> LanguageModelJob:
    """The job of a run with `config` on the text prepared in `prepared_directory`, its model whole on the CPU."""
    prepared = open_prepared(prepared_directory)
    model = _blueprint(config, prepared).build()
    return _job(config, prepared, CausalLanguageModelling(model), model)


def split_language_model_job(
    config: Config, prepared_directory: Path, world: World, arithmetic: Arithmetic
) -> tuple[LanguageModelJob, Split]:
    """The same, with the model split over the ranks of `world` from the start: no rank ever holds the whole."""
    prepared = open_prepared(prepared_directory)
    blueprint = _blueprint(config, prepared)
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
    return job, split


def _job(
    config: Config, prepared: Prepared, objective: Objective, model: PreTrainedModel
) -> LanguageModelJob:
    """`model`: in memory or not, the whole that is counted."""
    sequence, seed = config.data.sequence, config.train.seed
    has_validation = prepared.splits["validation"].tokens > 0
    train_data = TokenSource(prepared, "train", sequence, seed, shift=True)
    notice = getattr(objective, "notice", "")
    return LanguageModelJob(
        objective=objective,
        train_data=train_data,
        validation_data=TokenSource(prepared, "validation", sequence, seed, shift=False)
        if has_validation
        else None,
        tokens_per_sample=sequence,
        flops_per_sample=flops_per_token(model, sequence) * sequence,
        target_bytes=torch.from_numpy(train_data.token_bytes.astype("int64")),
        choices=[notice] if notice else [],
        parameters=count_parameters(model).total,
        config=config,
        prepared=prepared,
    )


def _blueprint(config: Config, prepared: Prepared) -> Blueprint:
    return draw_blueprint(
        config.model,
        vocabulary=prepared.vocabulary,
        sequence=config.data.sequence,
        seed=config.train.seed,
        end_token=prepared.end_token,
    )
