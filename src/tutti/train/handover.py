"""What a run hands on: one ordinary model, and adapters alone where the model learned by them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from torch import nn

from tutti.config import Config
from tutti.models import Blueprint, HeadedBlueprint, export_model, publish_export
from tutti.models.tuning import has_adapters, has_prompt, merged, save_adapters


def export_tuned(
    model: nn.Module,
    config: Config,
    blueprint: Blueprint | HeadedBlueprint,
    tokenizer_directory: Path,
    destination: Path,
    beside: Mapping[str, str] | None = None,
) -> None:
    """Write `model`, of the run `config`, to `destination`: adapters merged into it, and alone in `adapters/`.

    A learned prompt is no weight of the model: then `destination` is what peft opens, and the model stays where it is.
    `blueprint`: of the model without adapters. `beside`: other files to write, content by name.

    Raises:
        TuttiError: there is no format for it, or it cannot be written.
    """
    if not has_adapters(config):
        export_model(merged(model), tokenizer_directory, destination, beside=beside)
        return
    save = partial(save_adapters, model, blueprint.build(), config)
    if has_prompt(config):
        publish_export(tokenizer_directory, destination, save)
        return
    export_model(
        merged(model),
        tokenizer_directory,
        destination,
        beside=beside,
        also=lambda directory: save(directory / "adapters"),
    )
