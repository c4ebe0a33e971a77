"""Attention with dropout of packed rows on a CPU, a band of like length at a time, with a backward pass of its own.

With short rows the arithmetic is little and what is around it much: this way the rows of queries, keys and values are
laid out together, and autograd sees one function a layer. With P the softmax of the scaled and masked scores Q Kᵀ, N
the factors of dropout and O the output,

    O = (P ∘ N) V          dV = (P ∘ N)ᵀ dO          dP = dO Vᵀ ∘ N          dS = P ∘ (dP − Σ dP ∘ P)
    dQ = s dS K            dK = s dSᵀ Q              s the scale of the scores, sums over keys

Shapes: T tokens, H heads, D width of a head; b rows of s tokens in a band.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tutti.tasks.dense import Band, Places
from tutti.tasks.dropout import factors_like


class BandedAttention(torch.autograd.Function):
    """query, key, value [1, H, T, D], mask as the architecture made it for the padded rows → [1, T, H, D]."""

    @staticmethod
    def forward(
        context: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        places: Places,
        dropout: float,
        scale: float,
    ) -> Tensor:
        packed = torch.stack([part[0].transpose(0, 1) for part in (query, key, value)]).float()
        output = torch.empty_like(packed[0])
        kept: list[Tensor] = []
        for band, band_mask in zip(places.bands, places.masks(mask), strict=True):
            of_rows = _lay_out(packed, band)
            scores = (of_rows[0] * scale) @ of_rows[1].mT
            if band_mask is not None:
                scores += band_mask
            chances = scores.softmax(-1)
            factors = factors_like(chances, dropout)
            attended = (chances * factors) @ of_rows[2]
            output[band.start : band.stop] = _take_up(attended[None], band)[0]
            kept += [of_rows, chances, factors]
        context.save_for_backward(*kept)
        context.places, context.scale, context.dtype = places, scale, query.dtype
        return output[None].to(value.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context: Any, gradient: Tensor) -> Any:
        kept, gradient = context.saved_tensors, gradient.float()
        found = gradient.new_empty(3, *gradient.shape[1:])
        for number, band in enumerate(context.places.bands):
            (query, key, value), chances, factors = kept[3 * number : 3 * number + 3]
            of_output = _lay_out(gradient, band)[0]
            of_value = (chances * factors).mT @ of_output
            of_chances = (of_output @ value.mT).mul_(factors)
            of_scores = torch._softmax_backward_data(of_chances, chances, -1, torch.float32)
            of_scores *= context.scale
            each = torch.stack([of_scores @ key, of_scores.mT @ query, of_value])
            found[:, band.start : band.stop] = _take_up(each, band)
        found = found.to(context.dtype)
        return *(part.transpose(0, 1)[None] for part in found), None, None, None, None


def _lay_out(packed: Tensor, band: Band) -> Tensor:
    """[any, T, H, D] → [any, b, H, s, D], zero where there is no token."""
    own = packed[:, band.start : band.stop]
    shape = len(own), len(band.rows), band.length, *own.shape[2:]
    whole = own.new_zeros(shape)
    whole.view(len(own), -1, *own.shape[2:]).index_copy_(1, band.places, own)
    return whole.transpose(2, 3).contiguous()


def _take_up(padded: Tensor, band: Band) -> Tensor:
    """[any, b, H, s, D] → [any, T_b, H, D]."""
    return padded.transpose(2, 3).flatten(1, 2).index_select(1, band.places)
