"""Samples of a language model: windows over the token stream of one part.

With T tokens t_0 … t_{T−1} in the stream (documents, each ended by the end token), sequence S and offset o_e,
sample i of epoch e has the inputs t_a … t_{a+S−1} and the targets t_{a+1} … t_{a+S}, a = o_e + i·S. An
epoch has ⌊(T − 1 − o_e) / S⌋ samples. Nothing is padded; fewer than 2·S tokens at the ends stay unused.

The end token is a target of its document; what follows it belongs to another, so there the label is −100.
Positions start again behind every end token: they tell attention where the documents are.

Without `shift`, o_e = 0. With it, o_0 = 0 and, for e ≥ 1, o_e = M(M(M(seed) ⊕ e) ⊕ 0x7368696674)
mod min(S, T − S) with M = `order.mix`: so a small corpus is not cut at the same places in every epoch.

B samples, S tokens of a sequence.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tutti.core.errors import DataError
from tutti.core.types import Batch, SampleSource
from tutti.data.order import mix
from tutti.data.prepared import Prepared, too_short

#: The label of a position that is no target (as in PyTorch and transformers).
NO_TARGET = -100
_SHIFT = 0x7368696674  # "shift": keeps these random numbers apart from those of the order


class TokenSource(SampleSource):
    """Next-token samples of one part of prepared text.

    Batch: `input_ids`, `labels`, `position_ids`, each int64 [B, S]. `token_bytes`: int64 [V], bytes of text
    per token. A shard's hash is verified when it is first used.

    Raises:
        DataError: no such part, or it is shorter than one sample (when built); a corrupted shard (when used).
    """

    def __init__(self, prepared: Prepared, split: str, sequence: int, seed: int, shift: bool) -> None:
        if split not in prepared.splits:
            raise DataError(f"there is no part '{split}'", f"the parts are {', '.join(prepared.splits)}")
        part = prepared.splits[split]
        if part.tokens <= sequence:
            raise too_short(split, part, sequence)
        self.sequence = sequence
        self.tokens = part.tokens
        self.end_token = prepared.end_token
        self.token_bytes = prepared.token_bytes
        self.fingerprint = hashlib.sha256(
            f"{prepared.fingerprint} {split} {sequence} {seed if shift else 'fixed'}".encode()
        ).hexdigest()
        self._prepared = prepared
        self._shards = part.shards
        self._starts = np.cumsum([0, *(shard.tokens for shard in part.shards)]).tolist()
        self._maps: list[NDArray[Any] | None] = [None] * len(part.shards)
        self._seed = seed
        self._shift = shift

    def __getstate__(self) -> dict[str, Any]:
        # Another process maps the files itself instead of being sent their content.
        return self.__dict__ | {"_maps": [None] * len(self._shards)}

    def offset(self, epoch: int) -> int:
        """The first token of epoch `epoch`."""
        if not self._shift or epoch == 0:
            return 0
        return mix(mix(mix(self._seed) ^ epoch) ^ _SHIFT) % min(self.sequence, self.tokens - self.sequence)

    def samples_in_epoch(self, epoch: int) -> int:
        """Number of windows of epoch `epoch`; at least 1."""
        return (self.tokens - 1 - self.offset(epoch)) // self.sequence

    def load(self, epoch: int, indices: Sequence[int] | NDArray[np.int64]) -> Batch:
        """The windows `indices` of `epoch`, in that order.

        Raises:
            IndexError: an index that is not below `samples_in_epoch(epoch)`.
            DataError: a shard is corrupted; says which file.
        """
        numbers = np.asarray(indices, dtype=np.int64)
        samples = self.samples_in_epoch(epoch)
        if numbers.size and (numbers.min() < 0 or numbers.max() >= samples):
            raise IndexError(f"epoch {epoch} has the samples 0 … {samples - 1}, asked for {numbers.tolist()}")
        return self._batch(self.windows(epoch, numbers))

    def windows(self, epoch: int, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """[B, S + 1] the tokens of the samples `numbers` of `epoch`, each with the first one behind it."""
        offset = self.offset(epoch)
        windows = np.empty((len(numbers), self.sequence + 1), dtype=np.int64)
        for row, start in zip(windows, (offset + numbers * self.sequence).tolist(), strict=True):
            self._read(start, row)
        return windows

    def empty(self) -> Batch:
        """One sample without a target: end tokens, each of which ends a document of its own."""
        return self._batch(np.full((1, self.sequence + 1), self.end_token, dtype=np.int64))

    def _read(self, start: int, into: NDArray[np.int64]) -> None:
        """Copy the stream from token `start` on; it may go on in the next shards."""
        shard = bisect_right(self._starts, start) - 1
        at = start - self._starts[shard]
        filled = 0
        while filled < len(into):
            found = self._tokens(shard)[at : at + len(into) - filled]
            into[filled : filled + len(found)] = found
            filled += len(found)
            shard, at = shard + 1, 0

    def _tokens(self, shard: int) -> NDArray[Any]:
        mapped = self._maps[shard]
        if mapped is None:
            mapped = self._maps[shard] = self._prepared.open_tokens(self._shards[shard])
        return mapped

    def _batch(self, windows: NDArray[np.int64]) -> Batch:
        """[B, S + 1] tokens to inputs, labels and positions."""
        inputs = np.ascontiguousarray(windows[:, :-1])
        ends = inputs == self.end_token
        labels = np.where(ends, NO_TARGET, windows[:, 1:])
        places = np.arange(self.sequence, dtype=np.int64)
        starts = np.zeros_like(inputs)
        starts[:, 1:] = np.where(ends[:, :-1], places[1:], 0)
        positions = places - np.maximum.accumulate(starts, axis=1)
        return {
            "input_ids": torch.from_numpy(inputs),
            "labels": torch.from_numpy(labels),
            "position_ids": torch.from_numpy(positions),
        }
