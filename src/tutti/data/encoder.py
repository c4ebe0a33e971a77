"""Texts to arrays of token numbers.

A tokenizer of characters is a table from code points to numbers: NumPy looks them up forty times as fast as a
tokenizer that makes an object of every token.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from tutti.data.settings import UNKNOWN
from tutti.data.tokenizer import load_for_encoding

_CODE_POINTS = 0x110000


class TextEncoder:
    """The tokenizer of `directory`; text that looks like a special token is taken as text."""

    def __init__(self, directory: Path) -> None:
        self._tokenizer = load_for_encoding(directory)
        self._table = _table_of_characters(self._tokenizer)

    def encode(self, texts: Sequence[str]) -> list[NDArray[np.int64]]:
        """Token numbers of each text."""
        if self._table is not None:
            return [self._table[np.frombuffer(text.encode("utf-32-le"), dtype="<u4")] for text in texts]
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.int64) for encoding in encodings]


def _table_of_characters(tokenizer: Tokenizer) -> NDArray[np.int64] | None:
    """[code points] → token number, when `tokenizer` is one that `train_characters` made; else None."""
    model = json.loads(tokenizer.to_str())["model"]
    if model.get("unk_token") != UNKNOWN or model.get("merges") != []:
        return None
    table = np.full(_CODE_POINTS, tokenizer.token_to_id(UNKNOWN), dtype=np.int64)
    for token, number in model["vocab"].items():
        if len(token) == 1:
            table[ord(token)] = number
    return table
