"""Codecs `int8` and `int4`: whole numbers with one scale for every block of them.

    scale = max |x| ÷ M, rounded up to bf16;  q = round(x ÷ scale) ∈ [−M, M];  x ≈ q · scale

with M = 127 or 7. Rounding the scale up keeps the largest number of a block within range, so no number is off by more
than half a scale. (Block-wise quantization: Dettmers et al., arXiv 2110.02861; 4 bits between replicas: Streaming
DiLoCo, arXiv 2501.18512.)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tutti.sync.codecs.codec import Codec, as_bytes, from_bytes, require_finite

#: Numbers that share a scale: of two bytes, an overhead of 1/128 byte a number (int8) and 1/32 (int4).
_BLOCK = {8: 256, 4: 64}


class Blocks(Codec):
    """`bits`: 8 or 4."""

    def __init__(self, bits: int) -> None:
        self.name = f"int{bits}"
        self.bits = bits
        self.block = _BLOCK[bits]
        self._most = 2 ** (bits - 1) - 1

    def payload_bytes(self, count: int) -> int:
        blocks = -(-count // self.block)
        return blocks * (2 + self.block * self.bits // 8)

    def encode(self, values: Tensor) -> Tensor:
        require_finite(values)
        rows = F.pad(values, (0, -len(values) % self.block)).view(-(-len(values) // self.block), self.block)
        scales = _up_to_bf16(rows.abs().amax(1) / self._most)
        divisors = scales.float()
        divisors = torch.where(divisors == 0, torch.ones_like(divisors), divisors)
        numbers = (rows / divisors[:, None]).round_().clamp_(-self._most, self._most).to(torch.int8)
        if self.bits == 4:
            numbers = pack_nibbles(numbers)
        return torch.cat([as_bytes(scales), as_bytes(numbers)])

    def decode(self, payload: Tensor, count: int) -> Tensor:
        blocks = -(-count // self.block)
        scales = from_bytes(payload[: 2 * blocks], torch.bfloat16).float()
        rest = payload[2 * blocks :]
        numbers = unpack_nibbles(rest) if self.bits == 4 else rest.view(torch.int8)
        return (numbers.view(blocks, self.block).float() * scales[:, None]).view(-1)[:count]


def pack_nibbles(numbers: Tensor) -> Tensor:
    """int8 in [−8, 7], an even number of them, two in a byte: uint8 [half as many]."""
    halves = (numbers.reshape(-1) + 8).to(torch.uint8)
    return halves[0::2] | (halves[1::2] << 4)


def unpack_nibbles(packed: Tensor) -> Tensor:
    """int8 [twice as many]."""
    return torch.stack([packed & 15, packed >> 4], dim=1).view(-1).to(torch.int8) - 8


def _up_to_bf16(scales: Tensor) -> Tensor:
    """The smallest bf16 that is not less than each of `scales`, which are positive or zero fp32."""
    bits = scales.contiguous().view(torch.int32)
    return ((bits + 0xFFFF) >> 16).to(torch.int16).view(torch.bfloat16)
