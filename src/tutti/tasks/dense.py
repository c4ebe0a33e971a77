"""Encoders that compute no padding: from the first block to the last, the tokens of all rows stand behind each other.

Short texts of unlike length are mostly padding (four fifths of a batch of 32 bank customers' questions). Everything in
a block but attention looks at one token at a time, so it is given [1, T, D] instead of [B, S, D]; attention (`packing`)
gets its rows back for a moment, with the mask that the architecture made, and on a CPU few of like length at a time:
what it costs goes with the square of the longest. Nothing else changes, so neither do the numbers, beyond rounding; and
what an architecture does not allow is found out by trying (`install`).

Shapes: B rows, S tokens of the longest, T tokens that are none of padding, H heads, D width.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

#: Rows that a CPU attends to at once.
_ROWS_AT_ONCE = 4


@dataclass(frozen=True)
class Band:
    """Some rows of like length: b of B rows, s tokens of the longest. `rows` [b]; its T_b tokens are those from `start`
    to `stop` of the packed ones, each at its place [T_b] among b·s."""

    rows: Tensor
    length: int
    start: int
    stop: int
    places: Tensor

    def unpack_heads(self, packed: Tensor) -> Tensor:
        """[1, H, T, D] → [b, H, s, D], zero where there is no token."""
        own = packed[0, :, self.start : self.stop].transpose(0, 1)
        whole = own.new_zeros(len(self.rows) * self.length, *own.shape[1:]).index_copy(0, self.places, own)
        return whole.view(len(self.rows), self.length, *own.shape[1:]).transpose(1, 2)

    def pack(self, padded: Tensor) -> Tensor:
        """[b, s, …] → [T_b, …]."""
        return padded.flatten(0, 1).index_select(0, self.places)

    def cut_mask(self, mask: Tensor) -> Tensor:
        """[B or 1, …, S or 1, S] → [b or 1, …, s or 1, s]."""
        own = mask if mask.shape[0] == 1 else mask.index_select(0, self.rows)
        return own[..., : self.length, : self.length]


@dataclass(frozen=True)
class Places:
    """Which of B·S places hold a token: `index` [T], in the order in which they are packed. Active while the blocks
    run. bands: their rows in groups, longest first."""

    rows: int
    length: int
    index: Tensor
    bands: tuple[Band, ...]
    _masks: dict[int, tuple[Tensor, list[Tensor]]] = field(default_factory=dict)

    def masks(self, mask: Tensor | None) -> Sequence[Tensor | None]:
        """Of each band what is added to its scores; blocks that are given the same `mask` get the same ones."""
        if mask is None:
            return [None] * len(self.bands)
        if id(mask) not in self._masks:
            cut = [band.cut_mask(mask) for band in self.bands]
            if mask.dtype == torch.bool:
                least = torch.finfo(torch.float32).min
                cut = [torch.zeros(own.shape).masked_fill(~own, least) for own in cut]
            self._masks[id(mask)] = mask, cut
        return self._masks[id(mask)][1]

    @classmethod
    def of(cls, mask: Tensor) -> Places:
        """Of an attention mask [B, S] of ones and zeros."""
        rows, length = mask.shape
        if mask.device.type != "cpu":  # one call is the fastest there
            index = mask.flatten().nonzero().squeeze(1)
            whole = Band(torch.arange(rows, device=mask.device), length, 0, len(index), index)
            return cls(rows, length, index, (whole,))
        here = mask.bool()
        ends = length - here.flip(1).to(torch.uint8).argmax(1)  # also where rows do not begin at 0
        order = ends.argsort(descending=True, stable=True)
        row, column = here[order].nonzero().unbind(1)
        counts = here.sum(1)[order].tolist()
        bands, start = [], 0
        for first in range(0, rows, _ROWS_AT_ONCE):
            some = order[first : first + _ROWS_AT_ONCE]
            stop, longest = start + sum(counts[first : first + _ROWS_AT_ONCE]), int(ends[some[0]])
            own = slice(start, stop)
            bands.append(Band(some, longest, start, stop, (row[own] - first) * longest + column[own]))
            start = stop
        return cls(rows, length, order[row] * length + column, tuple(bands))

    def pack(self, padded: Tensor) -> Tensor:
        """[B or 1, S, …] → [1, T, …]."""
        if padded.shape[0] == 1 != self.rows:
            padded = padded.expand(self.rows, *padded.shape[1:])
        return padded.flatten(0, 1).index_select(0, self.index)[None]

    def unpack(self, packed: Tensor) -> Tensor:
        """[1, T, …] → [B, S, …], zero where there is no token."""
        whole = packed.new_zeros(self.rows * self.length, *packed.shape[2:])
        return whole.index_copy(0, self.index, packed[0]).view(self.rows, self.length, *packed.shape[2:])


class _Here(threading.local):
    """Of each thread, for several may have models at work: the mask [B, S] of the tokens that its blocks shall
    compute."""

    mask: Tensor | None = None


_here = _Here()


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _wanted() -> Places | None:
    mask = _here.mask
    return None if mask is None or bool(mask.all()) else Places.of(mask)


def active(module: nn.Module) -> Places | None:
    """The places of the tokens that `module`, a block or its attention, is computing, if they are packed."""
    dense: Dense | None = getattr(module, "packed_by", None)
    return None if dense is None else dense.active


@contextmanager
def packed(mask: Tensor | None) -> Iterator[None]:
    """While this is open, blocks that `Dense` has taken charge of compute the tokens of `mask` [B, S] alone, in this
    thread."""
    before, _here.mask = _here.mask, mask
    try:
        yield
    finally:
        _here.mask = before


class Dense:
    """Takes charge of the `blocks` of an encoder, in the order in which they run; in one thread at a time. `active`: of
    the rows that they compute now (None: rows are as they always are)."""

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        self.active: Places | None = None
        self._first, self._last = blocks[0], blocks[-1]
        # Of those that hold others, as attention does: whoever copies a single layer shall not copy them all.
        self._parts: list[Any] = [
            part for block in blocks for part in block.modules() if any(part.children())
        ]
        for module in self._parts:
            module.packed_by = self
        self._hooks = [block.register_forward_pre_hook(self._enter, with_kwargs=True) for block in blocks]
        self._hooks.append(self._last.register_forward_hook(self._leave, always_call=True))

    def remove(self) -> None:
        """Leave the blocks as they were."""
        for hook in self._hooks:
            hook.remove()
        for module in self._parts:
            del module.packed_by

    def _enter(
        self, block: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if block is self._first:
            self.active = _wanted()
        places = self.active
        if places is None:
            return None

        def packed_once(value: Any) -> Any:
            if isinstance(value, tuple):
                return tuple(packed_once(one) for one in value)
            # Of each token, and not yet packed: hidden states, and positions in whatever form.
            of_tokens = isinstance(value, Tensor) and value.ndim == 3 and value.shape[1] == places.length
            return places.pack(value) if of_tokens and value.shape[0] in (1, places.rows) else value

        return tuple(map(packed_once, inputs)), {
            name: value if name == "attention_mask" else packed_once(value) for name, value in named.items()
        }

    def _leave(self, block: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        places, self.active = self.active, None
        if places is None or output is None:
            return output
        if isinstance(output, tuple):
            return (places.unpack(output[0]), *output[1:])
        return places.unpack(output)


@torch.no_grad()
def install(model: nn.Module, blocks: Sequence[nn.Module], attention: str) -> bool:
    """Let `model`, whose `blocks` run in this order, compute no padding; False: it cannot, and is as it was."""
    whole: Any = model
    before, training = whole.config._attn_implementation, model.training
    vocabulary = whole.get_input_embeddings().weight.shape[0]
    ids = (torch.arange(14) * 7919 + 11).remainder(vocabulary).view(2, 7)
    mask = torch.ones_like(ids)
    mask[0, 3:] = 0
    model.eval()
    dense = None
    try:
        expected = whole(input_ids=ids, attention_mask=mask)[0]
        whole.set_attn_implementation(attention)
        dense = Dense(blocks)
        with packed(mask):
            found = whole(input_ids=ids, attention_mask=mask)[0]
        # Where there is padding anything may stand.
        keep = mask.bool() if found.shape[:2] == mask.shape else slice(None)
        if (found[keep] - expected[keep]).abs().max() <= 1e-4 * expected[keep].abs().max().clamp_min(1.0):
            return True
    except Exception:  # not every architecture takes every attention, or hands its blocks what others do
        pass
    finally:
        model.train(training)
    if dense is not None:
        dense.remove()
    whole.set_attn_implementation(before)
    return False
