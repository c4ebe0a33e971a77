"""A token by itself, as bytes and as a word that can be printed."""

from __future__ import annotations

import json
import re
from codecs import getincrementaldecoder
from collections.abc import Sequence
from typing import Any

from transformers.convert_slow_tokenizer import bytes_to_unicode

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Words:
    """Of `tokenizer`, a fast one of transformers."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        description = json.loads(tokenizer.backend_tokenizer.to_str())
        of_letters = '"ByteLevel"' in json.dumps([description["pre_tokenizer"], description["decoder"]])
        self._bytes = {letter: byte for byte, letter in bytes_to_unicode().items()} if of_letters else {}  # type: ignore[no-untyped-call]
        self._special = set(tokenizer.all_special_ids)

    def bytes_of(self, token: int) -> bytes:
        """What `token` stands for; a letter may be made of several tokens."""
        piece: str = self._tokenizer.convert_ids_to_tokens(token) or ""
        if token not in self._special:
            if self._bytes and all(letter in self._bytes for letter in piece):
                return bytes(self._bytes[letter] for letter in piece)
            if (byte := _BYTE.fullmatch(piece)) is not None:
                return bytes([int(byte[1], 16)])
        text: str = self._tokenizer.decode([token], clean_up_tokenization_spaces=False)
        return text.encode()

    def word(self, token: int) -> str:
        """The text of it; where its bytes are none, as OpenAI writes them: `bytes:\\xe2\\x82`."""
        content = self.bytes_of(token)
        try:
            return content.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)

    def places(self, tokens: Sequence[int]) -> list[int]:
        """Where each of `tokens` begins in the text of all; those of one letter begin where it does."""
        decoder = getincrementaldecoder("utf-8")(errors="replace")
        found, letters = [], 0
        for token in tokens:
            word, told = self.word(token), decoder.decode(self.bytes_of(token))
            # Before a whole word there may be what is left of a letter that never became one.
            found.append(letters + (len(told) - len(word) if told.endswith(word) else 0))
            letters += len(told)
        return found
