"""A run is a directory, readable without Tutti. This module knows its paths and nothing else."""

from __future__ import annotations

import errno
import shutil
from dataclasses import dataclass
from pathlib import Path

from tutti.core.errors import RunError

#: Directories of runs that belong to another one.
_PARTS = ("groups", "trials", "recovered")


@dataclass(frozen=True)
class RunDirectory:
    """Paths inside `runs/NAME/`."""

    path: Path

    @classmethod
    def of(cls, runs: str, name: str) -> RunDirectory:
        """The directory of run `name` among `runs`."""
        return cls(Path(runs).expanduser() / name)

    @property
    def name(self) -> str:
        """The run's name: the last part of its path."""
        return self.path.name

    @property
    def whole(self) -> Path:
        """The run that this one is part of, as a group or a trial of it; or else this one."""
        path = self.path.absolute()
        return path.parent.parent if path.parent.name in _PARTS else path

    @property
    def title(self) -> str:
        """The name; of a part with that of the whole: `mine-search/3`."""
        path = self.path.absolute()
        return path.name if self.whole == path else f"{self.whole.name}/{path.name}"

    @property
    def config(self) -> Path:
        """The resolved configuration, every default spelt out."""
        return self.path / "config.yaml"

    @property
    def events(self) -> Path:
        """Directory of `rank-N.jsonl`: append-only."""
        return self.path / "events"

    @property
    def logs(self) -> Path:
        """What the workers printed, one file per rank."""
        return self.path / "logs"

    @property
    def live(self) -> Path:
        """Signs of life, one small file per rank, overwritten every few seconds."""
        return self.path / "live"

    @property
    def checkpoints(self) -> Path:
        """Directory of `step-N/` and `LATEST`."""
        return self.path / "checkpoints"

    @property
    def export(self) -> Path:
        """The trained model in Hugging Face format."""
        return self.path / "export"

    @property
    def tracked(self) -> Path:
        """What trackers know the run by."""
        return self.path / "tracked"

    @property
    def groups(self) -> Path:
        """Where several groups cooperate: the run of each."""
        return self.path / "groups"

    @property
    def report_json(self) -> Path:
        """The public figures of the run."""
        return self.path / "report.json"

    @property
    def report_markdown(self) -> Path:
        """The run in words and tables."""
        return self.path / "report.md"

    @property
    def chaos_json(self) -> Path:
        """What disturbances cost the run, in figures."""
        return self.path / "chaos.json"

    @property
    def chaos_markdown(self) -> Path:
        """The same in words and tables."""
        return self.path / "chaos.md"

    @property
    def curve(self) -> Path:
        """The loss curve as a picture."""
        return self.path / "loss.png"

    def refuse_existing(self) -> None:
        """Raises RunError when there is something at this path already."""
        if self.path.exists() and any(self.path.iterdir() if self.path.is_dir() else [self.path]):
            raise RunError(
                f"run '{self.name}' exists already at {self.path}",
                "continue it with --resume, choose another name with name=OTHER, or delete the directory",
            )

    def create(self) -> None:
        """Make the directory, or leave nothing.

        Raises:
            RunError: it exists already, or the place cannot be written.
        """
        self.refuse_existing()
        was_there = self.path.exists()
        try:
            for directory in (self.events, self.logs, self.live, self.checkpoints):
                directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            if not was_there:
                shutil.rmtree(self.path, ignore_errors=True)
            raise unwritable(self.path, error) from error

    def require(self) -> None:
        """Raises RunError when there is no run at this path."""
        if (self.path / "tutti.json").is_file():
            raise RunError(
                f"{self.path} is what `tutti compress` or `tutti combine` made, and no run",
                "name the run that it was made from",
            )
        if not self.config.is_file():
            raise RunError(
                f"there is no run at {self.path} (no config.yaml in it)",
                "`tutti runs list` shows the runs that there are",
            )


def unwritable(path: Path, error: OSError) -> RunError:
    """The user's words for an OSError met while writing to `path`."""
    if error.errno == errno.ENOSPC:
        return RunError(
            f"the disk that holds {path} is full", "free some space, then run the same command again"
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return RunError(
            f"{path} cannot be written: {error.strerror}", "choose a directory that you may write to"
        )
    return RunError(f"{path} cannot be written: {error.strerror or error}", "check the path and the disk")
