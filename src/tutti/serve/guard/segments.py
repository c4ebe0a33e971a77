"""Sentences and lines, cut so that it does not matter what follows: what judges a text with a model judges it so."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

#: A sentence has ended and another one begins; or the line has.
_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+(?=[\"'(\[]?[A-Z])|\n\s*|(?<=[。！？])")
#: A longer one is cut between words.
MOST_LETTERS = 600


def cuts(text: str) -> list[int]:
    """Where segments of `text` begin that are certain, whatever follows; the last one may still grow."""
    found, start = [], 0
    for end in [match.end() for match in _END.finditer(text) if match.end() < len(text)] + [len(text)]:
        while end - start > MOST_LETTERS:
            space = text.rfind(" ", start + 1, start + MOST_LETTERS)
            start = space if space > 0 else start + MOST_LETTERS
            found.append(start)
        if end < len(text):
            found.append(end)
            start = end
    return found


def segments(text: str) -> Iterator[tuple[int, str]]:
    """Each with its place."""
    borders = [0, *cuts(text), len(text)]
    for start, end in itertools.pairwise(borders):
        if start < end:
            yield start, text[start:end]
