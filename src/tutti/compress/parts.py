"""What a recipe leaves of a model, as far as that can be known before anything is computed."""

from __future__ import annotations

from transformers import PreTrainedModel

from tutti.compress.prune import fewer_channels, fewer_heads, layers_in_blocks, require_layers
from tutti.compress.recipes import Recipe

#: By which the share that stays may differ from the one that was asked for without a word.
_SAME = 0.005


def check_parts(model: PreTrainedModel, recipe: Recipe) -> str:
    """In words, which shares of `model` stay where only others than `recipe` asks for are possible; mostly nothing.

    Raises:
        ModelError: what `recipe` takes out of a model cannot be taken out of this one.
    """
    if recipe.layers is not None:
        require_layers(model, recipe.layers)
    if recipe.zeros:
        layers_in_blocks(model, recipe.criterion)
    rounded = []
    for share, fewer, name in (
        (recipe.heads, fewer_heads, "heads"),
        (recipe.channels, fewer_channels, "channels"),
    ):
        if share is None:
            continue
        stays = fewer(model, share)
        stay = stays.keep / stays.whole
        if abs(stay - share) > _SAME:
            rounded.append(f"{stay:.3g} of the {name} stay")
    return ", ".join(rounded)
