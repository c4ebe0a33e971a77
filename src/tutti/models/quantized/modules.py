"""Linear layers and tables of vectors whose weights are codes; and the arithmetic that this processor has for them.

`dynamic` computes in 8 bits, also what is stored in 4, for which processors have no instructions (torch's kernels for
weights of 4 and 8 bits beside inputs of more are slower than fp32 from a few tokens on). What torch's kernel gives is
compared with fp32 once, when the first layer computes: where it is missing or wrong (without VNNI, sums of products of
bytes may overflow), weights become fp32 again.

Shapes: […, in] → […, out].
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tutti.models.quantized.codes import Codes, round_to_nearest

#: `dynamic`: what goes in becomes whole numbers too, by its own range; `weights`: only weights are, and only on disk.
Arithmetic = Literal["dynamic", "weights"]
Product = Callable[[Tensor], Tensor]
#: More than rounding: the kernel is wrong.
_WRONG = 0.02


class QuantizedLinear(nn.Module):
    """x ↦ (x · before) Wᵀ + bias. `before`: [in], what AWQ took out of the weights; None: 1."""

    def __init__(
        self, codes: Codes, bias: Tensor | None, arithmetic: Arithmetic, before: Tensor | None = None
    ) -> None:
        super().__init__()
        self.codes: Codes = codes
        self.arithmetic: Arithmetic = arithmetic
        self.out_features, self.in_features = codes.code.shape
        self.register_buffer("bias", None if bias is None else bias.detach().float())
        self.register_buffer("before", before)
        self._product: Product | None = None

    @property
    def weight(self) -> Tensor:
        """Shape and type of what it stands for, without content: some architectures look at these."""
        return torch.empty(self.out_features, self.in_features, device="meta")

    def forward(self, x: Tensor) -> Tensor:
        """[…, in] → […, out], in the type of `x`."""
        if self._product is None:
            bias: Any = self.bias
            self._product = product_of(self.codes, bias, self.arithmetic)
        value = x.float()
        before: Any = self.before
        if before is not None:
            value = value * before
        return self._product(value).to(x.dtype)

    def rest(self) -> None:
        """Free what it computes with; when it is asked again, it is made again."""
        self._product = None

    def extra_repr(self) -> str:
        return (
            f"{self.in_features}, {self.out_features}, bits={self.codes.bits}, arithmetic={self.arithmetic}"
        )


class QuantizedEmbedding(nn.Module):
    """Numbers of tokens […] → their vectors […, width], fp32."""

    def __init__(self, codes: Codes) -> None:
        super().__init__()
        self.codes = codes
        self.num_embeddings, self.embedding_dim = codes.code.shape

    @property
    def weight(self) -> Tensor:
        """The whole table, fp32: some architectures look at it."""
        return self.codes.weight()

    def forward(self, ids: Tensor) -> Tensor:
        """[…] → […, width]."""
        codes, flat = self.codes, ids.flatten()
        some = Codes(codes.code[flat], codes.scale[flat], None if codes.zero is None else codes.zero[flat])
        return some.weight().view(*ids.shape, self.embedding_dim)


def product_of(codes: Codes, bias: Tensor | None, arithmetic: Arithmetic) -> Product:
    """The fastest that is right here of the ways to compute x Wᵀ + bias."""
    if arithmetic == "dynamic" and codes.code.device.type == "cpu" and (kernel := _kernel()) is not None:
        eight = codes if codes.bits == 8 else round_to_nearest(codes.weight(), 8)
        return kernel(eight, bias)
    return _plain(codes, bias)


def _plain(codes: Codes, bias: Tensor | None) -> Product:
    weight = codes.weight()
    return lambda x: F.linear(x, weight.to(x.device), bias)


def _eight_bits(codes: Codes, bias: Tensor | None, *, reduce_range: bool = False) -> Product:
    with warnings.catch_warnings():  # of an end that has been announced; the version is pinned
        warnings.simplefilter("ignore")
        scale = codes.scale[:, 0].double()
        weight = torch._make_per_channel_quantized_tensor(
            codes.code, scale, torch.zeros_like(scale).long(), 0
        )
    packed = torch.ops.quantized.linear_prepack(weight, bias)

    def product(x: Tensor) -> Tensor:
        result: Tensor = torch.ops.quantized.linear_dynamic(x.contiguous(), packed, reduce_range)
        return result

    return product


def _eight_bits_inputs_of_seven(codes: Codes, bias: Tensor | None) -> Product:
    return _eight_bits(codes, bias, reduce_range=True)


@functools.cache
def _kernel() -> Callable[[Codes, Tensor | None], Product] | None:
    """The first kernel that gives what fp32 does, also where sums are as large as they get; None: there is none."""
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    weight[:16] = 1.0
    x = torch.randn(4, 256, generator=torch.Generator().manual_seed(1))
    x[:2] = 1.0
    codes = round_to_nearest(weight, 8)
    expected = _plain(codes, None)(x)
    for kernel in (_eight_bits, _eight_bits_inputs_of_seven):
        try:
            found = kernel(codes, None)(x)
        except (RuntimeError, AttributeError, NotImplementedError):
            continue
        if (found - expected).abs().max() <= _WRONG * expected.abs().max():
            return kernel
    return None
