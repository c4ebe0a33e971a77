"""Attention heads taken out: what is left is an ordinary, smaller Hugging Face model.

Heads that share keys and values go together. Those go whose part in the layer's output is smallest, √Σ_c ‖x_c‖² ‖W_c‖²
over the channels c of a head, with x what goes into the last matrix W of the attention; the same number in every layer.

Only where a configuration says itself how wide a head is (`head_dim`): elsewhere a model with fewer heads would have
wider ones.

Shapes: D width, H heads, G of them that share keys, d width of a head.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tutti.compress.prune.structured import Fewer, Run, like, thinned
from tutti.compress.quantize.inputs import observe_inputs
from tutti.core import ModelError
from tutti.models import find_blocks


def _give_heads(text: Any, groups: int, together: int) -> bool:
    """Let the configuration `text` have so many groups of heads; whether its architecture takes them."""
    text.num_attention_heads = groups * together
    if hasattr(text, "num_key_value_heads"):
        text.num_key_value_heads = groups
    try:
        text.validate_architecture()
    except ValueError:
        return False
    return True


def fewer_heads(model: PreTrainedModel, share: float) -> Fewer:
    """What becomes of `model` with `share` of its attention heads, at least one. Nothing is computed.

    Raises:
        ModelError: its configuration does not say how wide heads are, its attention is not understood, or so many are
            as good as all.
    """
    config = copy.deepcopy(model.config)
    text = config.get_text_config(decoder=True)
    heads, width = text.num_attention_heads, getattr(text, "head_dim", None)
    if not isinstance(width, int) or not find_blocks(model) or model.config.is_encoder_decoder:
        raise ModelError(
            f"a {type(model).__name__} does not say in its configuration how wide its heads are: fewer would be wider",
            "leave heads out of the recipe",
        )
    groups = getattr(text, "num_key_value_heads", None) or heads
    together = heads // groups
    keep = max(1, round(share * groups))
    if keep == groups or not _give_heads(text, keep, together):
        fitting = [f"{k / groups:g}" for k in range(1, groups) if _give_heads(text, k, together)]
        raise ModelError(
            f"{share:g} of {heads} heads, in groups of {together}, are all of them: none would go"
            if keep == groups
            else f"a {type(model).__name__} cannot have {keep * together} of its {heads} heads: its width of "
            f"{text.hidden_size} is no multiple of that",
            f"shares that it can have: {', '.join(fitting)}" if fitting else "leave heads out of the recipe",
        )
    found, rows = thinned(model, config), {heads * width, groups * width}
    for last, first in found:
        if len(last) != 1 or len(first) != 3 or any(m.out_features not in rows for m in first):
            raise ModelError(
                f"the attention of a {type(model).__name__} is not understood",
                "leave heads out of the recipe",
            )
    return Fewer(config, keep, groups, found)


@torch.no_grad()
def drop_heads(model: PreTrainedModel, share: float, run: Run) -> PreTrainedModel:
    """A model with `share` of the attention heads of `model`, at least one, which is left as it is. `run`: has `model`
    compute, batch by batch.

    Raises:
        ModelError: see `fewer_heads`.
    """
    config, keep, groups, found = fewer_heads(model, share)
    text = model.config.get_text_config(decoder=True)
    heads, width = text.num_attention_heads, text.head_dim
    together = heads // groups
    rows = {heads * width: together * width, groups * width: width}  # of a group, by rows of the whole
    smaller = like(model, config)
    state = model.state_dict()
    names = {id(module): name for name, module in model.named_modules()}
    for last, first in found:
        size = observe_inputs(last, run)[id(last[0])].norm * last[0].weight.norm(dim=0)
        best = size.view(groups, -1).norm(dim=1).argsort(descending=True)[:keep].sort().values
        state[f"{names[id(last[0])]}.weight"] = last[0].weight[:, _places(best, together * width)]
        for module in first:
            kept = _places(best, rows[module.out_features])
            for part in ("weight", "bias"):
                tensor: Tensor | None = getattr(module, part)
                if tensor is not None:
                    state[f"{names[id(module)]}.{part}"] = tensor[kept]
    smaller.load_state_dict(state)
    return smaller


def _places(groups: Tensor, each: int) -> Tensor:
    """Numbers of the channels of `groups`, of which each has so many."""
    return (groups[:, None] * each + torch.arange(each)).flatten()
