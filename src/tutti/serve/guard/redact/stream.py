"""A text that comes in pieces, and leaves redacted exactly as it would have been in one piece."""

from __future__ import annotations

from collections import Counter

from tutti.serve.guard.redact.spans import Redactor, mask


class Stream:
    """Holds back what comes after the last cut of `redactor`, and no more. `found`: counts what was hidden."""

    def __init__(self, redactor: Redactor, found: Counter[str]) -> None:
        self._redactor, self._found = redactor, found
        self._held = ""

    def push(self, text: str) -> str:
        """What may leave now that `text` has come."""
        self._held += text
        cut = max(self._redactor.cuts(self._held), default=0)
        certain, self._held = self._held[:cut], self._held[cut:]
        return mask(certain, self._redactor, self._found)

    def end(self) -> str:
        """What was held back."""
        rest, self._held = self._held, ""
        return mask(rest, self._redactor, self._found)
