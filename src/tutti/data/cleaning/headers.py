"""Comments about licence and copyright at the head of source code."""

from __future__ import annotations

import re
from collections import Counter

from tutti.data.listing import Kind

#: Lines that a program needs where they are.
_KEPT = re.compile(r"\A(?:#![^\n]*\n|#[^\n]*coding[:=][^\n]*\n|<\?(?:php|xml)[^\n]*\n)*")
#: What a line of a comment begins with; `#` and the others may as well begin code.
_MARKS = (
    r"//",
    r"--",
    r"%",
    r"#(?!!?\[|(?:include|import|define|undef|if|ifdef|ifndef|elif|else|endif|error|warning|pragma|region|line)\b)",
    r"[;!](?![\w(\[{$'\"])",
)
_COMMENT = re.compile(
    r"\s*(?:/\*.*?\*/[ \t]*\n?|<!--.*?-->[ \t]*\n?|\(\*.*?\*\)[ \t]*\n?|\{-.*?-\}[ \t]*\n?|"
    + "|".join(rf"(?:[ \t]*{mark}[^\n]*(?:\n|\Z))+" for mark in _MARKS)  # one kind of them together
    + ")",
    re.DOTALL,
)
_LEGAL = re.compile(
    r"copyright|©|licen[cs]e|SPDX-|all rights reserved|permission is hereby granted|warrant(?:y|ies)",
    re.IGNORECASE,
)


class Headers:
    """Takes them off; other comments stay."""

    name = "headers"

    def apply(self, text: str, kind: Kind, found: Counter[str]) -> str:
        if kind not in ("code", "python"):
            return text
        kept = _KEPT.match(text)
        start = kept.end() if kept else 0
        at, taken = start, start
        while comment := _COMMENT.match(text, at):
            if not _LEGAL.search(comment[0]):
                break
            at = taken = comment.end()
        return text if taken == start else text[:start] + text[taken:].lstrip("\r\n")
