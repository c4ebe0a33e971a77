"""The main job: a causal language model on prepared text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel

from tutti.config.schema import Config
from tutti.data import Prepared, TokenSource, open_prepared
from tutti.models import build_model, export_model, flops_per_token, generate
from tutti.tasks import CausalLanguageModelling
from tutti.train.job import Job


@dataclass(kw_only=True)
class LanguageModelJob(Job):
    """Next-token prediction with any causal Hugging Face architecture."""

    config: Config
    prepared: Prepared

    def whole_model(self) -> nn.Module:
        return _build(self.config, self.prepared)[0]

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
    """The job of a run with `config` on the text prepared in `prepared_directory`."""
    prepared = open_prepared(prepared_directory)
    objective = CausalLanguageModelling(_build(config, prepared)[0])
    sequence, seed = config.data.sequence, config.train.seed
    has_validation = prepared.splits["validation"].tokens > 0
    train_data = TokenSource(prepared, "train", sequence, seed, shift=True)
    return LanguageModelJob(
        objective=objective,
        train_data=train_data,
        validation_data=TokenSource(prepared, "validation", sequence, seed, shift=False)
        if has_validation
        else None,
        tokens_per_sample=sequence,
        flops_per_sample=flops_per_token(objective.model, sequence) * sequence,
        target_bytes=torch.from_numpy(train_data.token_bytes.astype("int64")),
        choices=[objective.notice] if objective.notice else [],
        config=config,
        prepared=prepared,
    )


def _build(config: Config, prepared: Prepared) -> tuple[PreTrainedModel, list[str]]:
    return build_model(
        config.model,
        vocabulary=prepared.vocabulary,
        sequence=config.data.sequence,
        seed=config.train.seed,
        end_token=prepared.end_token,
    )
