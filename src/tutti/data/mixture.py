"""A mixture: how often each document is taken so that every source gets its share of the training text.

Of N bytes to train on, source e with n_e bytes and weight w_e gets w_e · N: its text is taken ⌊w_e N / n_e⌋ times, and
once more those documents, in the order of their hashes, that make up the rest: each that has room in it, and at the end
the smallest of the others if that brings it nearer. So the whole stays about as large as it is, and what is taken does
not depend on the order of files.

Text that is replayed against forgetting is taken in the same way, but what is new stays as it is: beside n bytes of
that, a share r of the whole is r / (1 − r) · n bytes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tutti.core.address import without_secrets as shown
from tutti.core.errors import DataError

#: Text that is repeated more often than this adds little (Muennighoff et al. 2023, 4 epochs).
_REPEATED_WELL = 4.0


def times_to_take(
    entries: NDArray[np.int16],
    sizes: NDArray[np.int64],
    hashes: NDArray[np.uint64],
    train: NDArray[np.bool_],
    weights: Sequence[float],
    names: Sequence[str],
) -> tuple[NDArray[np.int32], list[str]]:
    """[documents] each → how often a document is trained on (1 where not `train`), and words about every source.

    Raises:
        DataError: a source with a weight has no text to train on.
    """
    times = np.ones(len(entries), np.int32)
    total = int(sizes[train].sum())
    said = []
    for entry, weight in enumerate(np.array(weights) / sum(weights)):
        of_entry = np.flatnonzero(train & (entries == entry))
        there = int(sizes[of_entry].sum())
        if weight and not there:
            raise DataError(
                f"data.weights gives {weight:.3g} to {shown(names[entry])}, which has no text to train on",
                "give it text, or the weight 0",
            )
        ratio = weight * total / max(there, 1)
        taken = _take(times, of_entry, sizes, hashes, ratio)
        if weight and not taken:
            raise DataError(
                f"data.weights gives {weight:.3g} to {shown(names[entry])}, which is {weight * total / 1e6:.1f} MB, "
                f"but its smallest document has {sizes[of_entry].min() / 1e6:.1f} MB, and only whole ones are taken",
                "divide its text into smaller documents (several files, or a line of JSONL for each)",
            )
        said.append(
            f"{shown(names[entry])}: {there / 1e6:.1f} MB taken {ratio:.2f} times makes {taken / 1e6:.1f} MB, "
            f"{100 * taken / max(total, 1):.1f} % (data.weights: {100 * weight:.1f} %)" + _too_often(ratio)
        )
    return times, said


def times_to_replay(
    former: NDArray[np.bool_],
    sizes: NDArray[np.int64],
    hashes: NDArray[np.uint64],
    train: NDArray[np.bool_],
    share: float,
) -> tuple[NDArray[np.int32], str]:
    """[documents] each → how often a document is trained on (1 where it is not `former`), and words about it.

    Raises:
        DataError: there is nothing to replay.
    """
    times = np.ones(len(former), np.int32)
    old = np.flatnonzero(train & former)
    there, new = int(sizes[old].sum()), int(sizes[train & ~former].sum())
    if not there:
        raise DataError(
            "remember.source holds no text that data.source has not", "name text of what the model knew"
        )
    ratio = share / (1 - share) * new / there
    taken = _take(times, old, sizes, hashes, ratio)
    return times, (
        f"remember.source: {there / 1e6:.1f} MB taken {ratio:.2f} times makes {taken / 1e6:.1f} MB beside "
        f"{new / 1e6:.1f} MB that are new, {100 * taken / max(taken + new, 1):.1f} % (remember.replay: "
        f"{100 * share:.1f} %)" + _too_often(ratio)
    )


def _take(
    times: NDArray[np.int32],
    documents: NDArray[np.int64],
    sizes: NDArray[np.int64],
    hashes: NDArray[np.uint64],
    ratio: float,
) -> int:
    """Put into `times` how often each of `documents` is taken to be `ratio` times as much; the bytes that makes."""
    whole, there = int(ratio), int(sizes[documents].sum())
    order = documents[np.lexsort((hashes[documents, 0], hashes[documents, 1]))]
    times[order] = whole
    times[_within(order, sizes[order], (ratio - whole) * there)] += 1
    return int((times[order] * sizes[order]).sum())


def _within(order: NDArray[np.int64], sizes: NDArray[np.int64], rest: float) -> NDArray[np.int64]:
    """Those of `order`, with `sizes`, that make up `rest` bytes, as nearly as whole documents do."""
    taken, left = [np.zeros(0, np.int64)], rest
    places = np.arange(len(order))
    while len(places := places[sizes[places] <= left]):
        held = np.cumsum(sizes[places])
        fitting = int(np.searchsorted(held, left, side="right"))
        taken.append(places[:fitting])
        left -= float(held[fitting - 1])
        places = places[fitting:]
    chosen = np.concatenate(taken)
    others = np.setdiff1d(np.arange(len(order)), chosen)
    if len(others) and sizes[others].min() < 2 * left:  # nearer above than below
        chosen = np.append(chosen, others[sizes[others].argmin()])
    return order[chosen]


def _too_often(ratio: float) -> str:
    return "; text that is read more than 4 times teaches little" if ratio > _REPEATED_WELL else ""
