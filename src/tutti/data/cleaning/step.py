"""What a step of cleaning is: a text in; a text out, or the reason why it is left out."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple, Protocol

from tutti.core.errors import DataError
from tutti.data.listing import Kind


class Dropped(NamedTuple):
    """The text is left out."""

    why: str


class Step(Protocol):
    """`name`: as reports call it."""

    name: str

    def apply(self, text: str, kind: Kind, found: Counter[str]) -> str | Dropped:
        """What becomes of `text`, which comes from a file of `kind`; what was done is added to `found`."""


def not_installed(what: str, library: str) -> DataError:
    """A step that needs a library that is not there."""
    return DataError(f"{what} needs {library}, which is not installed", "pip install 'tutti[data]'")
