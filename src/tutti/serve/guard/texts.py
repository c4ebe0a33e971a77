"""What is done to a text on its way: judged, and redacted; whole, or as it comes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from tutti.serve.guard.redact import Redactor, mask
from tutti.serve.guard.segments import cuts, segments


class Judge(Protocol):
    """Says what harm is in a sentence. `slow`: see `Redactor`."""

    slow: bool

    def harm(self, text: str) -> str | None:
        """Its kind; None: there is none."""


@dataclass(frozen=True)
class Way:
    """What happens in one direction: None is nothing."""

    redactor: Redactor | None = None
    judges: tuple[Judge, ...] = ()

    @property
    def open(self) -> bool:
        """Whether texts pass as they are."""
        return self.redactor is None and not self.judges

    @property
    def slow(self) -> bool:
        """Whether it is not for an event loop."""
        return any(one is not None and one.slow for one in (self.redactor, *self.judges))

    def cut(self, text: str) -> int:
        """The last place before which everything is certain."""
        if self.open:
            return len(text)
        known = [cuts(text)] if self.judges else []
        known += [self.redactor.cuts(text)] if self.redactor is not None else []
        return max(set.intersection(*map(set, known)), default=0)

    def harm(self, text: str) -> str | None:
        """What any judge says of a sentence."""
        return next((harm for judge in self.judges if (harm := judge.harm(text)) is not None), None)


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
        if self.harm is not None:
            return ""
        if self._way.judges:
            for start, sentence in segments(text):
                self.harm = self._way.harm(sentence)
                if self.harm is not None:
                    text, self._held = text[:start], ""
                    break
        return text if self._way.redactor is None else mask(text, self._way.redactor, self._found)


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
