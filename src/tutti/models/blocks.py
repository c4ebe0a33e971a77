"""Where a model repeats itself: the blocks that are sharded, compiled or recomputed one by one."""

from __future__ import annotations

from typing import Any

from torch import nn


def find_blocks(model: nn.Module) -> list[nn.Module]:
    """The repeated blocks of `model`: members of the `ModuleList` that holds the most parameters (perhaps none)."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) > 0]
    if not lists:
        return []
    # A list inside a block (experts, say) never holds more than the list of blocks does; of equals the outer wins.
    largest = max(lists, key=lambda blocks: sum(parameter.numel() for parameter in blocks.parameters()))
    return list(largest)


def all_blocks(model: nn.Module) -> list[nn.Module]:
    """The repeated blocks of every stack of `model`: of an encoder-decoder those that read, and those that write."""
    whole: Any = model
    if not getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return find_blocks(model)
    return [block for stack in (whole.get_encoder(), whole.get_decoder()) for block in find_blocks(stack)]
