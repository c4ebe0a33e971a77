"""What is done to a text on its way: judged, and redacted; whole, or as it comes."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from tutti.serve.guard.redact import Redactor, mask


class Judge(Protocol):
    """Says what harm is in a text. `slow`: see `Redactor`."""

    slow: bool

    def harm(self, text: str) -> str | None:
        """Its kind; None: there is none."""

    def cuts(self, text: str) -> list[int]:
        """Where `text` can be cut so that each part is judged by itself: as `Redactor.cuts`."""


@dataclass(frozen=True)
class Way:
    """What happens in one direction: None is nothing."""

    redactor: Redactor | None = None
    judge: Judge | None = None

    @property
    def open(self) -> bool:
        """Whether texts pass as they are."""
        return self.redactor is None and self.judge is None

    @property
    def slow(self) -> bool:
        """Whether it is not for an event loop."""
        return any(one is not None and one.slow for one in (self.redactor, self.judge))

    def cut(self, text: str) -> int:
        """The last place before which everything is certain."""
        known = [set(one.cuts(text)) for one in (self.redactor, self.judge) if one is not None]
        return max(set.intersection(*known), default=0) if known else len(text)


class Flow:
    """One text. `found`: counts what was hidden; `harm`: what it was broken off for."""

    def __init__(self, way: Way, found: Counter[str]) -> None:
        self._way, self._found = way, found
        self._held = ""
        self.harm: str | None = None

    def push(self, text: str) -> str:
        """What may leave now that `text` has come; nothing after harm."""
        self._held += text
        cut = self._way.cut(self._held)
        certain, self._held = self._held[:cut], self._held[cut:]
        return self._let_go(certain)

    def end(self) -> str:
        """What was held back."""
        rest, self._held = self._held, ""
        return self._let_go(rest)

    def _let_go(self, text: str) -> str:
        judge, redactor = self._way.judge, self._way.redactor
        if judge is not None and text and self.harm is None:
            borders = [0, *judge.cuts(text), len(text)]
            for start, end in itertools.pairwise(borders):
                self.harm = judge.harm(text[start:end])
                if self.harm is not None:
                    text = text[:start]
                    self._held = ""
                    break
        elif self.harm is not None:
            return ""
        return text if redactor is None else mask(text, redactor, self._found)


def whole(way: Way, text: str, found: Counter[str]) -> tuple[str, str | None]:
    """What may pass of `text`, and the harm that it was broken off for."""
    flow = Flow(way, found)
    return flow.push(text) + flow.end(), flow.harm


def joined_parts(content: Sequence[object]) -> str | None:
    """The text of a message that is given in parts, if all of them are texts: a model reads them as one."""
    parts = [
        part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None
        for part in content
    ]
    return "".join(map(str, parts)) if parts and all(isinstance(part, str) for part in parts) else None
