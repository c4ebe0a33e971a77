"""Personal data that a model finds: a run with `task: tag`, whose entities are hidden."""

from __future__ import annotations

import threading
from pathlib import Path

from tutti.core.errors import ConfigError
from tutti.redact.spans import Span
from tutti.serve.guard.asking import open_asker


class Tagger:
    """The model of `place` reads a text as a whole: a name in its first sentence may depend on the last one. `labels`:
    those of its labels that are hidden; None: all.

    Raises:
        TuttiError: there is no such model, or it does not tag words.
    """

    slow = True

    def __init__(self, place: Path, labels: list[str] | None) -> None:
        self._asker, self._asking = open_asker(place, "tag"), threading.Lock()
        known = {name.partition("-")[2] for name in self._asker.labels.names} - {""}
        if unknown := set(labels or ()) - known:
            raise ConfigError(
                f"redact.labels: {place} does not know '{min(unknown)}'",
                f"it knows {', '.join(sorted(known))}",
            )
        self._hidden = known if labels is None else set(labels)

    def spans(self, text: str) -> list[Span]:
        if not text.strip():
            return []
        with self._asking:  # a model and its tokenizer belong to one text at a time
            entities = self._asker.predict([text])[0]["entities"]
        return [
            Span(one["start"], one["end"], one["label"]) for one in entities if one["label"] in self._hidden
        ]

    def cuts(self, text: str) -> list[int]:
        return []
