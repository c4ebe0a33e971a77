"""MinHash (Broder 1997): texts as signatures of which as many entries agree as the texts have sequences in common.

    signature_p(text) = min over its sequences x of (a_p · x + b_p) mod 2^32        a_p odd: a permutation
    P(signature_p(A) = signature_p(B)) = |A ∩ B| / |A ∪ B|                          (Jaccard)

Sequences are of five words. Of each minimum 16 bits are kept. That the low ones differ although the minima agree cannot
be; that they agree although these differ happens once in 65,536 times.

Bands (Leskovec, Rajaraman, Ullman: Mining of Massive Datasets, 3.4): texts that agree in all entries of any band are
compared. With b bands of r entries that is so with probability 1 - (1 - s^r)^b for texts of similarity s.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from tutti.data.cleaning.words import mixed, sequences, words_of

#: Entries of a signature.
ENTRIES = 128
#: Words of a sequence.
SEQUENCE = 5
#: Pairs at the threshold that are compared, at least.
_FOUND = 0.95


def shape_of_bands(threshold: float) -> tuple[int, int]:
    """(bands, entries of each): the longest with which at least 95 % of the pairs at `threshold` are compared."""
    for rows in range(ENTRIES, 0, -1):
        bands = ENTRIES // rows
        if 1 - (1 - threshold**rows) ** bands >= _FOUND:
            return bands, rows
    return ENTRIES, 1


def sign(texts: Sequence[str]) -> NDArray[np.uint16]:
    """[texts, ENTRIES]; all zero: a text without words, which is like no other."""
    found, bounds = sequences(words_of(texts), SEQUENCE, short=True)
    signatures = np.zeros((len(texts), ENTRIES), np.uint16)
    some = np.flatnonzero(np.diff(bounds))
    if not len(some):
        return signatures
    short = (found >> np.uint64(32)).astype(np.uint32)
    starts = bounds[some]
    factors, shifts = _permutations()
    column = np.empty(len(short), np.uint32)
    for entry in range(ENTRIES):
        np.multiply(short, factors[entry], out=column)
        column += shifts[entry]
        signatures[some, entry] = np.minimum.reduceat(column, starts).astype(np.uint16)
    zero = some[~signatures[some].any(axis=1)]  # by chance
    signatures[zero, 0] = 1
    return signatures


def band_keys(signatures: NDArray[np.uint16], threshold: float) -> NDArray[np.uint64]:
    """[bands, texts]: equal where all entries of a band are; 0 for texts without words."""
    bands, rows = shape_of_bands(threshold)
    keys = np.zeros((bands, len(signatures)), np.uint64)
    for band in range(bands):
        for row in range(band * rows, (band + 1) * rows):
            keys[band] = mixed(keys[band] + signatures[:, row] + np.uint64(1))
    keys[keys == 0] = 1
    keys[:, ~signatures.any(axis=1)] = 0
    return keys


@cache
def _permutations() -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """Factors (odd) and shifts; always the same ones."""
    drawn = mixed(np.arange(1, 2 * ENTRIES + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    values = (drawn >> np.uint64(32)).astype(np.uint32)
    return values[:ENTRIES] | np.uint32(1), values[ENTRIES:]
