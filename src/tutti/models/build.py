"""One way to a model, whatever the configuration names: a size, an architecture, or a directory.

Weights start the same on every rank: they follow from the seed alone, drawn on the CPU.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from tutti.config.schema import ModelConfig
from tutti.core import ModelError
from tutti.models.architecture import (
    config_from_directory,
    config_from_mapping,
    one_line,
    set_dropout,
    without_chatter,
)
from tutti.models.initial import initialise
from tutti.models.presets import choose_preset
from tutti.models.weights import check_vocabulary, load_weights


def build_model(
    config: ModelConfig, *, vocabulary: int, sequence: int, seed: int, end_token: int
) -> tuple[PreTrainedModel, list[str]]:
    """The model that `config` asks for, in fp32 on the CPU, and what was chosen on the way, in sentences.

    Args:
        config: the `model` section.
        vocabulary: entries of the tokenizer.
        sequence: tokens of a sample; the model sees at least so many.
        seed: decides the first weights.
        end_token: the token between documents.

    Raises:
        ModelError: it cannot be built; says what to do.
    """
    if config.path is not None:
        return _from_path(config, Path(config.path).expanduser(), vocabulary, sequence, seed, end_token)
    if config.size is not None:
        preset = choose_preset(config.size, vocabulary)
        architecture: Any = LlamaConfig(**preset.settings(sequence))
        choices, written = [preset.sentence(config.size)], set[str]()
    else:
        given = config.config or {}
        architecture = config_from_mapping(given)
        choices, written = [], set(given)
    choices += _fit(architecture, vocabulary, sequence, end_token)
    choices += filter(None, [set_dropout(architecture, config.dropout, written)])
    model = _fresh(architecture, seed)
    if config.size is not None:
        initialise(model, seed)
    return model, choices


def _from_path(
    config: ModelConfig, directory: Path, vocabulary: int, sequence: int, seed: int, end_token: int
) -> tuple[PreTrainedModel, list[str]]:
    architecture = config_from_directory(directory)
    if config.from_scratch:
        choices = [
            f"model: the architecture of {directory} with new weights",
            *_fit(architecture, vocabulary, sequence, end_token),
        ]
        choices += filter(None, [set_dropout(architecture, config.dropout)])
        return _fresh(architecture, seed), choices
    check_vocabulary(directory, architecture.get_text_config(decoder=True).vocab_size, vocabulary)
    context = getattr(architecture.get_text_config(decoder=True), "max_position_embeddings", None)
    if context and context < sequence:
        raise ModelError(
            f"the model in {directory} sees {context} tokens at once, but data.sequence is {sequence}",
            f"set data.sequence to {context} or less",
        )
    choices = [f"model: weights of {directory}"]
    choices += filter(None, [set_dropout(architecture, config.dropout)])
    model = load_weights(directory, architecture)
    _set_ends(model, end_token)
    return model, choices


def _fit(architecture: Any, vocabulary: int, sequence: int, end_token: int) -> list[str]:
    """Make a fresh architecture speak the tokenizer's vocabulary and see whole samples."""
    text = architecture.get_text_config(decoder=True)
    choices = []
    if hasattr(text, "max_position_embeddings") and text.max_position_embeddings < sequence:
        choices.append(
            f"model.max_position_embeddings = {sequence} instead of {text.max_position_embeddings}: data.sequence "
            "is as long"
        )
        text.max_position_embeddings = sequence
    for part in {id(part): part for part in (architecture, text)}.values():
        part.vocab_size = vocabulary
        part.eos_token_id = part.bos_token_id = part.pad_token_id = end_token
    return choices


def _fresh(architecture: Any, seed: int) -> PreTrainedModel:
    """New weights, the same on every rank and for any number of threads; the caller's random state is left alone."""
    factory: Any = AutoModelForCausalLM
    try:
        with torch.random.fork_rng(devices=[]), without_chatter(), torch.device("cpu"):
            torch.manual_seed(seed)
            model = factory.from_config(architecture, dtype=torch.float32, trust_remote_code=False)
    except Exception as error:
        raise ModelError(
            f"the {architecture.model_type} model cannot be built: {one_line(error)}",
            "check that the numbers of its configuration fit together",
        ) from error
    _set_ends(model, architecture.get_text_config(decoder=True).eos_token_id)
    built: PreTrainedModel = model
    return built


def _set_ends(model: Any, end_token: int) -> None:
    """The end token, for generation here and wherever the export is opened."""
    for settings in (model.config.get_text_config(decoder=True), model.config, model.generation_config):
        if settings is not None:
            settings.eos_token_id = settings.pad_token_id = end_token
            settings.bos_token_id = end_token
