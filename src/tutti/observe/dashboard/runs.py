"""What the first page shows: the runs that there are, each by the beginning and the end of its files."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from tutti.core import RunDirectory
from tutti.observe.figures import finite, run_state
from tutti.observe.history import slim, sort_events
from tutti.observe.progress import Progress
from tutti.observe.tail import Event, parse, when

#: So much of a file's beginning, and of its end, says where a run is.
_GLANCE_BYTES = 65536
_SEEN = (
    *("state", "step", "steps", "loss", "validation_loss"),
    *("tokens_per_second", "eta_seconds", "started", "last_event"),
)
#: Runs that are shown, the newest first.
_MOST_RUNS = 200


class Runs:
    """Of `directories`: each holds runs, or is one. A run is called by its path below them."""

    def __init__(self, directories: list[Path]) -> None:
        self._directories = directories
        self._lock = threading.Lock()
        self._known: dict[Path, tuple[object, dict[str, Any]]] = {}

    def find(self) -> dict[str, Path]:
        """Runs by their names; with several directories, the directory's name comes first where names are alike."""
        found: dict[str, Path] = {}
        for directory in self._directories:
            for run in find_runs(directory):
                name = str(run.relative_to(directory)) if run != directory else directory.absolute().name
                if name in found:
                    name = f"{directory.absolute().name}/{name}"
                number = 2
                while name in found:
                    name, number = f"{name} ({number})", number + 1
                found[name] = run
        return found

    def look(self) -> dict[str, Any]:
        """The newest runs, and how many are left out."""
        with self._lock:
            runs = self.find()
            newest = sorted(runs.items(), key=lambda item: _changed(item[1]), reverse=True)
            shown = [self._glance(name, run) for name, run in newest[:_MOST_RUNS]]
            self._known = {run: known for run, known in self._known.items() if run in set(runs.values())}
        return {
            "runs": sorted(shown, key=lambda run: (run["state"] != "running", -(run["started"] or 0.0))),
            "left_out": max(0, len(runs) - _MOST_RUNS),
            "directories": [str(directory) for directory in self._directories],
        }

    def _glance(self, name: str, run: Path) -> dict[str, Any]:
        mark = [(path.name, path.stat().st_size) for path in _files(run)]
        known = self._known.get(run)
        if known is None or known[0] != mark or known[1]["state"] == "running":
            try:
                seen = glance(run)
            except (ValueError, TypeError, AttributeError, KeyError):  # a file may hold anything
                seen = dict.fromkeys(_SEEN) | {"state": "unreadable", "step": 0}
            self._known[run] = known = (mark, seen)
        return known[1] | {"name": name}


def find_runs(directory: Path) -> list[Path]:
    """Runs in `directory`, or that it is itself; groups of a run and trials of a search are runs."""
    found: list[Path] = []
    for place in [directory, *sorted(_folders(directory))]:
        groups = RunDirectory(place).groups
        if RunDirectory(place).config.is_file() and not groups.is_dir():
            found.append(place)
        inside = [*_folders(groups), *_folders(place / "trials")]
        found += sorted(path for path in inside if RunDirectory(path).config.is_file())
    return list(dict.fromkeys(found))


def _folders(directory: Path) -> list[Path]:
    try:
        return [path for path in directory.iterdir() if path.is_dir()]
    except OSError:
        return []


def _files(run: Path) -> list[Path]:
    return sorted(RunDirectory(run).events.glob("rank-*.jsonl"))


def _changed(run: Path) -> float:
    return max((path.stat().st_mtime for path in (RunDirectory(run).config, *_files(run))), default=0.0)


def glance(run: Path) -> dict[str, Any]:
    """State and progress of the run at `run`, whatever the length of its files."""
    events = sorted((event for path in _files(run) for event in _ends(path)), key=when)
    progress = Progress()
    for event in events:
        progress.take(event)
    history = sort_events(slim(event) for event in events)
    state = run_state(run, history)
    last = history.validations[-1] if history.validations else {}
    return {
        "state": state,
        "step": max(progress.step, history.steps[-1].step if history.steps else 0),
        "steps": progress.steps or None,
        "loss": finite(progress.loss),
        "validation_loss": finite(last.get("loss")),
        "tokens_per_second": progress.tokens_per_second if state == "running" else None,
        "eta_seconds": progress.eta_seconds if state == "running" else None,
        "started": history.first_time or None,
        "last_event": history.last_time or None,
    }


def _ends(path: Path) -> list[Event]:
    """Events of a file's beginning and of its end."""
    try:
        with path.open("rb") as file:
            head = file.read(_GLANCE_BYTES)
            size = file.seek(0, 2)
            begin = file.seek(max(len(head), size - _GLANCE_BYTES))
            joined = head + (b"" if begin == len(head) else b"\n") + file.read()
    except OSError:
        return []
    lines = joined.split(b"\n")  # what is cut in two is no event, nor is what is in flight
    return [event for line in lines if (event := parse(line)) is not None]
