"""Which documents are near duplicates of each other: band by band over keys that lie on disk.

Memory is that of one partition of one band, and of a few numbers for every document; it does not grow with the
number of bands or the length of signatures. What is found does not depend on how much memory there is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from tutti.data.near.signatures import shape_of_bands

#: Bytes that finding the equal keys of a partition takes for each of them: key, number, order, and copies.
_BYTES_OF_A_KEY = 64
_PAIRS_AT_ONCE = 1 << 15


@dataclass(frozen=True)
class SignedUnit:
    """Documents that were signed together. Files: keys [bands, documents] uint64, signatures [documents, ENTRIES]."""

    keys: Path
    signatures: Path
    documents: int


def group(
    units: Sequence[SignedUnit], considered: NDArray[np.bool_], threshold: float, memory_bytes: int
) -> NDArray[np.int64]:
    """[documents of all units] → the number of its group; near duplicates are in one, others alone.

    `considered`: [documents]; what is not is in a group of its own. Two documents are near duplicates where at least
    `threshold` of the entries of their signatures agree; groups are closed under that.
    """
    total = len(considered)
    labels = np.arange(total)
    if not total:
        return labels
    reader = _Signatures(units)
    bands, _ = shape_of_bands(threshold)
    partitions = -(-total * _BYTES_OF_A_KEY // memory_bytes)
    found: list[NDArray[np.int64]] = []
    for band in range(bands):
        for partition in range(partitions):
            pairs = _candidates(units, considered, band, partition, partitions)
            pairs = pairs[labels[pairs[:, 0]] != labels[pairs[:, 1]]]
            for at in range(0, len(pairs), _PAIRS_AT_ONCE):
                some = pairs[at : at + _PAIRS_AT_ONCE]
                alike = reader.agreement(some) >= threshold
                found.append(some[alike])
        if found:
            labels = _together(np.concatenate(found), total)
            found = [_spanning(labels)]
    return labels


def _candidates(
    units: Sequence[SignedUnit], considered: NDArray[np.bool_], band: int, partition: int, partitions: int
) -> NDArray[np.int64]:
    """[pairs, 2]: documents with equal keys in `band`: each with the first of its key, and with the one before it."""
    keys, numbers = [], []
    low = (partition << 64) // partitions
    high = ((partition + 1) << 64) // partitions - 1
    for first, unit in _numbered(units):
        if not unit.documents:  # an empty file cannot be mapped
            continue
        mapped: Any = np.load(unit.keys, mmap_mode="r")
        of_unit = np.array(mapped[band])
        del mapped
        chosen = considered[first : first + unit.documents] & (of_unit != 0)
        if partitions > 1:
            chosen &= (of_unit >= np.uint64(low)) & (of_unit <= np.uint64(high))
        keys.append(of_unit[chosen])
        numbers.append(first + np.flatnonzero(chosen))
    key, number = np.concatenate(keys), np.concatenate(numbers)
    order = np.argsort(key, kind="stable")
    key, number = key[order], number[order]
    same = np.flatnonzero(key[1:] == key[:-1]) + 1
    if not len(same):
        return np.zeros((0, 2), np.int64)
    begins = np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1]]))
    firsts = number[begins[np.searchsorted(begins, same, side="right") - 1]]
    pairs = np.concatenate(
        [np.stack([firsts, number[same]], axis=1), np.stack([number[same - 1], number[same]], axis=1)]
    )
    return np.unique(pairs, axis=0)


def _numbered(units: Sequence[SignedUnit]) -> Iterator[tuple[int, SignedUnit]]:
    first = 0
    for unit in units:
        yield first, unit
        first += unit.documents


def _together(pairs: NDArray[np.int64], total: int) -> NDArray[np.int64]:
    make: Any = coo_array  # its types are not exported
    graph = make((np.ones(len(pairs), np.int8), (pairs[:, 0], pairs[:, 1])), shape=(total, total))
    labels: NDArray[Any] = connected_components(graph, directed=False)[1]
    return labels.astype(np.int64)


def _spanning(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """[pairs, 2] that make the same groups: each of a group with the one before it."""
    order = np.argsort(labels, kind="stable")
    same = np.flatnonzero(labels[order][1:] == labels[order][:-1])
    return np.stack([order[same], order[same + 1]], axis=1)


class _Signatures:
    """Reads single rows from disk; pages that were mapped are let go after each call."""

    def __init__(self, units: Sequence[SignedUnit]) -> None:
        self._units = units
        self._firsts = np.array([first for first, _ in _numbered(units)])

    def agreement(self, pairs: NDArray[np.int64]) -> NDArray[np.float64]:
        """[pairs, 2] → [pairs]: share of entries that agree."""
        if not len(pairs):
            return np.zeros(0)
        wanted, place = np.unique(pairs, return_inverse=True)
        rows = np.concatenate(list(self._rows(wanted)))
        place = place.reshape(-1, 2)
        agreement: NDArray[np.float64] = (rows[place[:, 0]] == rows[place[:, 1]]).mean(axis=1)
        return agreement

    def _rows(self, wanted: NDArray[np.int64]) -> Iterator[NDArray[np.uint16]]:
        unit_of = np.searchsorted(self._firsts, wanted, side="right") - 1
        for unit in np.unique(unit_of).tolist():
            mapped = np.load(self._units[unit].signatures, mmap_mode="r")
            yield np.array(mapped[wanted[unit_of == unit] - self._firsts[unit]])
            del mapped
