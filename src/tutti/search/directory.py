"""A search is a directory, readable without Tutti. This module knows its paths.

runs/NAME-search/
    search.yaml      what was searched: the configuration, with the space spelt out
    study.db         Optuna's SQLite study: what was tried, what came of it
    search.json, .md the same, for programs and for people
    best.yaml        the best settings, for `tutti train`
    trials/N/        an ordinary run
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tutti.config import Config
from tutti.core.errors import RunError
from tutti.core.rundir import RunDirectory, unwritable


@dataclass(frozen=True)
class SearchDirectory:
    """Paths inside it."""

    path: Path

    @classmethod
    def of(cls, config: Config) -> SearchDirectory:
        """The directory of a search with `config`."""
        return cls(Path(config.runs).expanduser() / f"{config.name}-search")

    @property
    def config(self) -> Path:
        """The configuration that is searched; not called as a run's, for this is none."""
        return self.path / "search.yaml"

    @property
    def study(self) -> Path:
        """Optuna's."""
        return self.path / "study.db"

    @property
    def report_json(self) -> Path:
        """What was found, in figures."""
        return self.path / "search.json"

    @property
    def report_markdown(self) -> Path:
        """What was found, in words and tables."""
        return self.path / "search.md"

    @property
    def best(self) -> Path:
        """The best configuration."""
        return self.path / "best.yaml"

    @property
    def trials(self) -> Path:
        """Holds the runs."""
        return self.path / "trials"

    def trial(self, number: int) -> RunDirectory:
        """The run of trial `number`."""
        return RunDirectory(self.trials / str(number))

    def refuse_existing(self) -> None:
        """Raises RunError when there is something at this path already."""
        if self.path.exists():
            raise RunError(
                f"there is a search at {self.path} already",
                "continue it with --resume, choose another name with name=OTHER, or delete the directory",
            )

    def require(self) -> None:
        """Raises RunError when there is no search at this path."""
        if not self.config.is_file() or not self.study.is_file():
            raise RunError(
                f"there is no search at {self.path}", "begin one: the same command without --resume"
            )

    def create(self, fill: Callable[[SearchDirectory], None]) -> None:
        """Make the directory, with what `fill` puts into it, or leave nothing.

        Raises:
            RunError: it exists already, or the place cannot be written.
        """
        self.refuse_existing()
        beside = SearchDirectory(self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp"))
        try:
            beside.trials.mkdir(parents=True)
            fill(beside)
            beside.path.rename(self.path)
        except OSError as error:
            raise unwritable(self.path, error) from error
        finally:
            shutil.rmtree(beside.path, ignore_errors=True)
