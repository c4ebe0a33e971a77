"""Which tokens make up one word, so that it can be masked as a whole.

A token goes on with the word before it where letters or digits meet without anything between, where WordPiece says so
(`##`), or where it begins in the middle of a character's bytes. Scripts that are written without spaces (Chinese,
Japanese, Thai and their neighbours) have no words here: each of their characters stands alone.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from tutti.data.token_bytes import kinds_of, text_of
from tutti.tasks.words import SPACELESS


@dataclass(frozen=True)
class WordEdges:
    """Of each token [V]: whether it goes on with a word that is open before it, whether it leaves one open behind it,
    and whether it goes on with whatever is before it."""

    joins_left: NDArray[np.bool_]
    joins_right: NDArray[np.bool_]
    continues: NDArray[np.bool_]

    @classmethod
    def of(cls, tokenizer: Tokenizer, vocabulary: int) -> WordEdges:
        """Those of the tokens of `tokenizer`, which has numbers below `vocabulary`."""
        left, right, on = (np.zeros(vocabulary, dtype=np.bool_) for _ in range(3))
        description = json.loads(tokenizer.to_str())
        special = {item["id"] for item in description.get("added_tokens", []) if item["special"]}
        kinds = kinds_of(description)
        letters = {letter: byte for byte, letter in bytes_to_unicode().items()}  # type: ignore[no-untyped-call]
        for token, number in tokenizer.get_vocab(with_added_tokens=True).items():
            if number in special or not token:
                continue
            if "ByteLevel" in kinds and all(letter in letters for letter in token):
                raw = bytes(letters[letter] for letter in token)
                on[number] = raw[0] & 0b1100_0000 == 0b1000_0000  # not the first byte of a character
                text = raw.decode(errors="replace")
            else:
                text = text_of(token, kinds)
                on[number] = "WordPiece" in kinds and token.startswith("##")
            left[number], right[number] = _of_word(text[:1]), _of_word(text[-1:])
        if (
            "WordPiece" in kinds
        ):  # which has dropped the spaces: neighbours without `##` are words of their own
            left[:] = False
        return cls(left, right, on)

    def words(self, tokens: NDArray[np.int64]) -> NDArray[np.int64]:
        """[L] the word, counted from 0, that each of `tokens` [L] belongs to."""
        if not len(tokens):
            return np.empty(0, dtype=np.int64)
        joined = self.continues[tokens]
        joined[1:] |= self.joins_left[tokens[1:]] & self.joins_right[tokens[:-1]]
        joined[0] = True  # what was before it is not here
        return np.cumsum(~joined)


def _of_word(character: str) -> bool:
    """Whether words are made of `character`."""
    if not character or not character.isalnum():
        return False
    return not any(first <= ord(character) <= last for first, last in SPACELESS)
