"""Long text in pieces that a tokenizer sees as if it were whole.

A piece ends before a line feed, or else before a space, that is followed by a character that is no white
space. Byte-level BPE splits at such places by itself (its pattern `\\s+(?!\\S)` leaves the last character of
white space to what follows), so the tokens of the pieces are those of the whole text.
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
    """The best place to cut `text[start:]`, in its second half."""
    low = start + (limit + 1) // 2
    for white in ("\n", " "):
        at = text.rfind(white, low, start + limit)
        while at >= 0:
            if not text[at + 1].isspace():
                return at
            at = text.rfind(white, low, at)
    return start + limit
