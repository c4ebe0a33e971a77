"""The words of a text as a model reads it, and rows in which some of them are hidden."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from tutti.core import RunError
from tutti.package import Asker
from tutti.tasks.classify import Classify
from tutti.tasks.task import Example, Row, RowEncoder
from tutti.tasks.words import words_of

#: Tasks whose answers are about words.
EXPLAINED = ("classify", "relate", "tag")
#: By what tokenizers call the token that stands for a word that is not told.
_MASKS = ("[MASK]", "<mask>")


@dataclass(frozen=True)
class Word:
    """`text` from `start` to `end` (characters) of a `part` of what the model read; `tokens`: where it stands in the
    row."""

    text: str
    start: int
    end: int
    part: str
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Reading:
    """What the model read: `parts`, named texts, and the `words` of `row`."""

    parts: dict[str, str]
    row: Row
    words: tuple[Word, ...]

    def without(self, kept: Sequence[bool], hidden: int) -> Row:
        """The row with the token `hidden` in place of every word that is not `kept`."""
        ids = list(self.row["input_ids"])
        for word, stays in zip(self.words, kept, strict=True):
            if not stays:
                for place in word.tokens:
                    ids[place] = hidden
        return {**self.row, "input_ids": ids}


def hiding_token(encoder: RowEncoder) -> int:
    """What is written in place of a word: the tokenizer's mask, or else padding."""
    found = (encoder.tokenizer.token_to_id(name) for name in _MASKS)
    return next((token for token in found if token is not None), encoder.pad)


def readings_of(asker: Asker, example: Example) -> list[Reading]:
    """Every row that the task makes of `example`, with its words.

    Raises:
        RunError: what the task makes of it has no words.
    """
    if asker.task.kind not in EXPLAINED:
        raise RunError(
            f"what a model says that learned `{asker.task.kind}` cannot be explained word by word",
            f"this is for {', '.join(EXPLAINED)}",
        )
    rows = asker.read([example])
    if isinstance(asker.task, Classify):
        return [_of_texts(asker.task, asker.encoder, example, rows[0])]
    return [_of_tagged(example, rows[number]) for number in range(len(rows))]


def _of_texts(task: Classify, encoder: RowEncoder, example: Example, row: Row) -> Reading:
    shown = task.shown(example, encoder)
    encoder.tokenizer.enable_truncation(encoder.length, strategy="longest_first")
    encoding = encoder.tokenizer.encode(shown[0], shown[1] if len(shown) > 1 else None)
    names = ("text", "pair")
    words: list[Word] = []
    for number, (name, text) in enumerate(zip(names, shown, strict=False)):
        # Of special tokens the part is None.
        tokens = [place for place, part in enumerate(encoding.sequence_ids) if part == number]
        words += _words_of(text, name, tokens, encoding.offsets)
    return Reading(dict(zip(names, shown, strict=False)), row, tuple(words))


def _words_of(
    text: str, part: str, tokens: Sequence[int], offsets: Sequence[tuple[int, int]]
) -> Iterator[Word]:
    """The words of `text`; those that share a token are one. A token of no word is one with the token before it."""
    words = words_of(text)
    first = at = 0
    held: list[int] = []
    for token in tokens:
        start, end = offsets[token]
        following = at
        while following < len(words) and words[following][1] <= start:
            following += 1
        begins = following < len(words) and words[following][0] < end
        if (begins and following > at) or not held:
            if held:
                yield _word(text, words[first][0], words[at][1], part, held)
            first, held = following, []
        if begins:
            at = following
            while at + 1 < len(words) and words[at + 1][0] < end:
                at += 1
        held.append(token)
    if held and words:
        yield _word(text, words[first][0], words[at][1], part, held)


def _of_tagged(example: Example, row: Row) -> Reading:
    text, ids, starts = example["text"], row["input_ids"], row["starts"]
    behind = (
        len(ids) - 1 if starts and starts[0] > 0 else len(ids)
    )  # the last token is special, like the first
    ends = [*starts, behind][1:]  # none, where no word has a token
    words = []
    for number, first, end in zip(row["words"], starts, ends, strict=True):
        begin, stop = example["words"][number]
        words.append(_word(text, begin, stop, "text", range(first, max(first + 1, end))))
    return Reading({"text": text}, row, tuple(words))


def _word(text: str, start: int, end: int, part: str, tokens: Iterable[int]) -> Word:
    while start < end and text[start].isspace():  # some tokenizers count the space before a word to it
        start += 1
    return Word(text[start:end], start, end, part, tuple(tokens))
