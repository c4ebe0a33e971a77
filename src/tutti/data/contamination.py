"""Training documents that hold what a model is to be judged by.

Documents are compared by the sequences of n words in them (n = 13 is usual: Brown et al. 2020). A training document is
contaminated if it has at least half of the sequences of a document that is kept, or if at least half of its own are
those of documents that are kept. So a phrase that everybody uses, such as a licence, contaminates nothing by itself.

Of very much text to compare with, a part of the sequences of long documents is looked at: those whose hash is divisible
by a power of two, on both sides, which leaves shares as they are (FracMinHash, Irber et al. 2022). Short documents keep
all of theirs: 12 bytes for every word of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tutti.data.cleaning.words import Hashes, sequences, words_of
from tutti.data.settings import BATCH_CHARACTERS

#: Shares from which on a document is contaminated.
_SHARE = 0.5
#: Sequences of long documents that are remembered at most.
_MOST = 1 << 22
#: A document with fewer sequences keeps all.
_SHORT = 64
#: Of fewer sequences a share says nothing.
_FEW = 4


@dataclass(frozen=True)
class Index:
    """`hashes` (sorted), `owners`: sequences, and the document each stands in; `sizes`: how many a document has.

    `length`: words of a sequence; of long documents those whose hash is divisible by `every` are there.
    """

    hashes: Hashes
    owners: NDArray[np.int32]
    sizes: NDArray[np.int32]
    length: int
    every: int

    def save(self, path: Path) -> None:
        """Write it for other processes."""
        np.savez(path, hashes=self.hashes, owners=self.owners, sizes=self.sizes)

    def contaminated(self, texts: list[str]) -> NDArray[np.int32]:
        """[texts] → the document that a text contaminates or is part of, -1: none."""
        found = np.full(len(texts), -1, np.int32)
        all_of_them, bounds = sequences(words_of(texts), self.length, short=True)
        known = np.isin(all_of_them, self.hashes)
        some = np.unique(np.searchsorted(bounds, np.flatnonzero(known), side="right") - 1)
        for text in some.tolist():  # few, as a rule
            own = np.unique(all_of_them[bounds[text] : bounds[text + 1]])
            at = np.searchsorted(self.hashes, own)
            inside = at < len(self.hashes)
            inside[inside] = self.hashes[at[inside]] == own[inside]
            hits = own[inside]
            last = np.searchsorted(self.hashes, hits, side="right")
            first = at[inside]
            owners = np.concatenate([self.owners[a:b] for a, b in zip(first, last, strict=True)])
            owner, counts = np.unique(owners, return_counts=True)
            share = counts / self.sizes[owner]
            if share.max() >= _SHARE or self._share_known(own, hits) >= _SHARE:
                found[text] = owner[share.argmax()]
        return found

    def _share_known(self, own: Hashes, hits: Hashes) -> float:
        """How much of a text with the sequences `own` is in documents that are kept: of those, `hits` are."""
        sampled = own[own % np.uint64(self.every) == 0]
        share = float(np.isin(sampled, hits).mean()) if len(sampled) >= _FEW else 0.0
        if len(own) < _SHORT:  # a piece of a long document, of which a sample is known, or of short ones
            share = max(share, len(hits) / len(own))
        return share


def make_index(texts: Iterable[str], length: int) -> Index:
    """Of the documents that are kept, by their order."""
    hashes: list[Hashes] = []
    owners: list[NDArray[np.int32]] = []
    every = 1
    count = held = 0  # documents; sequences of long ones
    long: list[bool] = []
    for batch in batches(texts):
        found, bounds = sequences(words_of(batch), length, short=True)
        for low, high in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
            own = np.unique(found[low:high])
            long.append(len(own) >= _SHORT)
            if long[-1]:
                own = own[own % np.uint64(every) == 0]
            hashes.append(own)
            owners.append(np.full(len(own), count, np.int32))
            held += len(own) if long[-1] else 0
            count += 1
        while held > _MOST:
            every *= 2
            keep = [own % np.uint64(every) == 0 if long[k] else slice(None) for k, own in enumerate(hashes)]
            hashes = [own[kept] for own, kept in zip(hashes, keep, strict=True)]
            owners = [own[kept] for own, kept in zip(owners, keep, strict=True)]
            held = sum(len(own) for own, is_long in zip(hashes, long, strict=True) if is_long)
    joined = np.concatenate([*hashes, np.zeros(0, np.uint64)])
    order = np.argsort(joined, kind="stable")
    of = np.concatenate([*owners, np.zeros(0, np.int32)])[order]
    sizes = np.array([max(1, len(own)) for own in hashes], np.int32)
    return Index(joined[order], of, sizes, length, every)


def batches(texts: Iterable[str]) -> Iterable[list[str]]:
    """`texts` in lists of about `BATCH_CHARACTERS`."""
    held: list[str] = []
    characters = 0
    for text in texts:
        held.append(text)
        characters += len(text)
        if characters >= BATCH_CHARACTERS:
            yield held
            held, characters = [], 0
    if held:
        yield held


@dataclass(frozen=True)
class Search:
    """Documents [offsets, lengths) in the file `text`, to be looked at; `rows`: what the caller knows them by."""

    text: Path
    rows: NDArray[np.int64]
    offsets: NDArray[np.int64]
    lengths: NDArray[np.int64]

    def texts(self) -> Iterable[str]:
        """Of each document, in order."""
        with self.text.open("rb") as file:
            for offset, length in zip(self.offsets.tolist(), self.lengths.tolist(), strict=True):
                file.seek(offset)
                yield file.read(length).decode()


@dataclass(frozen=True)
class SearchJob:
    """The index that all searches share: where `Index.save` wrote it, and its other fields."""

    path: Path
    length: int
    every: int

    def start(self) -> Callable[[Search], NDArray[np.int32]]:
        """As `processes.Job`."""
        index = self._index
        return lambda search: np.concatenate(
            [np.zeros(0, np.int32), *(index.contaminated(batch) for batch in batches(search.texts()))]
        )

    @cached_property
    def _index(self) -> Index:
        with np.load(self.path) as saved:
            return Index(saved["hashes"], saved["owners"], saved["sizes"], self.length, self.every)
