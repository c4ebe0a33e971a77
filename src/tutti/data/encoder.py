"""Texts to arrays of token numbers.

A tokenizer of characters is a table from code points to numbers: NumPy looks them up forty times as fast as a
tokenizer that makes an object of every token.

Byte-level BPE takes short strings a third faster than long ones, so it is given short pieces where that changes
nothing.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from tutti.data.settings import SHORT_CHARACTERS, UNKNOWN
from tutti.data.tokenizer import load_for_encoding

#: Where a text can be cut without changing tokens (see `pieces`).
_BORDER = re.compile(r"[ \n](?=\S)")
_CODE_POINTS = 0x110000


class TextEncoder:
    """The tokenizer of `directory`; text that looks like a special token is taken as text. `unknown`: its token for
    what it does not know, if it has one.
    """

    def __init__(self, directory: Path) -> None:
        self._tokenizer = load_for_encoding(directory)
        state = json.loads(self._tokenizer.to_str())
        model = state["model"]
        self._table = _table_of_characters(self._tokenizer, model)
        self.unknown = _unknown_of(self._tokenizer, model)
        self._any_cut = _splits_as_pieces_do(state)

    def encode(self, texts: Sequence[str]) -> list[NDArray[np.int64]]:
        """Token numbers of each text."""
        if self._table is not None:
            return [self._table[np.frombuffer(text.encode("utf-32-le"), dtype="<u4")] for text in texts]
        if not self._any_cut:
            encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
            return [np.array(encoding.ids, dtype=np.int64) for encoding in encodings]
        cut = [list(_short_pieces(text)) for text in texts]
        encodings = self._tokenizer.encode_batch_fast(
            list(itertools.chain.from_iterable(cut)), add_special_tokens=False
        )
        each = iter(encodings)
        found = []
        for some in cut:
            ids = itertools.chain.from_iterable(
                encoding.ids for encoding in itertools.islice(each, len(some))
            )
            found.append(np.fromiter(ids, dtype=np.int64))
        return found


def _short_pieces(text: str) -> Iterator[str]:
    """`text` in pieces of about `SHORT_CHARACTERS`, longer where there is no border."""
    start = 0
    while len(text) - start > SHORT_CHARACTERS:
        border = _BORDER.search(text, start + SHORT_CHARACTERS // 2)
        if border is None:
            break
        yield text[start : border.start()]
        start = border.start()
    yield text[start:]


def _splits_as_pieces_do(state: dict[str, Any]) -> bool:
    """Whether the tokens of pieces of a text are those of the text, however short they are.

    So with byte-level BPE that splits by its own pattern and changes nothing before. Others may join punctuation with
    line ends, or put a sign before every text.
    """
    split = state.get("pre_tokenizer") or {}
    plain = (
        split.get("type") == "ByteLevel"
        and split.get("use_regex", True)
        and not split.get("add_prefix_space")
    )
    return bool(plain and state.get("normalizer") is None and state["model"]["type"] == "BPE")


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
