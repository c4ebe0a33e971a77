"""Dropout whose dice are cast four at a time.

torch casts one of 64 bits for every number on a CPU, which costs as much as a tenth of a small encoder's step. Here 16
bits are enough: what is dropped is p rounded to 1/65536, and what is kept is scaled by exactly that. The dice are those
of torch, so that a step's seed decides them, as ever.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_SIDES = 1 << 16


def drop(values: Tensor, p: float) -> Tensor:
    """`values` with a share of `p` set to zero and the rest scaled up by as much."""
    return values * factors_like(values, p)


def factors_like(values: Tensor, p: float) -> Tensor:
    """What `values` are multiplied with: zero, or what makes up for it."""
    dropped = round(p * _SIDES)
    if dropped >= _SIDES:
        return torch.zeros_like(values)
    count = values.numel()
    words = torch.empty(-(-count // 4), dtype=torch.int64, device=values.device).random_(-(2**63), None)
    factors = torch.empty_like(values, memory_format=torch.contiguous_format, requires_grad=False)
    torch.ge(words.view(torch.int16)[:count].view(values.shape), dropped - _SIDES // 2, out=factors)
    return factors.mul_(_SIDES / (_SIDES - dropped))


class QuickDropout(nn.Dropout):
    """`nn.Dropout` that casts its dice like this on a CPU (the compiler has a way of its own)."""

    def forward(self, input: Tensor) -> Tensor:
        """As `nn.Dropout`."""
        plain = self.inplace or input.device.type != "cpu" or torch.compiler.is_compiling()
        if not self.training or self.p == 0 or plain:
            return super().forward(input)
        return drop(input, self.p)


def quicken_dropout(model: nn.Module) -> None:
    """Let every `nn.Dropout` of `model` be quick."""
    for module in model.modules():
        if type(module) is nn.Dropout:
            module.__class__ = QuickDropout
