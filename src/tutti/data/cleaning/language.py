"""Texts in other languages than those that are wanted (py3langid: 97 languages, a file of 5 MB, no connection)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from tutti.core.errors import DataError
from tutti.data.cleaning.step import Dropped, not_installed
from tutti.data.listing import Kind

#: So many characters tell the language.
_LOOKED_AT = 2000


class Language:
    """By the language that is likeliest for the beginning of a text.

    Raises:
        DataError: py3langid is not installed, or does not know one of `wanted`.
    """

    name = "language"

    def __init__(self, wanted: Sequence[str]) -> None:
        try:
            from py3langid import langid
        except ImportError as error:
            raise not_installed("data.clean.languages", "py3langid") from error
        library: Any = langid
        self._identifier = library.LanguageIdentifier.from_model_file(library.MODEL_FILE)
        known = set(self._identifier.labels)
        if unknown := set(wanted) - known:
            raise DataError(
                f"data.clean.languages: '{min(unknown)}' is no language that py3langid knows",
                f"it knows {', '.join(sorted(known))}",
            )
        self._wanted = frozenset(wanted)

    def apply(self, text: str, kind: Kind, found: Counter[str]) -> str | Dropped:
        language = str(self._identifier.classify(text[:_LOOKED_AT])[0])
        return text if language in self._wanted else Dropped(language)
