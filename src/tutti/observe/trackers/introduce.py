"""What a run's own files say of it, for trackers; and what a tracker has to know again when the run is resumed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tutti.core import RunDirectory, read_events, write_json_atomically
from tutti.core.address import without_secrets
from tutti.observe.page import read_config
from tutti.observe.trackers.tracker import TrackedRun


def introduce(run: Path) -> TrackedRun:
    """The run at `run`."""
    run = run.absolute()
    title, home = RunDirectory(run).title, RunDirectory(run).whole.parent
    launched = list(read_events(run, "launched"))
    facts = launched[-1] if launched else {}
    tags = {"run": title, "tutti": str(facts.get("version", "")), "commit": str(facts.get("commit") or "")}
    # Addresses that alerts go to may be secrets; those that texts come from may have some in them.
    settings = {key: _shown(value) for key, value in read_config(run).items() if key != "alerts"}
    return TrackedRun(run, title, home, settings, {key: value for key, value in tags.items() if value})


def _shown(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _shown(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_shown(part) for part in value]
    return without_secrets(value) if isinstance(value, str) else value


class Memory:
    """What `tracker` remembers of the run at `run`: `tracked/TRACKER.json` there."""

    def __init__(self, run: Path, tracker: str) -> None:
        self._path = RunDirectory(run).tracked / f"{tracker}.json"

    def read(self) -> dict[str, str]:
        """Nothing where there is nothing, or nothing that can be read."""
        try:
            found = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def write(self, content: dict[str, str]) -> None:
        """Raises OSError where that is impossible."""
        self._path.parent.mkdir(exist_ok=True)
        write_json_atomically(self._path, content)
