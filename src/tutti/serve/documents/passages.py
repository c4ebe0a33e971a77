"""A document in passages: a few paragraphs each, as they stand, so that a citation is a range of characters.

Paragraphs end at empty lines; short neighbours go together, and one that is too long is cut where a sentence ends, or a
line, or a word.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from tutti.serve.documents.folder import Document

#: Characters of a passage, at most: some 200 tokens of English, which encoders read whole.
LONGEST = 1000
_GAP = re.compile(r"\n\s*\n")
#: The best place to cut comes first.
_ENDS = (re.compile(r"[.!?。！？][\s\"')\]]*"), re.compile(r"\n"), re.compile(r"\s"))


class Passage(NamedTuple):
    """Characters `start` to `end` of document number `document`."""

    document: int
    start: int
    end: int


def cut(documents: list[Document]) -> list[Passage]:
    """The passages of all documents, in order; together they hold every character that is not space."""
    found: list[Passage] = []
    for number, document in enumerate(documents):
        begin: int | None = None
        reached = 0
        for start, end in _pieces(document.text):
            if begin is not None and end - begin > LONGEST:
                found.append(Passage(number, begin, reached))
                begin = None
            begin = start if begin is None else begin
            reached = end
        if begin is not None:
            found.append(Passage(number, begin, reached))
    return found


def _pieces(text: str) -> Iterator[tuple[int, int]]:
    """Paragraphs, or parts of them, without space around, none longer than a passage."""
    ends = [match.start() for match in _GAP.finditer(text)] + [len(text)]
    start = 0
    for end in ends:
        while True:
            start += len(text[start:end]) - len(text[start:end].lstrip())
            if start >= end:
                break
            stop = end if end - start <= LONGEST else _cut_at(text, start, start + LONGEST)
            yield start, start + len(text[start:stop].rstrip())
            start = stop


def _cut_at(text: str, start: int, most: int) -> int:
    """Where what begins at `start` ends, behind its middle if it can be, and before `most`."""
    middle = (start + most) // 2
    for ending in _ENDS:
        stops = [match.end() for match in ending.finditer(text, middle, most)]
        if stops:
            return stops[-1]
    return most
