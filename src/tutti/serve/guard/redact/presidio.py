"""What Microsoft Presidio finds, with its default recognizers, in English."""

from __future__ import annotations

from typing import Any

from tutti.core.errors import ConfigError
from tutti.redact.spans import Span

_HINT = "install them: pip install presidio-analyzer && python -m spacy download en_core_web_lg"


class Presidio:
    """Reads a text as a whole, as `Tagger` does.

    Raises:
        ConfigError: Presidio is not installed, or has no model of English.
    """

    slow = True

    def __init__(self) -> None:
        try:
            from presidio_analyzer import AnalyzerEngine
        except ImportError as error:
            raise ConfigError(
                "redact.presidio needs Microsoft Presidio and its English model", _HINT
            ) from error
        # It tries to fetch a model that is missing, and where it cannot it may end the program.
        try:
            self._engine: Any = AnalyzerEngine()
        except (Exception, SystemExit) as error:
            raise ConfigError(f"Microsoft Presidio does not start: {error!r}", _HINT) from error

    def spans(self, text: str) -> list[Span]:
        found = self._engine.analyze(text=text, language="en")
        return sorted(Span(one.start, one.end, one.entity_type) for one in found)

    def cuts(self, text: str) -> list[int]:
        return []
