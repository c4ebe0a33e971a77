"""Single weights set to zero, the same share of every row of every linear layer in the blocks.

magnitude   those with the smallest |w|
Wanda       those with the smallest |w| · ‖x‖, x what goes into the layer there (Sun et al. 2023, arXiv 2306.11695)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal

import torch
from torch import nn

from tutti.compress.quantize.inputs import observe_inputs
from tutti.core import ModelError
from tutti.models import all_blocks

Criterion = Literal["magnitude", "wanda"]


def layers_in_blocks(model: nn.Module, criterion: Criterion) -> list[list[nn.Linear]]:
    """The linear layers of each block of `model`, of which `criterion` takes weights.

    Raises:
        ModelError: there are none.
    """
    blocks = [[m for m in block.modules() if isinstance(m, nn.Linear)] for block in all_blocks(model)]
    if not any(blocks):
        raise ModelError(
            f"a {type(model).__name__} has no linear layers in blocks", f"leave {criterion} out of the recipe"
        )
    return blocks


@torch.no_grad()
def zero_smallest(
    model: nn.Module, share: float, criterion: Criterion, run: Callable[[], Iterable[object]]
) -> None:
    """Set `share` of the weights to zero, in place, block after block. `run`: has the model compute, batch by batch.

    Raises:
        ModelError: it has no linear layers in blocks.
    """
    for layers in layers_in_blocks(model, criterion):
        inputs = observe_inputs(layers, run) if criterion == "wanda" else {}
        for layer in layers:
            size = layer.weight.abs()
            if criterion == "wanda":
                size = size * inputs[id(layer)].norm
            gone = size.argsort(dim=1)[:, : round(share * size.shape[1])]
            layer.weight.scatter_(1, gone, 0.0)
