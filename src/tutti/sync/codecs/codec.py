"""The contract of a codec: what a vector of numbers looks like on the wire.

Numbers that are only shorter add up on the way (`Floats`); other payloads are gathered, decoded and added in fp32;
`powersgd` is no `Codec`, because it exchanges several times itself. Which exchange that makes: `summing`.

A codec has no state; what it loses is remembered by `feedback.ErrorFeedback`, one piece for all of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor


class NotFinite(ValueError):
    """Numbers that cannot be sent. `index`: of the first, in the vector."""

    def __init__(self, index: int, reason: str) -> None:
        super().__init__(reason)
        self.index = index


class Codec(ABC):
    """Writes fp32 vectors as bytes and reads them back."""

    name: str
    #: What it loses has to be sent later, or training drifts away.
    needs_feedback: ClassVar[bool] = True
    #: Of so few numbers that the sum of several vectors is hardly larger than one: encoding it again saves nothing.
    sparse: ClassVar[bool] = False

    @abstractmethod
    def payload_bytes(self, count: int) -> int:
        """Of `count` numbers."""

    @abstractmethod
    def encode(self, values: Tensor) -> Tensor:
        """uint8 [payload_bytes] of `values` fp32 [count]. Raises NotFinite."""

    @abstractmethod
    def decode(self, payload: Tensor, count: int) -> Tensor:
        """fp32 [count] of what `encode` gave."""

    def add_to(self, total: Tensor, payload: Tensor, sign: int = 1) -> None:
        """Add `sign` times what `decode` makes of `payload` to `total` fp32 [count]."""
        total.add_(self.decode(payload, len(total)), alpha=sign)


def require_finite(values: Tensor) -> None:
    """Raise NotFinite at the first of `values` that is not."""
    if not len(values):
        return
    # NaN comes through as well; one look at every number, where a mask of them all takes twenty times as long.
    if not torch.stack(torch.aminmax(values)).isfinite().all():
        index = int((~values.isfinite()).nonzero()[0])
        raise NotFinite(index, f"{float(values[index])}")


def as_bytes(tensor: Tensor) -> Tensor:
    """The memory of a contiguous `tensor`, as uint8 [bytes]."""
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def from_bytes(payload: Tensor, dtype: torch.dtype) -> Tensor:
    """What `as_bytes` made of a tensor of `dtype`, flat; copied where `payload` does not lie as `dtype` needs it."""
    payload = payload if payload.data_ptr() % dtype.itemsize == 0 else payload.clone()
    return payload.view(dtype)
