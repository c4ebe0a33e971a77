"""A model that writes: it is judged by its perplexity on what was kept aside, and timed by the tokens that it writes.

Perplexity is the exponential of the mean loss of a token; less is better, and 1 % worse is 1 % more of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from tutti.compress.drills import Continuing
from tutti.compress.quantize.inputs import Enough
from tutti.compress.recipes import Recipe, ladder
from tutti.compress.subject import Subject
from tutti.compress.table import Metric, Words
from tutti.core import Batch, ConfigError, RunError, SampleSource
from tutti.evaluate import spread
from tutti.models.tuning import merged
from tutti.package import Engine, Package, open_writer
from tutti.train.labelled import reader_of
from tutti.train.language import LanguageModelJob, source_of
from tutti.train.writing import EncoderDecoderJob
from tutti.trained import Trained, load_trained, measure, objective_with

#: Tokens that it is judged by, that show what goes into layers, and that a prompt has, about; and that are written.
_JUDGED, _SHOWN, _PROMPT, _WRITTEN = 1 << 18, 1 << 14, 128, 16
#: Logits that are in memory at once.
_LOGITS = 1 << 25


@dataclass
class WriterSubject(Subject):
    """A causal language model or an encoder-decoder, from its run."""

    job: LanguageModelJob | EncoderDecoderJob

    words = Words(
        "ms a token, batch 1",
        "ms, batch 32",
        "tokens",
        ", one token behind the other as transformers' generate writes them, prompts already in tokens",
    )
    usual = ("int8", "int8-mixed", "int4-gptq", "int4-awq")
    reference = None

    @classmethod
    def is_one(cls, trained: Trained) -> bool:
        """Whether the model of a run is such a one."""
        return isinstance(trained.job, LanguageModelJob | EncoderDecoderJob)

    @classmethod
    def of(cls, run: Path) -> WriterSubject:
        """The model of `run`.

        Raises:
            TuttiError: there is none that can be made smaller.
        """
        return cls.from_trained(run, load_trained(run))

    @classmethod
    def from_trained(cls, run: Path, trained: Trained) -> WriterSubject:
        """The same, once it is in memory."""
        job, config, step = trained
        assert isinstance(job, LanguageModelJob | EncoderDecoderJob)
        if job.validation_data is None:
            raise RunError(
                f"{run} has nothing kept aside to judge a smaller model by", "train it with data.validation"
            )
        model = merged(job.objective.model).eval()
        assert isinstance(model, PreTrainedModel)
        return cls(run, config, step, model, job)

    @property
    def metric(self) -> Metric:
        return Metric("perplexity", larger_is_better=False)

    @property
    def judged(self) -> tuple[int, str]:
        samples = self._samples
        return samples, f"{samples} validation samples"

    @property
    def tokenizer_directory(self) -> Path:
        return self.job.prepared.tokenizer_directory

    def check(self, recipe: Recipe) -> None:
        super().check(recipe)
        if recipe.onnx:
            raise ConfigError(
                f"'{recipe.name}': onnxruntime computes models that are asked; of one that writes it would read the "
                "whole text again for every token",
                "leave out onnx; for another program: `tutti export RUN --format gguf`",
            )

    def ladder(self, layers: int, done: Sequence[str]) -> list[str]:
        return ladder(layers, "int4-gptq")

    def quality(self, model: nn.Module) -> dict[str, float]:
        objective = objective_with(self.job, model).eval()
        train = self.config.train.model_copy(update={"micro_batch": self._at_once})
        found = measure(
            self.job,
            objective,
            self._source,
            self.config.model_copy(update={"train": train}),
            samples=self._samples,
            context=nullcontext(),
        )
        known = {name: value for name, value in found.items() if name != "targets" and value is not None}
        return {"perplexity": math.exp(min(found["loss"], 700.0))} | known

    def running(self, model: nn.Module) -> Iterator[Batch]:
        objective, source = objective_with(self.job, model).eval(), self._shown
        shown = spread(max(8, _SHOWN // self.job.tokens_per_sample), source.samples_in_epoch(0))
        with torch.no_grad():
            for start in range(0, len(shown), self._at_once):
                batch = source.load(0, shown[start : start + self._at_once])
                with suppress(Enough):
                    objective(batch)
                yield batch

    def drill(self) -> Continuing:
        source = self._source
        batch = source.load(0, spread(32, source.samples_in_epoch(0)))
        ids = batch["input_ids"]
        length = max(1, min(_PROMPT, ids.shape[1] // 2))
        return Continuing(ids[:, :length].tolist(), max(2, min(_WRITTEN, ids.shape[1] - length)))

    def open(self, directory: Path) -> nn.Module:
        return open_writer(directory).model

    def package(self, engine: Engine, recipe: str, made_from: dict[str, Any]) -> Package:
        return Package(
            engine=engine,
            task=self.config.task,
            labels=(),
            label_counts=(),
            length=reader_of(self.config).length,
            types=False,
            recipe=recipe,
            made_from=made_from,
            new_tokens=self.config.evaluate.new_tokens,
            beams=self.config.evaluate.beams,
        )

    def made_from(self) -> dict[str, Any]:
        return {"run": self.run.name, "step": self.step, "data": self.job.train_data.fingerprint}

    @property
    def _source(self) -> SampleSource:
        assert self.job.validation_data is not None
        return self.job.validation_data

    @property
    def _shown(self) -> SampleSource:
        if isinstance(self.job, EncoderDecoderJob):
            return self.job.source("train")
        source = source_of(self.config, self.job.prepared, "train", shift=False)
        assert source is not None
        return source

    @property
    def _samples(self) -> int:
        return min(self._source.samples_in_epoch(0), max(1, _JUDGED // self.job.tokens_per_sample))

    @property
    def _at_once(self) -> int:
        vocabulary = int(self.model.config.get_text_config(decoder=True).vocab_size)
        return max(1, min(32, _LOGITS // (vocabulary * self.config.data.sequence)))
