"""How many bytes of text each token stands for, so that bits per byte do not depend on the tokenizer."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")


def bytes_of_tokens(tokenizer: Tokenizer, vocabulary: int) -> NDArray[np.int64]:
    """[V] UTF-8 bytes of text per token; 0 for special tokens and for numbers that are no token.

    Exact for byte-level BPE (each of its letters is a byte) and for characters. Tokenizers that change the
    text (lower case, an extra first space) have no exact answer; `prepare` compares the sum with the text.
    """
    description = json.loads(tokenizer.to_str())
    added = {item["id"]: item for item in description.get("added_tokens", [])}
    kinds = kinds_of(description)
    result = np.zeros(vocabulary, dtype=np.int64)
    for token, number in tokenizer.get_vocab(with_added_tokens=True).items():
        if number in added:
            result[number] = 0 if added[number]["special"] else len(added[number]["content"].encode())
        elif "ByteLevel" in kinds:
            result[number] = len(token)
        elif "ByteFallback" in kinds and _BYTE.fullmatch(token):
            result[number] = 1
        else:
            result[number] = len(text_of(token, kinds).encode())
    return result


def kinds_of(description: dict[str, Any]) -> set[str]:
    """How the tokenizer of `description` (its JSON) cuts text and puts it together again."""
    parts = ("model", "pre_tokenizer", "decoder")
    return set().union(*(_types(description.get(part)) for part in parts))


def text_of(token: str, kinds: set[str]) -> str:
    """The text that `token`, of a tokenizer of `kinds`, stands for; not for byte-level ones."""
    if "WordPiece" in kinds:
        return token.removeprefix("##")
    # SentencePiece writes a space as U+2581, through a Metaspace step or through a Replace in the decoder.
    return token.replace("\u2581", " ") if kinds & {"Metaspace", "Replace"} else token


def _types(node: Any) -> set[str]:
    """All `type` values in a part of a tokenizer's description."""
    if isinstance(node, list):
        return set().union(*(_types(item) for item in node)) if node else set()
    if not isinstance(node, dict):
        return set()
    here = {node["type"]} if isinstance(node.get("type"), str) else set()
    return here.union(*(_types(value) for name, value in node.items() if name not in ("vocab", "merges")))
