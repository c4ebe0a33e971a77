"""Who says what is harmful: a list of wordings, a model, a function. Each is told sentence by sentence."""

from __future__ import annotations

import re
import threading
from importlib.metadata import EntryPoint
from importlib.resources import files
from pathlib import Path
from typing import Any

from tutti.core.errors import ConfigError
from tutti.serve.guard.asking import open_asker

#: `KIND: regular expression`, a line each.
_LIST = "harmful.txt"


class Words:
    """The list that ships with Tutti. It knows wordings, not what is meant: see its head for its limits."""

    slow = False

    def __init__(self) -> None:
        lines = (files("tutti.serve.guard") / _LIST).read_text(encoding="utf-8").splitlines()
        rules = [line.split(": ", 1) for line in lines if line.strip() and not line.startswith("#")]
        kinds: dict[str, list[str]] = {}
        for kind, pattern in rules:
            kinds.setdefault(kind, []).append(rf"(?:{pattern})")
        self._kinds = {
            kind: re.compile(rf"\b(?:{'|'.join(some)})\b", re.IGNORECASE) for kind, some in kinds.items()
        }

    def harm(self, text: str) -> str | None:
        plain = " ".join(text.split())
        return next((kind for kind, pattern in self._kinds.items() if pattern.search(plain)), None)


class Classifier:
    """A model with `task: classify` whose `labels` mean harm, from `chance` on.

    Raises:
        TuttiError: there is no such model, or it does not know one of the labels.
    """

    slow = True

    def __init__(self, place: Path, labels: list[str], chance: float) -> None:
        self._asker, self._asking = open_asker(place, "classify"), threading.Lock()
        self._labels, self._chance = labels, chance
        if unknown := set(labels) - set(self._asker.labels.names):
            raise ConfigError(
                f"filter.labels: {place} does not know '{min(unknown)}'",
                f"it knows {', '.join(self._asker.labels.names)}",
            )

    def harm(self, text: str) -> str | None:
        if not text.strip():
            return None
        with self._asking:  # a model and its tokenizer belong to one text at a time
            scores = self._asker.predict([text])[0]["scores"]
        return next((label for label in self._labels if scores.get(label, 0.0) >= self._chance), None)


class Function:
    """`package.module:name` of a function: text → the kind of harm, or None.

    Raises:
        ConfigError: there is no such function.
    """

    slow = True

    def __init__(self, name: str) -> None:
        try:
            self._function: Any = EntryPoint(name, name, "tutti").load()
        except (ImportError, AttributeError, ValueError) as error:
            raise ConfigError(
                f"filter.function: cannot import {name!r}: {error}",
                "write package.module:name; is it on PYTHONPATH?",
            ) from error

    def harm(self, text: str) -> str | None:
        found = self._function(text)
        return None if found is None else str(found)
