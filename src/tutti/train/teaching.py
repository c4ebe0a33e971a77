"""Teachers of a run: exported models of the same task, with the same labels and tokenizer, or the same vocabulary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from tutti.config.schema import Config
from tutti.core import ModelError, RunDirectory
from tutti.data.labelled import PreparedExamples
from tutti.data.tokenizer import load_for_encoding
from tutti.models import find_blocks, load_writer
from tutti.models.heads import load_with_head
from tutti.tasks import CausalLanguageModelling, Task
from tutti.tasks.dense import install
from tutti.tasks.packing import ATTENTION
from tutti.tasks.sequences import EncoderDecoder
from tutti.tasks.teachers import Teachers, Thinker
from tutti.tasks.token_teachers import Predicts, TokenTeachers


def find_teachers(config: Config, prepared: PreparedExamples, task: Task) -> Teachers | None:
    """Those that `config.distil` names, in memory; None: it names none.

    Raises:
        ModelError: there is no such model, or it was made for other labels or another tokenizer.
    """
    if not config.distil.teachers:
        return None
    words = load_for_encoding(prepared.tokenizer_directory).get_vocab()
    return Teachers(
        [_teacher(place, words, prepared, task) for place in config.distil.teachers], config.distil
    )


def _teacher(place: str, words: dict[str, int], prepared: PreparedExamples, task: Task) -> Thinker:
    directory = _directory_of(Path(place).expanduser())
    model = load_with_head(directory, task.kind)
    labels = prepared.labels.names
    theirs = {int(number): str(name) for number, name in (model.config.id2label or {}).items()}
    if labels and task.words == "text" and theirs != dict(enumerate(labels)):
        odd = sorted(set(theirs.values()) ^ set(labels))
        raise ModelError(
            f"the teacher {place} was made for other labels than these examples have"
            + (f", e.g. '{odd[0]}'" if odd else ""),
            "name a run on the same examples in distil.teacher",
        )
    _check_words(place, directory, words)
    blocks = find_blocks(model)
    if blocks:
        install(model, blocks, ATTENTION)
    objective = task.objective(model, prepared.labels)
    assert isinstance(objective, Thinker)
    return objective


def find_token_teachers(
    config: Config, tokenizer_directory: Path, learner: nn.Module
) -> TokenTeachers | None:
    """The models that write which `config.distil` names, in memory, for a `learner` that writes; None: it names none.

    Raises:
        ModelError: there is no such model, or it has another vocabulary, or sees less at once.
    """
    if not config.distil.teachers:
        return None
    words = load_for_encoding(tokenizer_directory).get_vocab()
    return TokenTeachers(
        [_token_teacher(place, words, config.data.sequence, learner) for place in config.distil.teachers],
        config.distil,
    )


def _token_teacher(place: str, words: dict[str, int], sequence: int, learner: Any) -> Predicts:
    directory = _directory_of(Path(place).expanduser())
    model: Any = load_writer(directory)
    theirs, own = (whole.config.get_text_config(decoder=True) for whole in (model, learner))
    if bool(model.config.is_encoder_decoder) != bool(learner.config.is_encoder_decoder):
        raise ModelError(
            f"the teacher {place} is a {model.config.model_type}, which is not asked as the "
            f"{learner.config.model_type} that is to learn",
            "let causal language models teach each other, and encoder-decoders",
        )
    _check_words(place, directory, words)
    if theirs.vocab_size != own.vocab_size:
        raise ModelError(
            f"the teacher {place} has {theirs.vocab_size} entries in its vocabulary, the model that is to learn "
            f"{own.vocab_size}",
            "choose models with tables of one size, or set model.from_scratch: true",
        )
    context = getattr(theirs, "max_position_embeddings", None)
    if context is not None and context < sequence:
        raise ModelError(
            f"the teacher {place} sees {context} tokens at once, but data.sequence is {sequence}",
            f"set data.sequence to {context} or less, or choose another teacher",
        )
    return EncoderDecoder(model) if model.config.is_encoder_decoder else CausalLanguageModelling(model)


def _check_words(place: str, directory: Path, words: dict[str, int]) -> None:
    if load_for_encoding(directory).get_vocab() != words:
        raise ModelError(
            f"the teacher {place} has another tokenizer than the model that is to learn",
            f"use the teacher's for both, data.tokenizer: {directory}, or another teacher",
        )


def _directory_of(place: Path) -> Path:
    """Where the model of `place` is: a run's export, or `place` itself."""
    run = RunDirectory(place)
    if run.config.is_file() and not (run.export / "config.json").is_file():
        raise ModelError(
            f"the teacher {place} is a run without an exported model",
            f"let it end, or `tutti export {place}`",
        )
    return run.export if run.config.is_file() else place
