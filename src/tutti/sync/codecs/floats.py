"""Codecs `fp32`, `fp16` and `bf16`: shorter floating-point numbers, which add up as they are."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from tutti.sync.codecs.codec import Codec, NotFinite, as_bytes, from_bytes

_TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class Floats(Codec):
    """One number, one number. Rounding is to the nearest, so what is lost has no direction and needs no feedback."""

    needs_feedback: ClassVar[bool] = False

    def __init__(self, name: str) -> None:
        self.name = name
        self.dtype = _TYPES[name]

    def payload_bytes(self, count: int) -> int:
        return count * self.dtype.itemsize

    def cast(self, values: Tensor) -> Tensor:
        """`values` as they are sent. Raises NotFinite where they are, or become, infinite or NaN."""
        if self.dtype == torch.float32:
            return values
        low = values.to(self.dtype)
        finite = low.isfinite()
        if not bool(finite.all()):
            index = int((~finite).nonzero()[0])
            value = float(values[index])
            raise NotFinite(index, f"{value:g}" + (" is too large for fp16" if abs(value) < 1e38 else ""))
        return low

    def encode(self, values: Tensor) -> Tensor:
        return as_bytes(self.cast(values))

    def decode(self, payload: Tensor, count: int) -> Tensor:
        return from_bytes(payload, self.dtype)[:count].float()
