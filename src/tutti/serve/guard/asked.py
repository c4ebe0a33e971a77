"""The body of a request: what is asked, judged and redacted before the application hears of it."""

from __future__ import annotations

from collections import Counter
from typing import Any

from tutti.serve.guard.texts import Way, joined_parts, whole
from tutti.serve.refusal import Refusal

#: What holds no text for the model.
_NAMES = frozenset({"model", "role", "type", "encoding_format"})
_WRITES = frozenset({"/v1/chat/completions", "/v1/completions"})
#: How long an answer may be, as OpenAI's clients say it, and as others do beside it.
_BOUNDS, _OTHER_BOUNDS = ("max_completion_tokens", "max_tokens"), ("n_predict", "max_new_tokens")
#: What is written where nothing is said; a talk goes on for as long as it may.
USUAL_TOKENS = {"/v1/completions": 16, "/v1/answer": 256}
#: What holds what the model reads.
_PROMPTS = ("messages", "prompt", "suffix", "input", "text", "texts", "question", "context")


def let_in(asked: dict[str, Any], way: Way, found: Counter[str]) -> dict[str, Any]:
    """`asked` with every text in it redacted.

    Raises:
        Refusal: something in it is harmful, or is no text and so cannot be looked at.
    """
    if way.open:
        return asked
    for name in ("prompt", "input"):
        if not _is_text(asked.get(name)):
            raise Refusal(400, f"{name}: here it has to be text, for it is looked at", param=name)

    def change(value: Any) -> Any:
        if isinstance(value, str):
            text, harm = whole(way, value, found)
            if harm is not None:
                raise Refusal(400, f"this is not answered: it looks like {harm}", code="content_filter")
            return text
        if isinstance(value, list):
            together = joined_parts(value)
            return [change(one) for one in value] if together is None else change(together)
        if isinstance(value, dict):
            return {name: one if name in _NAMES else change(one) for name, one in value.items()}
        return value

    return {name: one if name in _NAMES else change(one) for name, one in asked.items()}


def prompt_of(asked: dict[str, Any]) -> dict[str, Any]:
    """What the model reads of it; numbers of tokens are only counted."""
    return {
        name: asked[name] if _is_text(asked[name]) else f"{len(asked[name])} tokens or lists of them"
        for name in _PROMPTS
        if name in asked
    }


def _is_text(value: Any) -> bool:
    """Whether one can look at it."""
    return not isinstance(value, list) or all(isinstance(one, str | dict) for one in value)


def bounded(asked: dict[str, Any], new_tokens: int | None, route: str) -> dict[str, Any]:
    """`asked` at `route` with an answer of at most `new_tokens`.

    Raises:
        Refusal: more are asked for.
    """
    if new_tokens is None:
        return asked
    for name in _OTHER_BOUNDS:
        if asked.get(name) is not None:
            raise Refusal(400, f"{name}: say max_tokens, which is bounded here", param=name)
    given = {name: asked[name] for name in _BOUNDS if asked.get(name) is not None}
    for name, value in given.items():
        if type(value) is not int or value < 1:  # others may take -1 for as many as there can be
            raise Refusal(400, f"{name}: a whole number from 1 on", param=name)
        if value > new_tokens:
            raise Refusal(400, f"{name}: an answer has at most {new_tokens} tokens here", param=name)
    if given:
        return asked
    return asked | {"max_tokens": min(new_tokens, USUAL_TOKENS.get(route, new_tokens))}


def texts_of(asked: dict[str, Any]) -> int:
    """How many answers are asked for: prompts times `n`. A list of tokens is one prompt."""
    prompts, n = asked.get("prompt"), asked.get("n")
    several = (
        prompts if isinstance(prompts, list) and not isinstance(next(iter(prompts), None), int) else [prompts]
    )
    return len(several) * (n if type(n) is int else 1)


def writes(asked: dict[str, Any], route: str) -> bool:
    """Whether a model is to write: also where it answers from documents."""
    return route in _WRITES or (route == "/v1/answer" and "question" in asked)
