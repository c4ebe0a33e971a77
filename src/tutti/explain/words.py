"""The words of a text as a model reads it, and rows in which some of them are hidden."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tutti.core import RunError
from tutti.package import Asker
from tutti.tasks.classify import Classify
from tutti.tasks.task import Example, Row, RowEncoder

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
    places: dict[tuple[int, int], list[int]] = {}
    for place, (part, word) in enumerate(zip(encoding.sequence_ids, encoding.word_ids, strict=True)):
        if part is not None and word is not None:  # otherwise special
            places.setdefault((part, word), []).append(place)
    names = ("text", "pair")
    words = []
    for (part, _), tokens in places.items():
        start = min(encoding.offsets[place][0] for place in tokens)
        end = max(encoding.offsets[place][1] for place in tokens)
        words.append(_word(shown[part], start, end, names[part], tokens))
    return Reading(dict(zip(names, shown, strict=False)), row, tuple(words))


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
