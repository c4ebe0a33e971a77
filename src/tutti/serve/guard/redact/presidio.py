"""What Microsoft Presidio finds, with its default recognizers, in English."""

from __future__ import annotations

from typing import Any

from tutti.core.errors import ConfigError
from tutti.redact.spans import Span


class Presidio:
    """Reads a text as a whole, as `Tagger` does.

    Raises:
        ConfigError: Presidio is not installed.
    """

    slow = True

    def __init__(self) -> None:
        try:
            from presidio_analyzer import AnalyzerEngine
        except ImportError as error:
            raise ConfigError(
                "redact.presidio needs Microsoft Presidio and its English model",
                "install them: pip install presidio-analyzer && python -m spacy download en_core_web_lg",
            ) from error
        self._engine: Any = AnalyzerEngine()

    def spans(self, text: str) -> list[Span]:
        found = self._engine.analyze(text=text, language="en")
        return sorted(Span(one.start, one.end, one.entity_type) for one in found)

    def cuts(self, text: str) -> list[int]:
        return []
