"""Dialogue and instruction tuning: a causal language model learns what the assistant says, and nothing else of a talk.

Examples are talks: OpenAI's `messages`, or a `prompt` and a `response`. The tokenizer's chat template writes them
(`DEFAULT_TEMPLATE` where it has none); targets are the tokens of the assistant's messages and the mark that ends each,
so that the model learns to stop. What people wrote is always text: it cannot put special tokens into a talk.

Talks stand side by side in windows of `data.sequence` tokens, and never see each other (`packing`). One that is longer
than a window loses its end.

Shapes: B windows, S tokens.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from tutti.core import Batch, DataError
from tutti.tasks.chunked_loss import IGNORED
from tutti.tasks.task import Example, Labels, Record, Row, RowEncoder, TextTask

ROLES = ("system", "user", "assistant")
#: Jinja, as transformers takes it.
DEFAULT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\\n' + message['content'] + eos_token + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
#: Stands for a message's text while the template is filled in: private use, so no template changes it.
_MARK = re.compile("\ue000(\\d+)\ue001")


class Chat(TextTask):
    """Examples `{messages: [{role, content}, …]}`; rows are windows of several talks."""

    kind = "chat"
    long = "their ends are cut off"

    def example(self, record: Record, *, labelled: bool = True) -> Example:
        if not self.has(record, "messages") and self.has(record, "prompt"):
            said = [
                ("user", self.text_field(record, "prompt")),
                ("assistant", self.text_field(record, "response")),
            ]
            return {"messages": [{"role": role, "content": content} for role, content in said]}
        messages = self.field(record, "messages")
        if not isinstance(messages, list) or not messages:
            raise DataError(
                f"{record.origin}: messages is no list of messages",
                'give messages: [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]',
            )
        found = [_message(record, message) for message in messages]
        if not any(message["role"] == "assistant" for message in found):
            raise DataError(
                f"{record.origin}: the assistant says nothing", "there must be something to learn in it"
            )
        return {"messages": found}

    def text(self, example: Example) -> str:
        return "\n".join(message["content"] for message in example["messages"])

    def label_names(self, example: Example) -> Iterable[str]:
        return iter(())

    def labels(self, counted: object) -> Labels:
        return Labels((), ())

    def rows(self, examples: Sequence[Example], labels: Labels, encoder: RowEncoder) -> list[list[Row]]:
        return [[_row(encoder, example["messages"])] for example in examples]

    def together(self, rows: Iterable[list[Row]], encoder: RowEncoder) -> Iterator[list[Row]]:
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


def give_template(directory: Path) -> None:
    """Give the tokenizer in `directory` the default chat template, if it has none; exports take it along."""
    from transformers import AutoTokenizer  # takes seconds

    tokenizer: Any = AutoTokenizer.from_pretrained(str(directory), local_files_only=True)
    if not tokenizer.chat_template:
        (directory / "chat_template.jinja").write_text(DEFAULT_TEMPLATE, encoding="utf-8")


def render(directory: Path | str) -> Callable[[list[dict[str, str]], bool], str]:
    """(messages, whether the assistant's turn begins) → text, by the chat template of the tokenizer in `directory`."""
    from transformers import AutoTokenizer  # takes seconds

    tokenizer: Any = AutoTokenizer.from_pretrained(str(directory), local_files_only=True)

    def fill(messages: list[dict[str, str]], begin: bool) -> str:
        text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=begin)
        return text

    return fill


def _message(record: Record, message: Any) -> dict[str, str]:
    role, content = (message.get(key) if isinstance(message, dict) else None for key in ("role", "content"))
    if role not in ROLES:
        raise DataError(f"{record.origin}: a message's role is {role!r}", f"roles are {', '.join(ROLES)}")
    if not isinstance(content, str):
        raise DataError(
            f"{record.origin}: a message's content is {type(content).__name__}, not text", "mend the record"
        )
    return {"role": role, "content": content}


def _row(encoder: RowEncoder, messages: list[dict[str, str]]) -> Row:
    """The talk as tokens, and behind each the next one where it is a target."""
    assert encoder.render is not None, "made for a task that renders"
    marked = [message | {"content": f"\ue000{number}\ue001"} for number, message in enumerate(messages)]
    pieces = _MARK.split(encoder.render(marked, False))
    ids: list[int] = []
    learned: list[bool] = []
    speaks = False
    for place, piece in enumerate(pieces):
        if place % 2:  # the number of a message
            message = messages[int(piece)]
            some = encoder.tokenizer.encode(message["content"], add_special_tokens=False).ids
            speaks = message["role"] == "assistant"
            ids += some
            learned += [speaks] * len(some)
        else:
            frame = encoder.frames.encode(piece, add_special_tokens=False)
            ids += frame.ids
            end = _first_special(frame, encoder) if speaks else 0
            learned += [at < end for at in range(len(frame.ids))]
    targets = [
        number if is_learned else IGNORED for number, is_learned in zip(ids[1:], learned[1:], strict=True)
    ]
    cut = len(ids) - 1 > encoder.length
    return {
        "input_ids": ids[:-1][: encoder.length],
        "targets": targets[: encoder.length],
        "places": [],
        "cut": [int(cut)],
    }


def _first_special(frame: Any, encoder: RowEncoder) -> int:
    """How many tokens of a frame behind a message end it: up to the first special one, which is learned."""
    return next((at + 1 for at, number in enumerate(frame.ids) if number in encoder.specials), 0)
