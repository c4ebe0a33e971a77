"""Personal data that a model finds: a run with `task: tag`, whose entities are hidden."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tutti.core.errors import ConfigError
from tutti.serve.guard.asking import open_asker
from tutti.serve.guard.redact.spans import Span
from tutti.serve.guard.segments import cuts, segments


class Tagger:
    """The model of `place` reads a text segment by segment, so that what comes later changes nothing. `labels`: those
    of its labels that are hidden; None: all.

    Raises:
        TuttiError: there is no such model, or it does not tag words.
    """

    slow = True

    def __init__(self, place: Path, labels: list[str] | None) -> None:
        self._asker = open_asker(place, "tag")
        known = {name.partition("-")[2] for name in self._asker.labels.names} - {""}
        if unknown := set(labels or ()) - known:
            raise ConfigError(
                f"redact.labels: {place} does not know '{min(unknown)}'",
                f"it knows {', '.join(sorted(known))}",
            )
        self._hidden = known if labels is None else set(labels)

    def spans(self, text: str) -> list[Span]:
        places = [(start, part) for start, part in segments(text) if part.strip()]
        if not places:
            return []
        answers = self._asker.predict([part for _, part in places])
        return [
            span.moved(start)
            for (start, _), answer in zip(places, answers, strict=True)
            for span in self._of(answer)
        ]

    def _of(self, answer: dict[str, Any]) -> list[Span]:
        return [
            Span(one["start"], one["end"], one["label"])
            for one in answer["entities"]
            if one["label"] in self._hidden
        ]

    def cuts(self, text: str) -> list[int]:
        return cuts(text)
