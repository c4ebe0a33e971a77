"""Long text in pieces that a tokenizer sees as if it were whole.

A piece ends after a line break between two characters that are no white space, where there is one: the
pre-tokenizers of byte-level BPE never join text over such a place, so the tokens are those of the whole text.
Where the text starts decides all cuts: the same text is always cut at the same places.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tutti.data.settings import PIECE_CHARACTERS


def pieces(chunks: Iterable[str], limit: int = PIECE_CHARACTERS) -> Iterator[str]:
    """Join `chunks` and cut them anew into pieces of at most `limit` characters. Empty text has no piece."""
    held = ""
    for chunk in chunks:
        held = held + chunk if held else chunk
        at = 0
        while len(held) - at > limit:  # one character more than a piece: its end can be judged
            end = _end_of_piece(held, at, limit)
            yield held[at:end]
            at = end
        held = held[at:]
    if held:
        yield held


def _end_of_piece(text: str, start: int, limit: int) -> int:
    """The best place to cut `text[start:]`, in (start + limit/2, start + limit]."""
    low = start + limit // 2
    at = fallback = text.rfind("\n", low, start + limit)
    while at > low:
        if not text[at - 1].isspace() and not text[at + 1].isspace():
            return at + 1
        at = text.rfind("\n", low, at)
    return (fallback if fallback >= 0 else start + limit - 1) + 1
