"""Texts that repeat themselves, by the limits of Gopher (Rae et al. 2021, table A1).

Lines and paragraphs: the share of those that stood before, and the share of characters in them. Sequences of 2 to 4
words: the share of letters in all occurrences of the most frequent one, where it occurs more than once. Of 5 to 10
words: the share of letters in sequences that stood before. Shares of sequences are of the letters of all words.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from tutti.data.cleaning.step import Dropped
from tutti.data.cleaning.words import Words, sequences, words_of
from tutti.data.listing import Kind

#: Of lines and paragraphs: share of them, share of characters.
_PIECES, _CHARACTERS = 0.30, 0.20
_MOST_FREQUENT = {2: 0.20, 3: 0.18, 4: 0.16}
_BEFORE = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}


class Repetition:
    """By the first limit that is exceeded."""

    name = "repetition"

    def apply(self, text: str, kind: Kind, found: Counter[str]) -> str | Dropped:
        why = repeated(text)
        return text if why is None else Dropped(why)


def repeated(text: str) -> str | None:
    """What is repeated too often in `text`."""
    for name, separator in (("lines", "\n"), ("paragraphs", "\n\n")):
        pieces, characters = _stood_before([one.strip() for one in text.split(separator) if one.strip()])
        if pieces > _PIECES or characters > _CHARACTERS:
            return name
    words = words_of([text])
    total = max(int(words.lengths.sum()), 1)
    for length, limit in _MOST_FREQUENT.items():
        if _most_frequent(words, length) > limit * total:
            return f"the same {length} words"
    smallest = min(_BEFORE.values())
    for length, limit in _BEFORE.items():
        letters = _before(words, length)
        if letters > limit * total:
            return f"sequences of {length} words"
        if letters <= smallest * total:  # longer sequences stand in shorter ones
            break
    return None


def _stood_before(pieces: Sequence[str]) -> tuple[float, float]:
    """Share of `pieces` that are equal to an earlier one, and of the characters in these."""
    seen: set[str] = set()
    count = characters = 0
    for piece in pieces:
        if piece in seen:
            count += 1
            characters += len(piece)
        seen.add(piece)
    return count / max(len(pieces), 1), characters / max(sum(map(len, pieces)), 1)


def _most_frequent(words: Words, length: int) -> int:
    """Letters in all occurrences of the most frequent sequence of `length` words that is not alone."""
    hashes, _ = sequences(words, length, short=False)
    if not len(hashes):
        return 0
    _, first, counts = np.unique(hashes, return_index=True, return_counts=True)
    most = int(counts.argmax())
    if counts[most] < 2:
        return 0
    at = int(first[most])
    return int(words.lengths[at : at + length].sum()) * int(counts[most])


def _before(words: Words, length: int) -> int:
    """Letters of words that stand in a sequence of `length` words that stood before."""
    hashes, _ = sequences(words, length, short=False)
    if not len(hashes):
        return 0
    _, first = np.unique(hashes, return_index=True)
    again = np.ones(len(hashes), bool)
    again[first] = False
    covered = np.zeros(len(words.hashes) + 1, np.int64)
    np.add.at(covered, np.flatnonzero(again), 1)
    np.add.at(covered, np.flatnonzero(again) + length, -1)
    return int(words.lengths[np.cumsum(covered)[:-1] > 0].sum())
