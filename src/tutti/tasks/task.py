"""What a task with labelled examples is: from a record of the user's to rows of tokens, a loss, answers and a metric.

A task is asked in this order:

    example   is this record one of mine? In one plain form, whatever its file looked like.
    rows      what a model reads of it: columns of whole numbers. A long example may take several rows.
    batch     rows side by side, padded.
    objective the loss, and the model's *answers*: a row of numbers for each row that it was given.
    score     what the answers of a whole part are worth, by libraries that the field trusts.
    decode    the answers in the user's words.

Answers are numbers in a table of fixed width, so they are gathered from many machines by adding up tables, of which
each machine filled its own rows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor, nn

from tutti.config.task import FIELDS, RegulariseConfig, TaskConfig
from tutti.core import Batch, DataError, Objective, RunError
from tutti.core.record import Asked
from tutti.core.record import Record as Record
from tutti.tasks.dense import packed

#: An example in a task's plain form: what JSON can say.
Example = dict[str, Any]
#: What a model reads of an example, or of a part of it: columns of whole numbers, each of its own length.
Row = dict[str, Sequence[int]]
#: Stands between labels in a text of which they are the words: their names may hold spaces.
BETWEEN = "\t"
#: [rows, width] float64: what a model answered.
Answers = NDArray[np.float64]


class Rows(Protocol):
    """The rows of a part, in order."""

    #: [rows]: which example each is of.
    example: NDArray[np.int64]

    def __len__(self) -> int: ...

    def __getitem__(self, number: int) -> Row: ...


@dataclass(frozen=True)
class Labels:
    """The names of the labels, in the order of their numbers; `counts`: examples (or tokens) of each to train on."""

    names: tuple[str, ...]
    counts: tuple[int, ...]

    @cached_property
    def numbers(self) -> dict[str, int]:
        """The number of each label, by its name."""
        return {name: number for number, name in enumerate(self.names)}


class Ends(NamedTuple):
    """How texts end for an encoder-decoder: the `end` token; `frames`: the tokenizer frames a text with it itself."""

    end: int
    frames: bool


@dataclass(frozen=True)
class RowEncoder:
    """How text becomes rows: at most `length` tokens in each, `pad` for what is not there.

    `types`: whether the model tells first and second texts apart (`token_type_ids`). `render`: what writes talks
    (`tasks.talk`), for tasks that have them. `ends`: of an encoder-decoder.
    """

    tokenizer: Tokenizer
    length: int
    pad: int
    types: bool
    render: Callable[[list[dict[str, str]]], str] | None = None
    ends: Ends | None = None

    @cached_property
    def frames(self) -> Tokenizer:
        """The same tokenizer, for which special tokens in a text are such."""
        other = Tokenizer.from_str(self.tokenizer.to_str())
        other.encode_special_tokens = False
        return other

    @cached_property
    def specials(self) -> frozenset[int]:
        """Numbers of the special tokens."""
        known = self.tokenizer.get_added_tokens_decoder()
        return frozenset(number for number, token in known.items() if token.special)

    def room(self, texts: int) -> int:
        """Tokens that a row has for so many texts (one, or a pair) beside the special tokens around them.

        Raises:
            DataError: not one for each: what is cut to that has nothing left, or grows beyond the row.
        """
        around = self.tokenizer.num_special_tokens_to_add(texts > 1)
        if self.length < around + texts:
            what = "a text" if texts == 1 else "two texts"
            raise DataError(
                f"a row of {self.length} tokens has no room for {what} beside the {around} special tokens of the "
                "tokenizer",
                f"set data.sequence to {around + texts} at the very least, better to as many tokens as your texts have",
            )
        return self.length - around


class TextTask(ABC):
    """What a kind of task makes of the user's records."""

    #: As in `task.kind`.
    kind: ClassVar[str]
    #: What happens to an example that is longer than the model reads at once, in words.
    long: ClassVar[str]
    #: What the counts of its labels count.
    counted: ClassVar[str] = "examples"
    #: The field that a mere text is, where one is asked about; None: it takes more than a text.
    asked: ClassVar[str | None] = "text"
    #: What its labels are called.
    noun: ClassVar[str] = "labels"
    #: What its tokens are: pieces of `text`, or `labels`.
    words: ClassVar[Literal["text", "labels"]] = "text"
    #: Whether every label must be among those to train on.
    closed: ClassVar[bool] = True
    #: Whether equal examples are one, and none to be judged by may be among those to train on.
    distinct: ClassVar[bool] = True
    #: Version of what is kept of its examples: raised where rows hold something else, or text is cut otherwise.
    layout: ClassVar[int] = 0
    #: Tokens of every row, where they have to be equally many; None: as many as the longest of a batch has.
    fixed: int | None = None
    #: Rows of a sample: above 1, rows are judged by each other, and drawn together anew in every epoch.
    group: int = 1

    def __init__(self, config: TaskConfig, regularise: RegulariseConfig | None = None) -> None:
        self.config = config
        self.regularise = regularise or RegulariseConfig()

    @abstractmethod
    def example(self, record: Record, *, labelled: bool = True) -> Example:
        """`record` in the plain form; `labelled`: with its label, or whatever is to be learned.

        Raises:
            DataError: a field is missing, or holds what it cannot.
        """

    @abstractmethod
    def texts(self, example: Example) -> list[str]:
        """The texts that `example` consists of: what identifies it when duplicates are looked for."""

    @abstractmethod
    def label_names(self, example: Example) -> Iterable[str]:
        """The labels that `example` has, each as often as it counts."""

    def labels(self, counted: Counter[str]) -> Labels:
        """The labels of training examples in which each name was `counted` so often.

        Raises:
            DataError: there is nothing to tell apart.
        """
        names = sorted(counted)
        if len(names) < 2:
            there_is = f"only the label '{names[0]}'" if names else "no label at all"
            raise DataError(
                f"the training examples have {there_is}", "there must be two or more to tell apart"
            )
        return Labels(tuple(names), tuple(counted[name] for name in names))

    @abstractmethod
    def rows(self, examples: Sequence[Example], labels: Labels, encoder: RowEncoder) -> list[list[Row]]:
        """The rows of each of `examples` (with what is to be learned, where they have it)."""

    @abstractmethod
    def batch(self, rows: Sequence[Row], pad: int) -> Batch:
        """`rows` as tensors [B, …]."""

    @abstractmethod
    def blank(self, row: Row) -> Row:
        """`row` with nothing to learn."""

    def order(self, rows: Rows, dice: np.random.Generator) -> NDArray[np.int64]:
        """[rows]: an order in which those behind each other are one sample, where `group` is above 1."""
        return dice.permutation(len(rows))

    def together(self, rows: Iterable[list[Row]], encoder: RowEncoder) -> Iterator[list[Row]]:
        """`rows` of one example after another, as they are to be stored."""
        return iter(rows)

    def as_records(self, records: Sequence[Asked]) -> list[Record]:
        """`records` (texts, or the fields of examples as the user's files have them) with a place for each.

        Raises:
            RunError: there are texts, and the task takes more.
        """
        if self.asked is None and any(isinstance(record, str) for record in records):
            raise RunError(
                f"this model learned to {self.kind}, and is asked with more than a text: "
                f"{', '.join(FIELDS[self.kind][:-1])}",
                "give a file with these fields: `tutti predict RUN --file FILE`",
            )
        called = self.config.fields.get(str(self.asked), str(self.asked))
        found = []
        for number, one in enumerate(records, 1):
            if not isinstance(one, Record):
                one = Record(f"record {number}", {called: one} if isinstance(one, str) else one)
            found.append(one)
        return found

    def asked_about(self, records: Sequence[Asked]) -> list[Example]:
        """`records` as examples to be asked about.

        Raises:
            TuttiError: a record is none of the task's.
        """
        return [self.example(record, labelled=False) for record in self.as_records(records)]

    # What tasks share -----------------------------------------------------------------------------------------

    def field(self, record: Record, name: str) -> Any:
        """What `record` has in the field `name` (or what the user calls it).

        Raises:
            DataError: it has none.
        """
        called = self.config.fields.get(name, name)
        if called not in record.fields:
            there_are = ", ".join(map(str, list(record.fields)[:8]))
            raise DataError(
                f"{record.origin} has no field '{called}' (it has {there_are})",
                f"say what yours is called, task.fields: {{{name}: …}}; {self.kind} takes "
                f"{', '.join(FIELDS[self.kind])}",
            )
        return record.fields[called]

    def has(self, record: Record, name: str) -> bool:
        """Whether `record` has the field `name`; one that the user named must be there."""
        return name in self.config.fields or name in record.fields

    def text_field(self, record: Record, name: str) -> str:
        """The text in the field `name`.

        Raises:
            DataError: it is missing, no text, or empty.
        """
        value = self.field(record, name)
        if not isinstance(value, str):
            raise DataError(
                f"{record.origin}: '{self.config.fields.get(name, name)}' is {type(value).__name__}, not text",
                "mend the record, or name another field with task.fields",
            )
        if not value.strip():
            raise EmptyText(
                f"{record.origin}: '{self.config.fields.get(name, name)}' is empty",
                "mend or delete the record",
            )
        return value


class Task(TextTask):
    """One kind of task whose model answers, with its settings."""

    #: The metric that says which of two models is better; more is better.
    main: str

    @abstractmethod
    def objective(self, model: nn.Module, labels: Labels) -> Objective:
        """`model` and its loss, answering in its `answers`."""

    @abstractmethod
    def width(self, rows: Rows, labels: Labels, model: nn.Module) -> int:
        """Numbers in the answer of `model` to a row, at most."""

    @abstractmethod
    def score(
        self, answers: Answers, rows: Rows, examples: Sequence[Example], labels: Labels
    ) -> dict[str, float]:
        """Metrics by name, `main` among them."""

    @abstractmethod
    def decode(
        self, answers: Answers, rows: Rows, examples: Sequence[Example], labels: Labels
    ) -> list[dict[str, Any]]:
        """A prediction for each of `examples`, as JSON has it."""

    def alone(self, row: Row) -> Row:
        """`row` as it is asked about by itself."""
        return row

    def exported(self, model: nn.Module, length: int) -> dict[str, str]:
        """Files that others need beside the exported `model`, which reads `length` tokens: content by name."""
        return {}


class EmptyText(DataError):
    """A record without text; the policy `skip` leaves it out."""


def padded(columns: Sequence[Sequence[int]], filler: int) -> Tensor:
    """`columns` side by side, [B, longest] int64, filled up with `filler`."""
    longest = max(map(len, columns), default=0)
    table = np.full((len(columns), longest), filler, dtype=np.int64)
    for line, column in zip(table, columns, strict=True):
        line[: len(column)] = column
    return torch.from_numpy(table)


def inputs_of(rows: Sequence[Row], pad: int) -> dict[str, Tensor]:
    """What every encoder takes: `input_ids`, `attention_mask` and, where rows have them, `token_type_ids`."""
    batch = {
        "input_ids": padded([row["input_ids"] for row in rows], pad),
        "attention_mask": padded([[1] * len(row["input_ids"]) for row in rows], 0),
    }
    if "token_type_ids" in rows[0]:
        batch["token_type_ids"] = padded([row["token_type_ids"] for row in rows], 0)
    return batch


def run_encoder(model: nn.Module, batch: Batch) -> Tensor:
    """The logits of a Hugging Face model with a head, fp32."""
    names = ("input_ids", "attention_mask", "token_type_ids")
    with packed(batch["attention_mask"]):
        logits: Tensor = model(**{name: batch[name] for name in names if name in batch}).logits
    return logits.float()
