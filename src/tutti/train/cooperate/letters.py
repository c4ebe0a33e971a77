"""Predictions as bytes: the k likeliest tokens at every position of some samples.

    magic, n samples, S tokens, k, bytes of an id b      20 bytes
    key of each sample                                   8 n
    ids of the likeliest tokens                          b n S k        b = 2 up to 65 536 words, else 4
    their probabilities, fp16                            2 n S k

A sample is known by its tokens (their xxHash, 64 bits), so groups need no common numbering of samples. What the k
tokens leave of the probability is the mass of all others together (`tasks.distillation`).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from torch import Tensor

from tutti.core import Batch

_HEAD = struct.Struct("<4sIIII")
_MAGIC = b"tuP1"


@dataclass(frozen=True)
class Letter:
    """Of n samples: keys [n], ids [n, S, k] and chances [n, S, k] (fp16) of the likeliest tokens."""

    keys: NDArray[np.uint64]
    ids: NDArray[np.integer]
    chances: NDArray[np.float16]

    def rows(self) -> Iterator[tuple[int, NDArray[np.integer], NDArray[np.float16]]]:
        """Key, ids and chances of each sample."""
        yield from zip(self.keys.tolist(), self.ids, self.chances, strict=True)


def letter_bytes(samples: int, tokens: int, top: int, vocabulary: int) -> int:
    """Bytes of a letter about `samples` of so many `tokens`."""
    return _HEAD.size + samples * (8 + tokens * top * (_id_bytes(vocabulary) + 2))


def _id_bytes(vocabulary: int) -> int:
    return 2 if vocabulary <= 1 << 16 else 4


def keys_of(batch: Batch) -> list[int]:
    """What each sample of `batch` is known by, in every group."""
    rows = torch.cat([batch["input_ids"], batch["labels"]], 1).cpu().numpy()
    return [xxhash.xxh64_intdigest(row.tobytes()) for row in np.ascontiguousarray(rows)]


def write_letter(keys: list[int], ids: Tensor, chances: Tensor, vocabulary: int) -> bytes:
    """`ids` and `chances` [n, S, k] of the samples `keys`."""
    samples, tokens, top = ids.shape
    width = _id_bytes(vocabulary)
    return b"".join(
        (
            _HEAD.pack(_MAGIC, samples, tokens, top, width),
            np.array(keys, dtype="<u8").tobytes(),
            ids.numpy().astype(f"<u{width}").tobytes(),
            chances.numpy().astype("<f2").tobytes(),
        )
    )


def read_letter(payload: bytes, vocabulary: int) -> Letter:
    """What `write_letter` wrote.

    Raises:
        ValueError: it is torn, of another vocabulary, or holds what is no probability.
    """
    if len(payload) < _HEAD.size:
        raise ValueError("this is no letter")
    magic, samples, tokens, top, width = _HEAD.unpack_from(payload)
    size = samples * tokens * top
    if (
        magic != _MAGIC
        or width not in (2, 4)
        or len(payload) != _HEAD.size + samples * 8 + size * (width + 2)
    ):
        raise ValueError("this is no letter")
    at = _HEAD.size
    keys = np.frombuffer(payload, "<u8", samples, at)
    ids = np.frombuffer(payload, f"<u{width}", size, at + samples * 8)
    chances = np.frombuffer(payload, "<f2", size, at + samples * 8 + size * width)
    if size and int(ids.max()) >= vocabulary:
        raise ValueError("this letter is of another vocabulary")
    if not ((chances >= 0) & (chances <= 1)).all():
        raise ValueError("this letter holds what is no probability")
    shape = (samples, tokens, top)
    return Letter(keys, ids.reshape(shape), chances.reshape(shape))
