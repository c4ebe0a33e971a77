"""Codec `topk`: of every 4096 numbers the largest few, with their places.

A place in a chunk of 4096 takes 12 bits, so two take three bytes. Values are bf16, or two bits each: a sign and
whether it is one of the larger ones, with the mean of the larger and of the smaller ones once a chunk (SparseLoCo,
arXiv 2508.15706, sends 2-bit values; how it rounds them is not said there). Everything that is not sent has to come
back through error feedback.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from tutti.sync.codecs.codec import Codec, as_bytes, from_bytes, require_finite

CHUNK = 4096


class TopK(Codec):
    """`density`: the share that is sent, at least one number of a chunk; `bits`: of a value, 16 or 2."""

    sparse: ClassVar[bool] = True

    def __init__(self, density: float, bits: int = 16) -> None:
        self.name = "topk"
        self.density = density
        self.bits = bits
        self.kept = max(1, round(density * CHUNK))

    def payload_bytes(self, count: int) -> int:
        chunks = -(-count // CHUNK)
        sent = chunks * self.kept
        values = 2 * sent if self.bits == 16 else -(-sent // 4) + 4 * chunks
        return values + 3 * -(-sent // 2)

    def encode(self, values: Tensor) -> Tensor:
        require_finite(values)
        rows = F.pad(values, (0, -len(values) % CHUNK)).view(-(-len(values) // CHUNK), CHUNK)
        places = rows.abs().topk(self.kept, dim=1, sorted=False).indices.sort(dim=1).values
        found = rows.gather(1, places)
        written = as_bytes(found.to(torch.bfloat16)) if self.bits == 16 else _two_bits(found)
        return torch.cat([written, _pack_places(places.reshape(-1))])

    def decode(self, payload: Tensor, count: int) -> Tensor:
        total = torch.zeros(count, device=payload.device)
        self.add_to(total, payload)
        return total

    def add_to(self, total: Tensor, payload: Tensor, sign: int = 1) -> None:
        chunks = -(-len(total) // CHUNK)
        sent = chunks * self.kept
        end = len(payload) - 3 * -(-sent // 2)
        places = _unpack_places(payload[end:])[:sent].view(chunks, self.kept)
        if self.bits == 16:
            values = from_bytes(payload[:end], torch.bfloat16).float().view(chunks, self.kept)
        else:
            values = _from_two_bits(payload[:end], chunks, self.kept)
        places += CHUNK * torch.arange(chunks, device=places.device)[:, None]
        if chunks:  # the last chunk may be longer than what is left: zeros were sent for that
            inside = places[-1] < len(total)
            values[-1] *= inside
            places[-1] *= inside
        total.index_add_(0, places.view(-1), values.view(-1), alpha=sign)


def _two_bits(values: Tensor) -> Tensor:
    """[chunks, kept] as bytes: of each chunk the means of the smaller and the larger ones (bf16), then codes."""
    sizes = values.abs()
    large = sizes > sizes.mean(1, keepdim=True)
    count = large.sum(1)
    higher = (sizes * large).sum(1) / count.clamp_min(1)
    lower = (sizes * ~large).sum(1) / (values.shape[1] - count).clamp_min(1)
    codes = ((values < 0).to(torch.uint8) << 1) | large.to(torch.uint8)
    flat = F.pad(codes.view(-1), (0, -codes.numel() % 4)).view(-1, 4)
    packed = flat[:, 0] | (flat[:, 1] << 2) | (flat[:, 2] << 4) | (flat[:, 3] << 6)
    return torch.cat([as_bytes(torch.stack([lower, higher], dim=1).to(torch.bfloat16)), packed])


def _from_two_bits(payload: Tensor, chunks: int, kept: int) -> Tensor:
    means = from_bytes(payload[: 4 * chunks], torch.bfloat16).float().view(chunks, 2)
    packed = payload[4 * chunks :]
    codes = torch.stack([(packed >> shift) & 3 for shift in (0, 2, 4, 6)], dim=1).view(-1)[: chunks * kept]
    codes = codes.view(chunks, kept).long()
    return means.gather(1, codes & 1) * (1 - (codes & 2)).float()


def _pack_places(places: Tensor) -> Tensor:
    """Numbers below 4096 in three bytes for two."""
    pairs = F.pad(places.int(), (0, len(places) % 2)).view(-1, 2)
    first, second = pairs[:, 0], pairs[:, 1]
    packed = torch.stack([first & 255, (first >> 8) | ((second & 15) << 4), second >> 4], dim=1)
    return packed.to(torch.uint8).view(-1)


def _unpack_places(packed: Tensor) -> Tensor:
    low, middle, high = packed.view(-1, 3).long().unbind(1)
    return torch.stack([low | ((middle & 15) << 8), (middle >> 4) | (high << 4)], dim=1).view(-1)
