"""Which layers of a model are written in fewer bits."""

from __future__ import annotations

from torch import nn
from transformers.pytorch_utils import Conv1D

from tutti.models.blocks import find_blocks
from tutti.models.lookup import RowsEmbedding

#: Layers outside the blocks (heads, position tables) with fewer numbers stay as they are: nothing would be gained.
_LEAST = 100_000


def straighten(model: nn.Module) -> None:
    """Make GPT-2's layers, whose matrices are the wrong way round, ordinary ones, in place."""
    for name, module in list(model.named_modules()):
        if isinstance(module, Conv1D):
            columns, rows = module.weight.shape
            layer = nn.Linear(columns, rows, device="meta")
            layer.weight = nn.Parameter(module.weight.detach().t().contiguous())
            layer.bias = nn.Parameter(module.bias.detach())
            model.set_submodule(name, layer)


def tables_of(model: nn.Module) -> dict[str, nn.Embedding]:
    """Its large tables of vectors, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        # Others multiply what they look up, or count places from elsewhere: they stay as they are.
        if type(module) in (nn.Embedding, RowsEmbedding) and module.weight.numel() >= _LEAST
    }


def layers_of(model: nn.Module) -> list[list[nn.Linear]]:
    """Its linear layers, block after block; at last those outside, if they are large and their weight is no table's."""
    inside = [[m for m in block.modules() if isinstance(m, nn.Linear)] for block in find_blocks(model)]
    known = {id(module) for group in inside for module in group}
    tables = {id(table.weight) for table in tables_of(model).values()}
    outside = [
        module
        for module in model.modules()
        if isinstance(module, nn.Linear)
        and id(module) not in known
        and module.weight.numel() >= _LEAST
        and id(module.weight) not in tables
    ]
    return [group for group in (*inside, outside) if group]
