"""Attention to keys and values that lie in slots: of texts that write, a token each, and of one that is read.

Shapes: n texts that write, c tokens that are read, R slots, H heads of queries, K of keys (G = H ÷ K share one), C
tokens of a slot, L tokens of a text so far, D width.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def write(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    keys: Tensor,
    values: Tensor,
    slots: Tensor,
    places: Tensor,
    scale: float,
) -> Tensor:
    """The newest token of n texts: query [n, H, D], key, value [n, K, D] → [n, H, D].

    `key` and `value` go to `places` [n] of their `slots` [n] (growing) in keys, values [R, K, C, D]; then each token
    looks at all that is in its slot.
    """
    plain = query.dtype == torch.float32 and query.device.type == "cpu"
    if plain and (kernel := compiled()) is not None and keys.dtype in kernel.STORED:
        attended: Tensor = kernel.attend(query, key, value, keys, values, slots, places, scale)
        return attended
    keys[slots, :, places] = key.to(keys.dtype)
    values[slots, :, places] = value.to(values.dtype)
    return _weigh_slots(query, keys, values, slots.tolist(), places, scale)


def read(query: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    """The last tokens of a text, [H, c, D], to all of it, keys, values [K, L, D]: [c, H, D]."""
    count, length = query.shape[1], keys.shape[1]
    mask = None
    if count < length:
        mask = torch.ones(count, length, dtype=torch.bool, device=query.device).tril(length - count)
    attended = F.scaled_dot_product_attention(
        query[None],
        keys[None].to(query.dtype),
        values[None].to(query.dtype),
        attn_mask=mask,
        is_causal=mask is None and count > 1,
        scale=scale,
        enable_gqa=query.shape[0] != keys.shape[0],
    )
    return attended[0].transpose(0, 1)


@functools.cache
def compiled() -> Any:
    """The module of the compiled loops, whose import takes a moment; None: without numba."""
    try:
        from tutti.serve.engine import kernel
    except ImportError:
        return None
    return kernel


def _weigh_slots(
    query: Tensor, keys: Tensor, values: Tensor, slots: list[int], places: Tensor, scale: float
) -> Tensor:
    """Neighbouring slots are computed together, as they lie: copying them side by side would cost more."""
    first, last = slots[0], slots[-1]
    if 2 * len(slots) < last - first + 1:  # far apart: one by one
        ends = (places + 1).tolist()
        return torch.cat(
            [
                _weigh(query[row : row + 1], keys[slot, None, :, :end], values[slot, None, :, :end], scale)
                for row, (slot, end) in enumerate(zip(slots, ends, strict=True))
            ]
        )
    longest = int(places.max()) + 1
    span, rows = slice(first, last + 1), torch.tensor(slots, device=query.device) - first
    spread = query.new_zeros(last - first + 1, *query.shape[1:])
    spread[rows] = query
    # Of who does not write now: anything, and it is not used.
    known = torch.ones(len(spread), dtype=torch.long, device=query.device)
    known[rows] = places + 1
    hidden = torch.arange(longest, device=query.device)[None, :] >= known[:, None]
    return _weigh(spread, keys[span, :, :longest], values[span, :, :longest], scale, hidden)[rows]


def _weigh(query: Tensor, keys: Tensor, values: Tensor, scale: float, hidden: Tensor | None = None) -> Tensor:
    """query [n, H, D], keys, values [n, K, L, D], `hidden` [n, L]: [n, H, D]."""
    count, heads, width = query.shape
    grouped = (query * scale).view(count, keys.shape[1], -1, width)
    scores = grouped @ keys.to(query.dtype).transpose(2, 3)
    if hidden is not None:
        scores.masked_fill_(hidden[:, None, None], float("-inf"))
    return (scores.softmax(-1) @ values.to(query.dtype)).view(count, heads, values.shape[-1])
