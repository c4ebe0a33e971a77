"""Examples from which a model learns to write: what it is given, and what it is to say to that.

Every example is a talk of messages. A causal model reads it as the tokenizer's chat template writes it (`template` of
the task where the tokenizer has none); targets are the tokens of the assistant's messages and the mark that ends each,
so that the model learns to stop. What people wrote is always text: it cannot put special tokens into a talk. Talks
stand side by side in windows of `data.sequence` tokens, and never see each other (`packing`). One that is longer than a
window loses its end; where one text is made of another, the one that is given does.

An encoder-decoder (a row encoder with `ends`) reads what is given and writes the rest: a row for each example.

Shapes: B windows or examples, S tokens, T tokens to write.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar

import torch

from tutti.core import Batch
from tutti.tasks.chunked_loss import IGNORED
from tutti.tasks.talk import Message, read_talk
from tutti.tasks.task import Example, Labels, Row, RowEncoder, TextTask, inputs_of, padded


class Writing(TextTask):
    """A task whose model writes."""

    long = "their ends are cut off"
    #: Jinja, as transformers takes it, for tokenizers that have no chat template of their own.
    template: ClassVar[str]

    @abstractmethod
    def talk(self, example: Example) -> list[Message]:
        """`example` as messages; the last is what is to be written, if the example has it."""

    @abstractmethod
    def given(self, example: Example) -> list[Message]:
        """What a model is given of `example`, to write the rest."""

    def fit(self, example: Example, encoder: RowEncoder, over: int) -> Example:
        """`example` with so many tokens less in what is given, as far as that goes; of talks nothing is left out."""
        return example

    def score(self, written: Sequence[str], examples: Sequence[Example]) -> dict[str, float]:
        """Metrics of what was `written` to what is given in each of `examples`; {}: there are none."""
        return {}

    def label_names(self, example: Example) -> Iterable[str]:
        return iter(())

    def labels(self, counted: Counter[str]) -> Labels:
        return Labels((), ())

    def rows(self, examples: Sequence[Example], labels: Labels, encoder: RowEncoder) -> list[list[Row]]:
        if encoder.ends is not None:
            return [[_two_sides(encoder, self.talk(example))] for example in examples]
        return [[self._row(example, encoder)] for example in examples]

    def _row(self, example: Example, encoder: RowEncoder) -> Row:
        ids, targets = read_talk(encoder, self.talk(example))
        cut = len(ids) > encoder.length
        if cut:
            ids, targets = read_talk(
                encoder, self.talk(self.fit(example, encoder, len(ids) - encoder.length))
            )
        return {
            "input_ids": ids[: encoder.length],
            "targets": targets[: encoder.length],
            "places": [],
            "cut": [int(cut)],
        }

    def together(self, rows: Iterable[list[Row]], encoder: RowEncoder) -> Iterator[list[Row]]:
        if encoder.ends is not None:
            yield from rows
            return
        window: Row = {"input_ids": [], "targets": [], "places": [], "cut": [0]}
        for (row,) in rows:
            if len(window["input_ids"]) + len(row["input_ids"]) > encoder.length:
                yield [window]
                window = {"input_ids": [], "targets": [], "places": [], "cut": [0]}
            window = {
                "input_ids": [*window["input_ids"], *row["input_ids"]],
                "targets": [*window["targets"], *row["targets"]],
                "places": [*window["places"], *range(len(row["input_ids"]))],
                "cut": [int(window["cut"][0] or row["cut"][0])],
            }
        if window["input_ids"]:
            yield [window]

    def batch(self, rows: Sequence[Row], pad: int) -> Batch:
        if "places" not in rows[0]:
            return inputs_of(rows, pad) | {"labels": padded([row["targets"] for row in rows], IGNORED)}
        length = max(len(row["input_ids"]) for row in rows) if self.fixed is None else self.fixed
        ids = torch.full((len(rows), length), pad)
        labels = torch.full((len(rows), length), IGNORED)
        positions = torch.zeros(len(rows), length, dtype=torch.int64)
        for at, row in enumerate(rows):
            count = len(row["input_ids"])
            ids[at, :count] = torch.tensor(row["input_ids"])
            labels[at, :count] = torch.tensor(row["targets"])
            positions[at, :count] = torch.tensor(row["places"])
            positions[at, count:] = torch.arange(length - count)  # what fills up is a talk of its own
        return {"input_ids": ids, "labels": labels, "position_ids": positions}

    def blank(self, row: Row) -> Row:
        return row | {"targets": [IGNORED] * len(row["targets"])}


def _two_sides(encoder: RowEncoder, messages: list[Message]) -> Row:
    """What an encoder reads and a decoder writes, each ended by its mark, each at most `length` tokens."""
    assert encoder.ends is not None
    sides, cut = [], False
    for message in messages:
        ids = encoder.tokenizer.encode(message["content"], add_special_tokens=encoder.ends.frames).ids
        ids = ids if ids[-1:] == [encoder.ends.end] else [*ids, encoder.ends.end]
        cut |= len(ids) > encoder.length
        sides.append(ids if len(ids) <= encoder.length else [*ids[: encoder.length - 1], encoder.ends.end])
    return {"input_ids": sides[0], "targets": sides[1] if len(sides) > 1 else [], "cut": [int(cut)]}
