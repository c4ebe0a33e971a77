"""Talks as tokens: what a served model is given before its answer. Special tokens that somebody types are text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError

from tutti.core.errors import TuttiError
from tutti.serve.refusal import Refusal
from tutti.serve.service import Turn
from tutti.tasks import RowEncoder
from tutti.tasks.talk import begin_turn


def learned_turn(encoder: RowEncoder) -> Turn:
    """As the model learned it: its run's `encoder` reads."""

    return _refusing(lambda messages: begin_turn(encoder, messages))


def turn_of(tokenizer: Any) -> Turn | None:
    """As the chat template of `tokenizer` (transformers') has it; None: it has none."""
    if not tokenizer.chat_template:
        return None

    def turn(messages: Sequence[dict[str, str]]) -> list[int]:
        ids: list[int] = tokenizer.apply_chat_template(
            list(messages), add_generation_prompt=True, return_dict=False, sanitize_control_tokens=True
        )
        return ids

    return _refusing(turn)


def _refusing(turn: Turn) -> Turn:
    """`turn`, which raises Refusal where the template has no room for a talk, or a token cannot be spelled as text."""

    def refusing(messages: Sequence[dict[str, str]]) -> list[int]:
        try:
            return turn(messages)
        except (TemplateError, ValueError) as error:
            said = error.problem if isinstance(error, TuttiError) else error
            raise Refusal(400, f"messages: {said}", param="messages") from error

    return refusing
