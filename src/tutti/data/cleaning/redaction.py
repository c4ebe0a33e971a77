"""Personal data that has a form of its own, replaced by its kind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from tutti.data.listing import Kind
from tutti.redact import Patterns, mask


class Redaction:
    """`kinds`: which; None: all."""

    name = "redact"

    def __init__(self, kinds: Sequence[str] | None) -> None:
        self._patterns = Patterns(kinds, sure=True)

    def apply(self, text: str, kind: Kind, found: Counter[str]) -> str:
        return mask(text, self._patterns, found)
