"""The directory of checkpoints: which there are, how a new one is named, what is kept and what goes.

Nothing is ever overwritten, and a checkpoint is deleted by renaming it first: a crash at any moment leaves
whole checkpoints and rubbish that is told apart by its name or by its missing manifest, and swept at the next
save.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from tutti.train.checkpoints.manifest import (
    BEST,
    LATEST,
    MANIFEST,
    Damaged,
    Manifest,
    read_manifest,
    read_pointer,
)

_NAME = re.compile(r"step-(\d+)(?:\.(\d+))?")
_TRASH = ".trash-"


@dataclass(frozen=True)
class Entry:
    """One directory `step-N` or `step-N.M`; `manifest` is None when it is torn or its manifest is damaged."""

    path: Path
    step: int
    manifest: Manifest | None
    damage: str = ""

    @property
    def torn(self) -> bool:
        """Whether its save never came to the end."""
        return not (self.path / MANIFEST).exists()


def entries(directory: Path) -> list[Entry]:
    """Every checkpoint in `directory`, last written first; those without a readable manifest at the end."""
    found = []
    for path in directory.iterdir() if directory.is_dir() else ():
        match = _NAME.fullmatch(path.name)
        if match is None or not path.is_dir():
            continue
        try:
            found.append(Entry(path, int(match[1]), read_manifest(path)))
        except Damaged as damage:
            found.append(Entry(path, int(match[1]), None, str(damage)))

    def age(entry: Entry) -> tuple[int, int, str]:
        return (entry.manifest.sequence if entry.manifest else -1, entry.step, entry.path.name)

    return sorted(found, key=age, reverse=True)


def sweep(directory: Path) -> None:
    """Remove what crashes left: torn checkpoints, half-deleted ones, temporary files. Raises OSError."""
    for path in directory.iterdir():
        if path.name.startswith(_TRASH):
            shutil.rmtree(path)
        elif path.name.startswith(".") and path.name.endswith(".tmp"):
            path.unlink()
    for entry in entries(directory):
        if entry.torn:
            shutil.rmtree(entry.path)


def open_fresh(directory: Path, step: int) -> Path:
    """Make the new directory for `step`: `step-N`, or `step-N.2` … when a run saves the same step again."""
    directory.mkdir(parents=True, exist_ok=True)
    sweep(directory)
    path, attempt = directory / f"step-{step}", 1
    while path.exists():
        attempt += 1
        path = directory / f"step-{step}.{attempt}"
    path.mkdir()
    return path


def next_sequence(directory: Path) -> int:
    """The number of the next save."""
    return 1 + max((e.manifest.sequence for e in entries(directory) if e.manifest), default=0)


def pointed(directory: Path, pointer: str) -> Path | None:
    """What `pointer` names; None when it names nothing or is damaged."""
    try:
        return read_pointer(directory / pointer)
    except Damaged:
        return None


def retain(directory: Path, keep: int, say: Callable[[str], None]) -> None:
    """Delete all but the `keep` last written checkpoints, the one that `LATEST` names and the best.

    What cannot be deleted is said and left: the new checkpoint is safe, and that is what counts.
    """
    spared = {pointed(directory, LATEST), pointed(directory, BEST)}
    doomed = [entry.path for entry in entries(directory)[keep:] if entry.path not in spared]
    try:
        discard(doomed)
    except OSError as error:
        say(f"old checkpoints in {directory} could not be deleted: {error}")


def discard(paths: Iterable[Path]) -> None:
    """Delete checkpoints so that a crash leaves no half of one that looks whole. Raises OSError."""
    for path in paths:
        trash = path.with_name(_TRASH + path.name)
        path.rename(trash)
        shutil.rmtree(trash)
