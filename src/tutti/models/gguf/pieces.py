"""SentencePiece's BPEs, such as Llama 2's and Mistral's, as transformers keeps them in `tokenizer.json`.

A space is "▁" there, and what is in no token is written as bytes, `<0x0A>`. llama.cpp knows no merges of such a
tokenizer: it joins any two neighbours that make a token, the one with the highest score first. Merges do the same if
there is one for every way to make a token, and those of one token follow each other; their order is the scores then.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

_SPACE = "▁"
_PREPEND = {"type": "Prepend", "prepend": _SPACE}
_REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
_BYTE = re.compile("<0x[0-9A-F]{2}>")


def has_pieces(content: Mapping[str, Any]) -> bool:
    """Whether `content`, of a tokenizer.json, is of SentencePiece's kind."""
    return content["model"]["type"] == "BPE" and bool(content["model"].get("byte_fallback"))


def is_byte(token: str) -> bool:
    """Whether `token` is one byte."""
    return _BYTE.fullmatch(token) is not None


def why_no_pieces(content: Mapping[str, Any], merges: Sequence[Sequence[str]]) -> str | None:
    """Why llama.cpp would not make the same tokens, in words; None: it does."""
    if _begins_with_space(content) is None:
        return "treats spaces in a way of its own"
    vocabulary = content["model"]["vocab"]
    known = {(left, right) for left, right in merges}
    order = [left + right for left, right in merges]
    runs = sum(now != before for now, before in zip(order, [None, *order], strict=False))
    if runs != len(set(order)):
        return "does not merge in the order of its tokens"
    own = {token["content"] for token in content.get("added_tokens", ())}
    for token in vocabulary:
        if token in own or is_byte(token):
            continue
        for at in range(1, len(token)):
            left, right = token[:at], token[at:]
            if left in vocabulary and right in vocabulary and (left, right) not in known:
                return f"does not make {token!r} of {left!r} and {right!r}"
    return None


def say_pieces(
    writer: Any, content: Mapping[str, Any], merges: Sequence[Sequence[str]], entries: int
) -> None:
    """Tell `writer` the kind, the scores of all `entries`, and where spaces are put."""
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_add_space_prefix(bool(_begins_with_space(content)))
    score = {token: -float(rank) for rank, token in enumerate(dict.fromkeys(a + b for a, b in merges), 1)}
    names = {number: token for token, number in content["model"]["vocab"].items()}
    writer.add_token_scores([score.get(names.get(number, ""), 0.0) for number in range(entries)])


def _begins_with_space(content: Mapping[str, Any]) -> bool | None:
    """Whether a space is put before a text; None: spaces are not treated as SentencePiece does."""
    normalizer, before = content.get("normalizer"), content.get("pre_tokenizer")
    if before is None and normalizer is not None:
        steps = normalizer["normalizers"] if normalizer["type"] == "Sequence" else [normalizer]
        return {1: False, 2: True}[len(steps)] if steps in ([_REPLACE], [_PREPEND, _REPLACE]) else None
    if normalizer is not None or before is None or before["type"] != "Metaspace":
        return None
    if before.get("replacement") != _SPACE or before.get("split", True):
        return None
    return bool(before.get("prepend_scheme", "always") != "never")
