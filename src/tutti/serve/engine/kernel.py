"""Attention of one token each on a CPU, in a loop that numba compiles.

It is bound by memory, so it fetches every key and value once, and of each text only as much as there is, where torch
would fetch as much as the longest text has, and makes products of one row by a matrix, of which it is no friend. Numba
needs no compiler on the machine, and keeps what it has compiled.

Shapes as in `attention`.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir
from torch import Tensor

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
    # Of this thread alone: the engine's is not the one that began.
    numba.set_num_threads(min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS))
    some = [_array(part) for part in (key.to(keys.dtype), value.to(values.dtype), keys, values)]
    _loop(_array(query), *some, _array(slots), _array(places), np.float32(scale), out.numpy())
    return out


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


#: Sums in any order, which is what makes them fast; but what is no number stays none.
_FAST = {"reassoc", "contract", "arcp", "nsz", "afn"}


@numba.njit(fastmath=_FAST, parallel=True, cache=True)  # type: ignore[untyped-decorator]
def _loop(
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
                scores[g, t] = math.exp(scores[g, t] - most)
                total += scores[g, t]
            for t in range(L):
                scores[g, t] /= total
        for t in range(L):
            for g in range(G):
                share = scores[g, t]
                for d in range(out.shape[2]):
                    out[i, h * G + g, d] += share * _widen(slot_values[t, d])
