"""Results one by one as JSON in a folder: a benchmark of many runs that is interrupted goes on, also on another day."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Result = dict[str, Any]


class Kept:
    """Below `folder`, which is made. `machine`: is noted with every result that is measured now."""

    def __init__(self, folder: Path, machine: Result) -> None:
        self._folder, self._machine = folder, machine
        folder.mkdir(parents=True, exist_ok=True)

    def once(self, name: str, measure: Callable[[], Result]) -> Result | None:
        """What `measure` finds, kept as `name`; None: it was there already, and nothing is measured."""
        place = self._folder / f"{name}.json"
        if place.exists():
            return None
        found = measure() | {"machine": self._machine}
        beside = place.with_suffix(".new")
        beside.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        beside.rename(place)
        return found

    def all(self, pattern: str = "*") -> list[Result]:
        """Those whose names match `pattern`, by name."""
        return [json.loads(path.read_text()) for path in sorted(self._folder.glob(f"{pattern}.json"))]
