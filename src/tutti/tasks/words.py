"""The words of a text, which are tagged, left out or moved; and tokens that never reach beyond one.

A word is a run of letters and digits; whatever else is no space is one by itself, and so is each sign of writings that
put no space between words. Marks (accents, vowels above and below), soft hyphens and joiners belong to what they stand
behind.

What is written without spaces becomes tokens of several signs, and a token has one tag. So where words are tagged, the
tokenizer is made to cut between them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from tokenizers import Regex, Tokenizer
from tokenizers.pre_tokenizers import PreTokenizer, Split
from tokenizers.pre_tokenizers import Sequence as InTurn

#: First and last code point of the scripts without spaces: Thai and Lao, Myanmar, Khmer, kana, Han (with extensions).
SPACELESS = (
    (0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF),
    (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x323AF),
)  # fmt: skip
_SIGN = "".join(rf"\x{{{first:x}}}-\x{{{last:x}}}" for first, last in SPACELESS)
#: Marks, soft hyphen, (non-)joiners, word joiner.
_MARK = r"\p{M}\x{ad}\x{200c}\x{200d}\x{2060}"
_WORD = rf"(?![{_MARK}])[{_SIGN}][{_MARK}]*|(?:(?![{_SIGN}])[\p{{L}}\p{{N}}{_MARK}])+|\S[{_MARK}]*"
#: The same engine finds words and cuts tokens, so both are of one mind. U+2581 is SentencePiece's space.
_WORDS = Split(Regex(_WORD), "removed", invert=True)
_WITH_SPACE = Split(Regex(rf"[\s\x{{2581}}]*(?:{_WORD})"), "isolated")


def words_of(text: str) -> list[tuple[int, int]]:
    """Where the words of `text` begin and end."""
    return [place for _, place in _WORDS.pre_tokenize_str(text)]


def with_space_before(text: str) -> list[str]:
    """`text` cut behind each of its words."""
    return [piece for piece, _ in _WITH_SPACE.pre_tokenize_str(text)]


def cut_at_words(tokenizer: Tokenizer) -> None:
    """Let no token of `tokenizer` reach beyond a word; a space may be part of the word behind it."""
    own: PreTokenizer | None = tokenizer.pre_tokenizer
    steps = [_WITH_SPACE] if own is None else [own, _WITH_SPACE]
    if "ByteLevel" in json.dumps(json.loads(tokenizer.to_str())["pre_tokenizer"]):
        steps.reverse()  # words have to be found before letters become bytes
    tokenizer.pre_tokenizer = InTurn(steps)


def first_tokens(words: Sequence[Sequence[int]], offsets: Sequence[tuple[int, int]]) -> list[int | None]:
    """Of each word the first token that covers any of it; None: there is none."""
    firsts: list[int | None] = []
    at = 0
    for start, end in words:
        while at < len(offsets) and offsets[at][1] <= start:
            at += 1
        covers = at < len(offsets) and offsets[at][0] < end and offsets[at][1] > start
        firsts.append(at if covers else None)
        if covers and offsets[at][1] > end:  # a token of two words speaks for the first
            at += 1
    return firsts


def windows(firsts: Sequence[int | None], tokens: int, length: int) -> Iterator[tuple[int, int]]:
    """Stretches of at most `length` of `tokens` tokens that end where a word does (or in the middle of a huge one)."""
    borders = [at for at in firsts if at is not None]
    start = 0
    while tokens - start > length:
        fitting = [at for at in borders if start < at <= start + length]
        stop = fitting[-1] if fitting else start + length
        yield start, stop
        start = stop
    yield start, tokens
