"""Files, and rows of them, that were left out because they cannot be read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from tutti.core.address import without_secrets
from tutti.data.manifest import Skipped

#: So many are named.
_NAMED = 100


@dataclass
class Skips:
    """All are counted, the first are named: a file may have millions of bad rows."""

    number: int = 0
    named: list[Skipped] = field(default_factory=list)

    def add(self, name: str, reason: str) -> None:
        """One more: a file, or `file:line`."""
        self.extend(1, (Skipped(name=without_secrets(name), reason=reason),))

    def extend(self, number: int, named: Iterable[Skipped]) -> None:
        """So many more, of which some are named."""
        self.number += number
        self.named = [*self.named, *named][:_NAMED] if len(self.named) < _NAMED else self.named

    def copy(self) -> Skips:
        """As it is now."""
        return Skips(self.number, list(self.named))
