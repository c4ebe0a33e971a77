"""Text as it was meant: mojibake mended (ftfy), no control characters, line ends of one kind, NFC.

Quotes stay curly and signs of full width stay wide, and no entity of HTML is touched: all three may be meant.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from typing import Any

from tutti.data.cleaning.step import not_installed
from tutti.data.listing import Kind

#: What ftfy changes beside mojibake and what is not NFC: controls, line ends, ligatures, half pairs.
_TO_MEND = re.compile(
    "[\x00-\x08\x0b\x0d-\x1f\x7f\x80-\x9f\u0132\u0133\u0149\u01c4-\u01cc\u01f1-\u01f3\u2028\u2029\u206a-\u206f\ufb00-\ufb06"
    "\ufeff\ufff9-\ufffc\ud800-\udfff]"
)


class Unicode:
    """Raises DataError when ftfy is not installed."""

    name = "unicode"

    def __init__(self) -> None:
        try:
            import ftfy
            import ftfy.badness
        except ImportError as error:
            raise not_installed("data.clean.unicode", "ftfy") from error
        library: Any = ftfy
        self._fix = library.fix_text
        self._is_bad = library.badness.is_bad
        self._settings = library.TextFixerConfig(
            unescape_html=False, fix_character_width=False, uncurl_quotes=False, explain=False
        )

    def apply(self, text: str, kind: Kind, found: Counter[str]) -> str:
        control = _TO_MEND.search(text) is not None
        # What ftfy would leave as it is need not go through it line by line.
        if not control and (
            text.isascii() or not (self._is_bad(text) or not unicodedata.is_normalized("NFC", text))
        ):
            return text
        return str(self._fix(text, self._settings))
