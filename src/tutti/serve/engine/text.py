"""Tokens as text while they come: letters of several tokens come out whole, and a stop text never does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

#: Of a letter that is not whole yet.
_BROKEN = "\ufffd"
#: Tokens that are decoded again with each new one; letters do not take more.
_COMPANY = 8


class Writer:
    """The text of one answer. `stop`: texts at which it ends."""

    def __init__(self, tokenizer: Any, prompt: Sequence[int], stop: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._stop = [text for text in stop if text]
        #: What was decoded is decoded again in the company of a few tokens: some spaces only show between others.
        self._tokens = list(prompt[-_COMPANY:])
        self._known = len(self._decode(self._tokens))
        self._held = ""
        self.stopped = False

    def add(self, token: int) -> str:
        """The text that is certain now."""
        self._tokens.append(token)
        whole = self._decode(self._tokens)
        if whole.endswith(_BROKEN) and len(whole) - self._known < _COMPANY:
            return ""
        self._held += whole[self._known :]
        self._tokens = self._tokens[-_COMPANY:]
        self._known = len(self._decode(self._tokens))
        return self._release()

    def end(self) -> str:
        """What was held back, in case more would come."""
        whole = self._decode(self._tokens)
        self._held += whole[self._known :]
        self._known = len(whole)
        certain = self._release()
        if self.stopped:
            return certain
        held, self._held = self._held, ""
        return certain + held

    def _release(self) -> str:
        """What cannot be the beginning of a stop text, of what is held."""
        if self.stopped:
            return ""
        ends = [at for stop in self._stop if (at := self._held.find(stop)) >= 0]
        if ends:
            self.stopped = True
            certain, self._held = self._held[: min(ends)], ""
            return certain
        keep = max((_overlap(self._held, stop) for stop in self._stop), default=0)
        certain, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return certain

    def _decode(self, tokens: list[int]) -> str:
        text: str = self._tokenizer.decode(
            tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text


def _overlap(text: str, stop: str) -> int:
    """Letters at the end of `text` that are the beginning of `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
