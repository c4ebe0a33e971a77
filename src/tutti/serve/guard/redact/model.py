"""Personal data that a model finds: a run with `task: tag`, whose entities are hidden."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tutti.core.errors import ConfigError
from tutti.redact.spans import Span
from tutti.serve.guard.asking import open_asker
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
            for (start, part), answer in zip(places, answers, strict=True)
            for span in self._of(answer, part)
        ]

    def _of(self, answer: dict[str, Any], text: str) -> list[Span]:
        """The entities that are hidden; what only space or a comma parts is one."""
        found: list[Span] = []
        for one in answer["entities"]:
            if one["label"] not in self._hidden:
                continue
            last = found[-1] if found and found[-1].kind == one["label"] else None
            if last is not None and not text[last.end : one["start"]].strip(" \t\n,.-/"):
                found[-1] = Span(last.start, one["end"], last.kind)
            else:
                found.append(Span(one["start"], one["end"], one["label"]))
        return found

    def cuts(self, text: str) -> list[int]:
        return cuts(text)
