"""What a turn of a few tokens computes beside its products, on a CPU, in loops that numba compiles.

**Attention** of one token each is bound by memory, so the loop fetches every key and value once, and of each text only
as much as there is, where torch would fetch as much as the longest text has, and makes products of one row by a matrix,
of which it is no friend. **Norms and turned positions** of few tokens are next to nothing, which torch does in six
operations each, and every one of them takes longer to be called than to be computed.

Numba needs no compiler on the machine, and keeps what it has compiled. With one thread it is given loops without
threads: those that it would start wait for work so busily that they take a core from others.

Shapes as in `attention`; T tokens of a turn, M width of the model.
"""

from __future__ import annotations

import math
from types import FunctionType
from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir
from torch import Tensor

#: Rows of keys that are on their way before they are wanted: of 4 to 64, 24 was the quickest.
_AHEAD = 24
#: Bytes that a processor fetches at once.
_LINE = 64
#: How keys and values may be stored.
STORED = (torch.float32, torch.bfloat16)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    keys: Tensor,
    values: Tensor,
    slots: Tensor,
    places: Tensor,
    scale: float,
) -> Tensor:
    """As `attention.write`, for a query of fp32 and keys and values as `STORED`."""
    out = torch.zeros(*query.shape[:2], values.shape[-1])
    some = [_array(part) for part in (key.to(keys.dtype), value.to(values.dtype), keys, values)]
    loop = _attend_alone
    if (threads := min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)) > 1:
        numba.set_num_threads(threads)  # of this thread alone: the engine's is not the one that began
        loop = _attend_together
    loop(_array(query), *some, _array(slots), _array(places), np.float32(scale), out.numpy())
    return out


def normalize(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """x [T, M] ÷ its root mean square, times `weight` [M]; all fp32."""
    out = torch.empty_like(x)
    _normalize(_array(x), _array(weight), np.float32(epsilon), out.numpy())
    return out


def turn_positions(heads: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Turn `heads` [T, any, D] by their places, in place, as Llama does; cos, sin [T, D]; all fp32."""
    _turn(heads.numpy(), _array(cos), _array(sin))


def _array(tensor: Tensor) -> Any:
    """Its memory, in one piece; of bf16, which NumPy does not have, the bits."""
    tensor = tensor.contiguous()
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


@numba.extending.intrinsic  # type: ignore[untyped-decorator]
def _widen(context: Any, stored: Any) -> Any:
    """A number as it is stored → fp32; bf16 is the upper half of an fp32."""

    def generate(_: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if signature.args[0] == numba.types.float32:
            return arguments[0]
        wide = builder.shl(builder.zext(arguments[0], ir.IntType(32)), ir.Constant(ir.IntType(32), 16))
        return builder.bitcast(wide, ir.FloatType())

    return numba.types.float32(stored), generate


@numba.extending.intrinsic  # type: ignore[untyped-decorator]
def _two_to(context: Any, power: Any) -> Any:
    """2 to the power of an int32 from −126 to 127, as fp32: a number's exponent is written down as it is."""

    def generate(_: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        exponent = builder.add(arguments[0], ir.Constant(ir.IntType(32), 127))
        return builder.bitcast(builder.shl(exponent, ir.Constant(ir.IntType(32), 23)), ir.FloatType())

    return numba.types.float32(numba.types.int32), generate


@numba.extending.intrinsic  # type: ignore[untyped-decorator]
def _fetch(context: Any, array: Any, row: Any, at: Any) -> Any:
    """Have what stands `at` bytes behind the beginning of row `row` of `array` [L, D] brought near while something else
    is computed (no matter whether there is such a row). A slot's keys are too few for the processor to guess which
    comes next, and waiting for them took longer than all else here."""

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = signature.args[0]
        made = target.make_array(kind)(target, builder, arguments[0])
        stride = builder.extract_value(made.strides, 0)
        bytes_ = builder.bitcast(made.data, ir.IntType(8).as_pointer())
        start = builder.gep(bytes_, [builder.add(builder.mul(stride, arguments[1]), arguments[2])])
        takes = ir.FunctionType(ir.VoidType(), [start.type, *[ir.IntType(32)] * 3])
        prefetch = builder.module.declare_intrinsic("llvm.prefetch.p0", (), takes)
        to_read, as_near_as_can_be, data = (ir.Constant(ir.IntType(32), value) for value in (0, 3, 1))
        builder.call(prefetch, [start, to_read, as_near_as_can_be, data])
        return target.get_dummy_value()

    return numba.types.void(array, numba.types.intp, numba.types.intp), generate


#: Sums in any order, which is what makes them fast; but what is no number stays none.
_FAST = {"reassoc", "contract", "arcp", "nsz", "afn"}


@numba.njit(fastmath=_FAST, inline="always")  # type: ignore[untyped-decorator]
def _exp(x: Any) -> Any:
    """e to the power of x ≤ 0, fp32, to 3 · 10⁻⁷ of it; unlike the library's it is computed for many at once.

    x = k ln 2 + r with |r| ≤ ½ ln 2; of e to the power of r as many terms of Taylor's series as fp32 can tell apart.
    """
    x = max(x, np.float32(-87))
    k = np.floor(x * np.float32(1.44269504) + np.float32(0.5))
    r = (
        x - k * np.float32(0.693359375) + k * np.float32(2.12194440e-4)
    )  # ln 2 in two parts: k times the first is exact
    series = np.float32(1 / 720)
    series = series * r + np.float32(1 / 120)
    series = series * r + np.float32(1 / 24)
    series = series * r + np.float32(1 / 6)
    series = series * r + np.float32(0.5)
    series = series * r + np.float32(1)
    series = series * r + np.float32(1)
    return series * _two_to(np.int32(k))


@numba.njit(fastmath=_FAST, cache=True)  # type: ignore[untyped-decorator]
def _normalize(x: Any, weight: Any, epsilon: Any, out: Any) -> None:
    for row in range(x.shape[0]):
        total = np.float32(0)
        for at in range(x.shape[1]):
            total += x[row, at] * x[row, at]
        by = np.float32(1) / math.sqrt(total / np.float32(x.shape[1]) + epsilon)
        for at in range(x.shape[1]):
            out[row, at] = x[row, at] * by * weight[at]


@numba.njit(fastmath=_FAST, cache=True)  # type: ignore[untyped-decorator]
def _turn(heads: Any, cos: Any, sin: Any) -> None:
    half = heads.shape[2] // 2
    for row in range(heads.shape[0]):
        for head in range(heads.shape[1]):
            for at in range(half):
                one, other = heads[row, head, at], heads[row, head, half + at]
                heads[row, head, at] = one * cos[row, at] - other * sin[row, at]
                heads[row, head, half + at] = other * cos[row, half + at] + one * sin[row, half + at]


def _attend(
    query: Any, key: Any, value: Any, keys: Any, values: Any, slots: Any, places: Any, scale: Any, out: Any
) -> None:
    n, H, D = query.shape
    K = keys.shape[1]
    G = H // K
    for item in numba.prange(n * K):
        i, h = item // K, item % K
        slot_keys, slot_values = keys[slots[i], h], values[slots[i], h]
        L = places[i] + 1
        slot_keys[L - 1] = key[i, h]
        slot_values[L - 1] = value[i, h]
        scores = np.empty((G, L), np.float32)
        for t in range(L):  # a key is fetched once for all queries that share it
            for at in range(0, D * keys.itemsize, _LINE):
                _fetch(slot_keys, t + _AHEAD, at)
            for at in range(0, out.shape[2] * values.itemsize, _LINE):
                _fetch(slot_values, t, at)
            for g in range(G):
                score = np.float32(0)
                for d in range(D):
                    score += query[i, h * G + g, d] * _widen(slot_keys[t, d])
                scores[g, t] = score * scale
        for g in range(G):
            most = scores[g, 0]
            for t in range(L):
                most = max(most, scores[g, t])
            total = np.float32(0)
            for t in range(L):
                scores[g, t] = _exp(scores[g, t] - most)
                total += scores[g, t]
            for t in range(L):
                scores[g, t] /= total
        for t in range(L):
            for g in range(G):
                share = scores[g, t]
                for d in range(out.shape[2]):
                    out[i, h * G + g, d] += share * _widen(slot_values[t, d])


def _under(name: str, function: Any) -> Any:
    """`function` again: what numba keeps goes by the name, not by how it was compiled."""
    again = FunctionType(function.__code__, function.__globals__, name)
    again.__qualname__ = name
    return again


_attend_alone = numba.njit(fastmath=_FAST, cache=True)(_attend)
_attend_together = numba.njit(fastmath=_FAST, parallel=True, cache=True)(_under("_attend_together", _attend))
