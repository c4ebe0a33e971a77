"""Texts as arrays of word hashes: what repetition, near duplicates and contamination are told by.

A word is a run of letters, digits and marks of any writing, in lower case; of writings that put no space between words
each sign is one. Many texts are taken at once: NumPy needs microseconds for every call, however little it is about.

    hash(word) = mix(Σ_i (c_i + 1) · B^i)       c_i: code points, modulo 2^64
"""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]

_BASE = 0x9E3779B97F4A7C15  # odd; its digits are those of the golden ratio
#: Powers are taken again from the first after so many characters of one word.
_PERIOD = 256
_OTHER, _WORD, _SIGN = 0, 1, 2
#: Writings without spaces: Thai to Tibetan, Burmese, Khmer, Chinese and Japanese.
_UNSPACED = (
    (0x0E00, 0x1000),
    (0x1000, 0x10A0),
    (0x1780, 0x1800),
    (0x2E80, 0x3130),
    (0x31A0, 0xA000),
    (0xF900, 0xFB00),
    (0xFF66, 0xFFA0),
    (0x20000, 0x32000),
)


@dataclass(frozen=True)
class Words:
    """`hashes`, `lengths` (characters): of all words; text k has those of [bounds[k], bounds[k + 1])."""

    hashes: Hashes
    lengths: NDArray[np.int64]
    bounds: NDArray[np.int64]

    @property
    def counts(self) -> NDArray[np.int64]:
        """[texts]: words of each."""
        return np.diff(self.bounds)


def words_of(texts: Sequence[str]) -> Words:
    """The words of each of `texts`."""
    lowered = [text.lower() for text in texts]
    begins = np.cumsum([0, *(len(text) + 1 for text in lowered)])
    joined = "\n".join([*lowered, ""])
    codes = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), dtype="<u4")
    kinds = kinds_of_characters()[codes]
    inside = kinds != _OTHER
    first = inside & (kinds == _SIGN)
    first[0:1] |= inside[0:1]
    first[1:] |= inside[1:] & (kinds[:-1] != _WORD)
    starts = np.flatnonzero(first)
    bounds = np.searchsorted(starts, begins)
    if not len(starts):
        return Words(np.zeros(0, np.uint64), np.zeros(0, np.int64), bounds)
    values = codes[starts[0] :].astype(np.uint64)
    values += np.uint64(1)
    place = np.arange(len(values)) - np.repeat(starts - starts[0], np.diff(starts, append=len(codes)))
    values *= _powers()[place & (_PERIOD - 1)]
    values *= inside[starts[0] :]
    return Words(
        mixed(np.add.reduceat(values, starts - starts[0])),
        np.add.reduceat(inside[starts[0] :], starts - starts[0], dtype=np.int64),
        bounds,
    )


def sequences(words: Words, length: int, *, short: bool) -> tuple[Hashes, NDArray[np.int64]]:
    """Hashes of all sequences of `length` words that lie in one text, and their bounds by text as in `Words`.

    `short`: a text of fewer words has one sequence, all of it; else none.
    """
    count = len(words.hashes)
    ends = np.repeat(words.bounds[1:], words.counts)
    at = np.arange(count)
    padded = np.concatenate([words.hashes, np.zeros(length, np.uint64)])
    found = np.zeros(count, np.uint64)
    for step in range(length):
        inside = at + step < ends
        found += np.where(inside, padded[step : step + count] * _powers()[step + 1], np.uint64(0))
    begins = np.repeat(words.bounds[:-1], words.counts)
    whole = at + length <= ends
    if short:
        whole |= at == begins
    chosen = np.flatnonzero(whole)
    return mixed(found[chosen]), np.searchsorted(chosen, words.bounds)


def mixed(values: Hashes) -> Hashes:
    """Every bit of the result depends on every bit of the value (the end of splitmix64, Steele et al. 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


@cache
def kinds_of_characters() -> NDArray[np.uint8]:
    """[code points]: 0 none of a word, 1 of a word, 2 a word of its own."""
    kinds = np.zeros(sys.maxunicode + 1, np.uint8)
    for code in range(sys.maxunicode + 1):
        sign = chr(code)
        if sign.isalnum() or unicodedata.category(sign)[0] == "M":
            kinds[code] = _WORD
    for low, high in _UNSPACED:
        kinds[low:high][kinds[low:high] == _WORD] = _SIGN
    return kinds


@cache
def _powers() -> Hashes:
    return np.cumprod(np.full(_PERIOD, _BASE, np.uint64), dtype=np.uint64)
