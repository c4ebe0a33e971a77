"""Sentence by sentence: what reads whole texts can so be asked about one that is still being written."""

from __future__ import annotations

from tutti.redact.spans import Redactor, Span
from tutti.serve.guard.segments import cuts, segments


class BySentence:
    """What `redactor` finds in each sentence alone: less than in all, but what comes later changes nothing."""

    def __init__(self, redactor: Redactor) -> None:
        self._redactor = redactor
        self.slow = redactor.slow

    def spans(self, text: str) -> list[Span]:
        return [
            span.moved(start)
            for start, sentence in segments(text)
            if sentence.strip()
            for span in self._redactor.spans(sentence)
        ]

    def cuts(self, text: str) -> list[int]:
        return cuts(text)
