"""What a tracker is told of a run. Each kind of tracker is one class in a module beside this one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

#: Of the runs, where nobody says anything else: MLflow's experiment, W&B's project.
COLLECTION = "tutti"


@dataclass(frozen=True)
class TrackedRun:
    """A run as trackers know it.

    `path`: its directory. `title`: its name, with that of the search or the groups that it is part of. `home`: the
    directory that holds all runs. `settings`: its configuration, without secrets. `tags`: what it was made from.
    """

    path: Path
    title: str
    home: Path
    settings: Mapping[str, Any]
    tags: Mapping[str, str]


@dataclass(frozen=True)
class Row:
    """What one event says: figures by name, such as `loss/train`. `time`: Unix seconds."""

    step: int
    time: float
    values: Mapping[str, float]


@dataclass(frozen=True)
class Ending:
    """How a run ended: `finished`, `interrupted` or `failed`, the figures of its report, and files worth keeping."""

    state: str
    step: int
    figures: Mapping[str, float]
    files: Sequence[Path]


class Tracker(Protocol):
    """Takes what is told of one run. Any method may raise anything; the tracker is made anew then."""

    def begin(self, resumed_from: int | None) -> None:
        """Open the run there, or go on with the one that this run had. Called again after a restart.

        `resumed_from`: steps after this one are done again; None: none is.
        """
        ...

    def write(self, rows: Sequence[Row]) -> None:
        """Take `rows`, ordered by time, and see that they can be looked at."""
        ...

    def end(self, ending: Ending) -> None:
        """Close the run."""
        ...
