"""A masked language model on prepared text: how encoders are pretrained, and further pretrained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel

from tutti.config.schema import Config
from tutti.core import ModelError
from tutti.core.types import SampleSource
from tutti.data import MaskedSource, Prepared, open_prepared
from tutti.data.tokenizer import load_for_encoding, pad_token_of
from tutti.models import (
    HeadedBlueprint,
    count_parameters,
    draw_headed_blueprint,
    find_body,
    flops_per_masked_token,
)
from tutti.models.tuning import tune
from tutti.package import Filler
from tutti.tasks.dropout import quicken_dropout
from tutti.tasks.masked import MaskedLanguageModelling
from tutti.train.handover import export_tuned
from tutti.train.job import Job

#: Where the user says nothing. Above the 15 % of BERT more is learned from each text, and as much of it (Wettig et al.
#: 2023, arXiv 2202.08005).
_SHARE = 0.3


@dataclass(kw_only=True)
class MaskedJob(Job):
    """Guessing what is hidden, with any masked Hugging Face architecture."""

    config: Config
    prepared: Prepared

    def __post_init__(self) -> None:
        self.answer_width = 2

    def whole_model(self) -> nn.Module:
        return tune(masked_blueprint(self.config, self.prepared).build(), self.config).model

    def twin(self) -> nn.Module:
        """A small model of its model's kind: see `Blueprint.twin`."""
        return masked_blueprint(self.config, self.prepared).twin()

    def export(self, model: nn.Module, destination: Path) -> None:
        blueprint = masked_blueprint(self.config, self.prepared)
        export_tuned(model, self.config, blueprint, self.prepared.tokenizer_directory, destination)

    def score(
        self, source: SampleSource, numbers: NDArray[np.int64], answers: NDArray[np.float64]
    ) -> dict[str, float]:
        """`accuracy`: the share of hidden tokens that the model guesses right."""
        right, hidden = answers.sum(0)
        return {"accuracy": float(right / hidden) if hidden else 0.0}

    def write_samples(
        self, model: nn.Module, say: Callable[[str, str], None], new_tokens: int | None = None
    ) -> None:
        prompts = self.config.evaluate.prompts
        for prompt, found in zip(prompts, self.filler(model).predict(prompts), strict=True):
            say(f"{prompt} → ", found["text"])

    def filler(self, model: nn.Module) -> Filler:
        """The trained, whole `model`, to be asked."""
        assert isinstance(model, PreTrainedModel)
        return Filler(model, AutoTokenizer.from_pretrained(self.prepared.tokenizer_directory))


def masked_source(
    config: Config, prepared: Prepared, part: str, *, shift: bool = True
) -> MaskedSource | None:
    """The samples of `part`; None: it has none. `shift`: those to train on are others in every epoch.

    Raises:
        DataError: the tokenizer has no mask token, or the part is too short.
    """
    if part not in prepared.splits or not prepared.splits[part].tokens:
        return None
    return MaskedSource(
        prepared,
        part,
        config.data.sequence,
        config.train.seed,
        share=config.task.mask or _SHARE,
        by=config.task.mask_by or "words",
        shift=shift and part == "train",
    )


def masked_job(config: Config, prepared_directory: Path) -> MaskedJob:
    """The job of a run with `config` on the text prepared in `prepared_directory`, its model whole on the CPU."""
    prepared = open_prepared(prepared_directory)
    tuned = tune(masked_blueprint(config, prepared).build(), config)
    quicken_dropout(tuned.model)
    objective = MaskedLanguageModelling(tuned.model)
    if tuned.allocation is not None:
        objective.penalty = tuned.allocation.penalty
    sequence = config.data.sequence
    train_data = masked_source(config, prepared, "train")
    assert train_data is not None, "refused before a worker starts"
    return MaskedJob(
        objective=objective,
        train_data=train_data,
        validation_data=masked_source(config, prepared, "validation"),
        tokens_per_sample=sequence,
        flops_per_sample=flops_per_masked_token(tuned.model, sequence, train_data.share) * sequence,
        choices=tuned.choices,
        allocation=tuned.allocation,
        parameters=count_parameters(tuned.model).total,
        config=config,
        prepared=prepared,
    )


def masked_blueprint(config: Config, prepared: Prepared) -> HeadedBlueprint:
    """The model of `config` for the tokens of `prepared`.

    Raises:
        ModelError: there is no such model, or it cannot see `data.sequence` tokens.
    """
    sequence = config.data.sequence
    body = find_body(config.model, config.task.kind)
    if body.length is not None and not config.model.from_scratch and body.length < sequence:
        raise ModelError(
            f"the model in {config.model.path} sees {body.length} tokens at once, but data.sequence is {sequence}",
            f"set data.sequence to {body.length} or less",
        )
    directory = prepared.tokenizer_directory
    return draw_headed_blueprint(
        config.model,
        config.task.kind,
        vocabulary=prepared.vocabulary,
        labels=(),
        length=sequence,
        seed=config.train.seed,
        pad=pad_token_of(directory, load_for_encoding(directory)),
        end=prepared.end_token,
    )


def samples_of(config: Config, prepared: Prepared) -> dict[str, int]:
    """Samples of each part in the first epoch.

    Raises:
        DataError: the tokenizer has no mask token, or a part that is not empty is shorter than one sample.
    """
    found = {part: masked_source(config, prepared, part) for part in prepared.splits}
    return {part: 0 if source is None else source.samples_in_epoch(0) for part, source in found.items()}
