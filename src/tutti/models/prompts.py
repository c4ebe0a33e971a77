"""A prompt as a causal model reads it.

It begins as every text that the model has learned from: with the token that its tokenizer puts there, if it does (as
Llama's and Gemma's do, which write badly without).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tutti.core import ModelError
from tutti.core.infilling import Sentinels


def read_prompt(tokenizer: Any, text: str) -> list[int]:
    """`text` to go on from, by `tokenizer` (transformers')."""
    return [*begin_of(tokenizer), *_plain(tokenizer, text)]


def before_and_after(tokenizer: Any, prompt: Sequence[int], suffix: str) -> list[int]:
    """What a model is given that is to write what stands between `prompt` and `suffix`.

    Raises:
        ModelError: its tokenizer has no marks for that.
    """
    sentinels = Sentinels.of(tokenizer.get_vocab().get)
    if sentinels is None:
        raise ModelError(
            "this model's tokenizer has no marks for text to be filled in",
            "leave the suffix out, or train with task: {kind: language_model, infill: 0.5}",
        )
    begin = begin_of(tokenizer)
    if list(prompt[: len(begin)]) != begin:
        begin = []
    return [*begin, *sentinels.ask(prompt[len(begin) :], _plain(tokenizer, suffix))]


def begin_of(tokenizer: Any) -> list[int]:
    """The `bos_token` that `tokenizer` puts before a text; empty: it puts none."""
    ids: list[int] = tokenizer("a")["input_ids"]
    return ids[:1] if len(ids) > 1 and ids[0] == tokenizer.bos_token_id else []


def _plain(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids
