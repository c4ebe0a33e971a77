"""One way to a model, whatever the configuration names: a size, an architecture, or a directory.

What comes out first is a `Blueprint`, which costs no memory; `build_model` makes the whole model of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import LlamaConfig, PreTrainedModel

from tutti.config.model import ModelConfig
from tutti.core import ModelError
from tutti.models.adapters import model_directory
from tutti.models.architecture import (
    config_from_directory,
    config_from_mapping,
    set_dropout,
)
from tutti.models.blueprint import Blueprint
from tutti.models.presets import choose_preset
from tutti.models.weights import check_vocabulary, require_weights


def draw_blueprint(
    config: ModelConfig, *, vocabulary: int, sequence: int, seed: int, end_token: int
) -> Blueprint:
    """The model that `config` asks for, before it costs memory.

    Args:
        config: the `model` section.
        vocabulary: entries of the tokenizer.
        sequence: tokens of a sample; the model sees at least so many.
        seed: decides the first weights, unless `config` has a seed of its own.
        end_token: the token between documents.

    Raises:
        ModelError: there is no such model; says what to do.
    """
    seed = seed if config.seed is None else config.seed
    if config.path is not None:
        directory = model_directory(Path(config.path).expanduser())
        return _from_path(config, directory, vocabulary, sequence, seed, end_token)
    if config.size is not None:
        preset = choose_preset(config.size, vocabulary)
        architecture: Any = LlamaConfig(**preset.settings(sequence))
        choices, written = [preset.sentence(config.size)], set[str]()
    else:
        given = config.config or {}
        architecture = config_from_mapping(given)
        choices, written = [], set(given)
    choices += _fit(architecture, vocabulary, sequence, end_token)
    choices += filter(None, [set_dropout(architecture, config.dropout or 0.0, written)])
    return Blueprint(architecture, seed, end_token, preset=config.size is not None, choices=choices)


def build_model(
    config: ModelConfig, *, vocabulary: int, sequence: int, seed: int, end_token: int
) -> tuple[PreTrainedModel, list[str]]:
    """The whole model in fp32 on the CPU, and what was chosen on the way; arguments as of `draw_blueprint`.

    Raises:
        ModelError: it cannot be built; says what to do.
    """
    blueprint = draw_blueprint(
        config, vocabulary=vocabulary, sequence=sequence, seed=seed, end_token=end_token
    )
    return blueprint.build(), blueprint.choices


def _from_path(
    config: ModelConfig, directory: Path, vocabulary: int, sequence: int, seed: int, end_token: int
) -> Blueprint:
    architecture = config_from_directory(directory)
    if config.from_scratch:
        choices = [
            f"model: the architecture of {directory} with new weights",
            *_fit(architecture, vocabulary, sequence, end_token),
        ]
        choices += filter(None, [set_dropout(architecture, config.dropout or 0.0)])
        return Blueprint(architecture, seed, end_token, choices=choices)
    require_weights(directory)
    check_vocabulary(directory, architecture.get_text_config(decoder=True).vocab_size, vocabulary)
    context = getattr(architecture.get_text_config(decoder=True), "max_position_embeddings", None)
    if context and context < sequence:
        raise ModelError(
            f"the model in {directory} sees {context} tokens at once, but data.sequence is {sequence}",
            f"set data.sequence to {context} or less",
        )
    choices = [f"model: weights of {directory}"]
    choices += filter(None, [set_dropout(architecture, config.dropout or 0.0)])
    return Blueprint(architecture, seed, end_token, directory=directory, choices=choices)


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
