"""A matrix in whole numbers: what every way of quantizing gives, and every quantized module takes.

    W[r, c] ≈ scale[r, g] · (code[r, c] − zero[r, g])        g = c // group

8 bits: codes −127…127, no zero, one group a row. 4 bits: codes 0…15 with a zero, in groups; two of them share a byte
in a file. Scales of 4 bits are rounded to fp16, which is what a file has, so a model that was saved is the same again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Bits = Literal[8, 4]


@dataclass(frozen=True)
class Codes:
    """`code`: [rows, columns], int8 or (4 bits) uint8; `scale`: fp32 [rows, groups]; `zero`: uint8 [rows, groups]."""

    code: Tensor
    scale: Tensor
    zero: Tensor | None = None

    @property
    def bits(self) -> Bits:
        """Of a code."""
        return 8 if self.zero is None else 4

    @property
    def group(self) -> int:
        """Columns that share a scale."""
        return self.code.shape[1] // self.scale.shape[1]

    def weight(self) -> Tensor:
        """The matrix again, fp32 [rows, columns]."""
        rows, columns = self.code.shape
        grouped = self.code.view(rows, -1, self.group).float()
        if self.zero is not None:
            grouped = grouped - self.zero[:, :, None].float()
        return (grouped * self.scale[:, :, None]).view(rows, columns)

    def stored(self) -> dict[str, Tensor]:
        """As a file has it."""
        if self.zero is None:
            return {"code": self.code, "scale": self.scale}
        return {"code": pack_halves(self.code), "scale": self.scale.half(), "zero": self.zero}

    @classmethod
    def restored(cls, stored: dict[str, Tensor]) -> Codes:
        """From what `stored` gave."""
        if "zero" not in stored:
            return cls(stored["code"], stored["scale"])
        return cls(unpack_halves(stored["code"]), stored["scale"].float(), stored["zero"])


def pack_halves(code: Tensor) -> Tensor:
    """[rows, columns] of 0…15 → [rows, columns / 2] uint8, the earlier of two in the lower half."""
    return code[:, 0::2] | code[:, 1::2] << 4


def unpack_halves(packed: Tensor) -> Tensor:
    """What `pack_halves` was given."""
    return torch.stack([packed & 15, packed >> 4], dim=2).flatten(1)


def round_to_nearest(weight: Tensor, bits: Bits, group: int | None = None) -> Codes:
    """`weight` [rows, columns] as it is nearest, each row or `group` of columns for itself.

    Raises:
        ValueError: columns do not fall into groups.
    """
    rows, columns = weight.shape
    group = columns if group is None else group
    if columns % group or (bits == 4 and columns % 2):
        raise ValueError(f"{columns} columns do not fall into groups of {group}")
    grouped = weight.detach().float().view(rows, -1, group)
    scale, zero = grid(grouped, bits)
    return Codes(encode(grouped, scale, zero).view(rows, columns), scale, zero)


def grid(grouped: Tensor, bits: Bits) -> tuple[Tensor, Tensor | None]:
    """Scale and zero [rows, groups] that hold all of `grouped` [rows, groups, group]."""
    if bits == 8:
        return grouped.abs().amax(2).clamp_min(1e-12) / 127, None
    low, high = grouped.amin(2).clamp_max(0), grouped.amax(2).clamp_min(0)
    scale = ((high - low).clamp_min(1e-6) / 15).half().float()
    return scale, (-low / scale).round().clamp(0, 15).to(torch.uint8)


def encode(grouped: Tensor, scale: Tensor, zero: Tensor | None) -> Tensor:
    """Codes of `grouped` [rows, groups, group] on that grid."""
    places = (grouped / scale[:, :, None]).round()
    if zero is None:
        return places.clamp(-127, 127).to(torch.int8)
    return (places + zero[:, :, None]).clamp(0, 15).to(torch.uint8)
