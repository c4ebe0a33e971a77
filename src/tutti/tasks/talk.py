"""Talks as tokens: what a chat template makes of messages, and which of it a model learns.

The frame that a template writes around messages and what people wrote become tokens apart from each other: special
tokens are such in the frame alone. What a model is given to answer is, token by token, what stood before the answers
that it learned from.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tutti.core import DataError
from tutti.tasks.chunked_loss import IGNORED
from tutti.tasks.task import RowEncoder

#: A message: `role` and `content`, as OpenAI has them.
Message = dict[str, str]
#: Stands for a message's text while the template is filled in: private use, so no template changes it.
_MARK = re.compile("\ue000(\\d+)\ue001")


class RefusedTalk(DataError):
    """A talk that the tokenizer's chat template has no room for."""


def give_template(directory: Path, template: str) -> None:
    """Give the tokenizer in `directory` a chat template, if it has none; exports take it along.

    Raises:
        DataError: it has no token that ends texts, which the template needs.
    """
    from transformers import AutoTokenizer  # takes seconds

    tokenizer: Any = AutoTokenizer.from_pretrained(str(directory), local_files_only=True)
    if not tokenizer.chat_template:
        if tokenizer.eos_token is None:
            raise DataError(
                "the tokenizer says neither how talks are written (chat_template) nor what ends a text (eos_token)",
                "name the token that ends texts as eos_token in its tokenizer_config.json",
            )
        (directory / "chat_template.jinja").write_text(template, encoding="utf-8")


def render(directory: Path | str) -> Callable[[list[Message]], str]:
    """messages → text, by the chat template of the tokenizer in `directory`; raises RefusedTalk."""
    from jinja2 import TemplateError
    from transformers import AutoTokenizer  # takes seconds

    tokenizer: Any = AutoTokenizer.from_pretrained(str(directory), local_files_only=True)

    def fill(messages: list[Message]) -> str:
        try:
            text: str = tokenizer.apply_chat_template(messages, tokenize=False)
        except TemplateError as error:
            roles = ", ".join(message["role"] for message in messages)
            raise RefusedTalk(
                f"the tokenizer's chat template refuses a talk of {roles[:80]}: {error}",
                "mend or delete it, or take a tokenizer whose template has room for it",
            ) from error
        return text

    return fill


def read_talk(encoder: RowEncoder, messages: list[Message]) -> tuple[list[int], list[int]]:
    """The talk as tokens, and behind each the next one where it is a target (−100: it is none)."""
    ids: list[int] = []
    learned: list[bool] = []
    speaks = False
    for message, some in _pieces(encoder, messages):
        ids += some
        if message is not None:
            speaks = message["role"] == "assistant"
            learned += [speaks] * len(some)
        else:
            end = _first_special(some, encoder) if speaks else 0
            learned += [at < end for at in range(len(some))]
    targets = [
        number if is_learned else IGNORED for number, is_learned in zip(ids[1:], learned[1:], strict=True)
    ]
    return ids[:-1], targets


def begin_turn(encoder: RowEncoder, messages: Sequence[Message]) -> list[int]:
    """What a model is given that is to answer `messages`: the tokens that `read_talk` has up to the answer."""
    answer, ids = {"role": "assistant", "content": ""}, list[int]()
    for message, some in _pieces(encoder, [*messages, answer]):
        if message is answer:
            break
        ids += some
    return ids


def begin_turns(encoder: RowEncoder, prompts: Sequence[str]) -> list[list[int]]:
    """The same, for each of `prompts` that somebody says."""
    return [begin_turn(encoder, [{"role": "user", "content": prompt}]) for prompt in prompts]


def end_of_turn(encoder: RowEncoder) -> int | None:
    """The token behind an assistant's message, which a model learns to end its turn with; None: there is none."""
    talk = [{"role": role, "content": ""} for role in ("user", "assistant")]
    *_, (_, behind) = _pieces(encoder, talk)
    end = _first_special(behind, encoder)
    return behind[end - 1] if end else None


def _pieces(encoder: RowEncoder, messages: Sequence[Message]) -> Iterator[tuple[Message | None, list[int]]]:
    """The tokens of a talk in order: each message's, and (None) those of the frame before it and behind the last."""
    assert encoder.render is not None, "made for a task that writes"
    marked = [message | {"content": f"\ue000{number}\ue001"} for number, message in enumerate(messages)]
    for place, piece in enumerate(_MARK.split(encoder.render(marked))):
        if place % 2:  # the number of a message
            message = messages[int(piece)]
            yield message, encoder.tokenizer.encode(message["content"], add_special_tokens=False).ids
        else:
            yield None, encoder.frames.encode(piece, add_special_tokens=False).ids


def _first_special(frame: Sequence[int], encoder: RowEncoder) -> int:
    """How many tokens of a frame behind a message end it: up to the first special one, which is learned."""
    return next((at + 1 for at, number in enumerate(frame) if number in encoder.specials), 0)
