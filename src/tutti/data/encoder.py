"""Texts to arrays of token numbers.

A tokenizer of characters is a table from code points to numbers: NumPy looks them up forty times as fast as a
tokenizer that makes an object of every token.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from tutti.data.settings import UNKNOWN
from tutti.data.tokenizer import load_for_encoding

_CODE_POINTS = 0x110000


class TextEncoder:
    """The tokenizer of `directory`; text that looks like a special token is taken as text. `unknown`: its token for
    what it does not know, if it has one.
    """

    def __init__(self, directory: Path) -> None:
        self._tokenizer = load_for_encoding(directory)
        model = json.loads(self._tokenizer.to_str())["model"]
        self._table = _table_of_characters(self._tokenizer, model)
        self.unknown = _unknown_of(self._tokenizer, model)

    def encode(self, texts: Sequence[str]) -> list[NDArray[np.int64]]:
        """Token numbers of each text."""
        if self._table is not None:
            return [self._table[np.frombuffer(text.encode("utf-32-le"), dtype="<u4")] for text in texts]
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.int64) for encoding in encodings]


def _unknown_of(tokenizer: Tokenizer, model: dict[str, Any]) -> int | None:
    """The token for what `tokenizer` does not know; None: it knows everything, as by bytes."""
    if model.get("unk_token") is not None:
        number: int | None = tokenizer.token_to_id(model["unk_token"])
        return number
    return model.get("unk_id") if not model.get("byte_fallback") else None


def _table_of_characters(tokenizer: Tokenizer, model: dict[str, Any]) -> NDArray[np.int64] | None:
    """[code points] → token number, when `tokenizer` is one that `train_characters` made; else None."""
    if model.get("unk_token") != UNKNOWN or model.get("merges") != []:
        return None
    table = np.full(_CODE_POINTS, tokenizer.token_to_id(UNKNOWN), dtype=np.int64)
    for token, number in model["vocab"].items():
        if len(token) == 1:
            table[ord(token)] = number
    return table
