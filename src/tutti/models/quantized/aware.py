"""Training that knows of the rounding to come: layers compute with their weights as they will be written.

Gradients pass through the rounding as if it were not there (Bengio et al. 2013, arXiv 1308.3432). Layers keep their
names and their weights in full, so layouts and checkpoints know nothing of it. What is handed on are ordinary layers
with those weights (`without_rounding`); `compress` rounds them on the same grid.
"""

from __future__ import annotations

import copy

import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from tutti.models.blocks import find_blocks
from tutti.models.quantized.choose import layers_of, tables_of
from tutti.models.quantized.codes import Bits, round_to_nearest

#: Columns that share a scale, of 4 bits.
GROUP = 32


def train_quantized(model: nn.Module, bits: Bits) -> int:
    """Let the layers of `model` that `compress` would write in `bits` compute so, in place; returns how many."""
    layers = [layer for group in layers_of(model) for layer in group]
    turned = [part for block in find_blocks(model) for part in block.modules() if isinstance(part, Conv1D)]
    tables = list(tables_of(model).values())
    for layer in layers:
        layer.__class__ = _Eight if bits == 8 else _Four
    for one in turned:
        one.__class__ = _TurnedEight if bits == 8 else _TurnedFour
    for table in tables:
        table.__class__ = _TableEight if bits == 8 else _TableFour
    return len(layers) + len(turned) + len(tables)


def without_rounding(model: nn.Module) -> nn.Module:
    """`model` with ordinary layers that hold the same weights; the same object where it has no others."""
    if not any(type(module) in _ORDINARY for module in model.modules()):
        return model
    plain = copy.deepcopy(model)
    for module in plain.modules():
        module.__class__ = _ORDINARY.get(type(module), type(module))
    return plain


def rounded(weight: Tensor, bits: Bits) -> Tensor:
    """`weight` [rows, columns] as it will be read again, with the gradient of `weight`."""
    fits = bits == 8 or weight.shape[1] % GROUP == 0
    codes = round_to_nearest(weight, bits, GROUP) if bits == 4 and fits else round_to_nearest(weight, 8)
    return weight + (codes.weight().to(weight.dtype) - weight).detach()


def _inputs(x: Tensor) -> Tensor:
    """`x` in 256 steps over its range, zero among them, as layers in 8 bits take it."""
    low, high = x.detach().amin().clamp_max(0), x.detach().amax().clamp_min(0)
    scale = ((high - low) / 255).clamp_min(1e-12)
    zero = (-low / scale).round()
    steps = (x.detach() / scale + zero).round().clamp(0, 255)
    return x + ((steps - zero) * scale - x).detach()


class _Eight(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(_inputs(x), rounded(self.weight, 8), self.bias)


class _Four(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(_inputs(x), rounded(self.weight, 4), self.bias)


class _TurnedEight(Conv1D):
    """GPT-2's, whose matrix is the wrong way round; it is written as it is here."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(_inputs(x), rounded(self.weight.t(), 8), self.bias)


class _TurnedFour(Conv1D):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(_inputs(x), rounded(self.weight.t(), 4), self.bias)


class _TableEight(nn.Embedding):
    def forward(self, ids: Tensor) -> Tensor:
        found = super().forward(ids)
        return rounded(found.flatten(0, -2), 8).view_as(found)


class _TableFour(nn.Embedding):
    def forward(self, ids: Tensor) -> Tensor:
        found = super().forward(ids)
        return rounded(found.flatten(0, -2), 4).view_as(found)


_ORDINARY: dict[type[nn.Module], type[nn.Module]] = {
    **dict.fromkeys((_Eight, _Four), nn.Linear),
    **dict.fromkeys((_TurnedEight, _TurnedFour), Conv1D),
    **dict.fromkeys((_TableEight, _TableFour), nn.Embedding),
}
