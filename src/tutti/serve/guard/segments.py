"""Sentences, cut so that it does not matter what follows: what judges a text with a model judges it so.

A cut stands before the space between two sentences, where patterns can be cut as well.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

#: What a point may stand behind without an end: an initial, an abbreviation, a house's number. (Behind a space only:
#: where a text was cut within a word, what is left of it must not look like one.)
_SHORT = r"(?<!\s\w\.)(?<!\s\w\.\w\.)(?<!\s[A-Z\d]\w\.)(?<!\s[A-Z\d]\w\w\.)"
#: A sentence has ended and another one begins, or the paragraph has. (A paragraph's space is found where it begins and
#: taken whole: who tries its parts as well needs minutes for a few hundred empty lines.)
_END = re.compile(
    rf"(?<=[.!?]){_SHORT}[\"')\]]*(?P<gap>\s+)(?=[\"'(\[]?[A-Z])"
    r"|(?P<blank>(?<!\s)(?=[^\S\n]*\n[^\S\n]*\n)\s++)(?=\S)|(?P<wide>(?<=[。！？])(?=.))",
    re.DOTALL,
)
#: A longer one is cut between words.
MOST_LETTERS = 600


def cuts(text: str) -> list[int]:
    """Where segments of `text` begin that are certain, whatever follows; the last one may still grow."""
    found, start = list[int](), 0
    for end in [*(match.start(match.lastgroup or 0) for match in _END.finditer(text)), len(text)]:
        while end - start > MOST_LETTERS:
            start = _between_words(text, start)
            found.append(start)
        if start < end < len(text):
            found.append(end)
            start = end
    return found


def _between_words(text: str, start: int) -> int:
    """The last place between words that a segment from `start` on may end at; in a word that is too long, any."""
    space = text.rfind(" ", start + 1, start + MOST_LETTERS)
    if space < 0:
        return start + MOST_LETTERS
    while space > start + 1 and text[space - 1].isspace():
        space -= 1
    return space


def segments(text: str) -> Iterator[tuple[int, str]]:
    """Each with its place."""
    borders = [0, *cuts(text), len(text)]
    for start, end in itertools.pairwise(borders):
        if start < end:
            yield start, text[start:end]
