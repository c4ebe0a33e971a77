"""The directory of releases, readable without Tutti.

    releases.jsonl      what was done, a line each: when, by whom, why; lines are only ever added
    versions/0003.json  what version 3 is

A version counts from the moment when its line is in the history, which is the last thing that is written. One process
at a time writes; whoever reads sees the old history or the new one.
"""

from __future__ import annotations

import getpass
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from tutti.core.errors import RunError
from tutti.core.files import write_json_atomically, write_text_atomically
from tutti.core.hold import held
from tutti.core.rundir import unwritable
from tutti.serve.release.standing import Deed, State, state_after
from tutti.serve.release.version import FileMark, Lineage, Version, weights_of

_HISTORY, _VERSIONS = "releases.jsonl", "versions"
_Made = TypeVar("_Made")


def is_registry(directory: Path) -> bool:
    """Whether `tutti deploy` made `directory`."""
    return (directory / _HISTORY).is_file()


def require_room(directory: Path) -> None:
    """Raises RunError where `directory` holds something else than releases."""
    is_empty = not directory.exists() or (directory.is_dir() and not any(directory.iterdir()))
    if not is_empty and not is_registry(directory):
        raise RunError(
            f"{directory} holds something else than releases", "name a directory that is not there yet"
        )


def require_serving(directory: Path) -> None:
    """Raises RunError where `directory` serves nothing beside which there could be a canary."""
    if not is_registry(directory) or Registry(directory).state.serving is None:
        raise RunError(
            f"{directory} serves nothing yet beside which there could be a canary",
            "deploy it without --canary",
        )


class Registry:
    """That in `directory`.

    Raises:
        RunError: there is none.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        if is_registry(directory):
            return
        what = (
            f"{directory} holds no releases" if directory.exists() else f"there is no directory {directory}"
        )
        raise RunError(what, f"make a first one: tutti deploy RUN --to {directory}")

    @classmethod
    def create(cls, directory: Path) -> Registry:
        """That in `directory`, which is made where there is none.

        Raises:
            RunError: there is something else, or it cannot be written.
        """
        require_room(directory)
        try:
            (directory / _VERSIONS).mkdir(parents=True, exist_ok=True)
            if not is_registry(directory):
                write_text_atomically(directory / _HISTORY, "")
        except OSError as error:
            raise unwritable(directory, error) from error
        return cls(directory)

    @property
    def gate(self) -> Path:
        """What the gateway that serves from here holds on to."""
        return self.directory / _VERSIONS

    @property
    def mark(self) -> tuple[int, ...]:
        """Is another one when something was done."""
        found = (self.directory / _HISTORY).stat()
        return found.st_mtime_ns, found.st_ino, found.st_size

    @property
    def deeds(self) -> list[Deed]:
        """All that was done, in order.

        Raises:
            RunError: the history is damaged or gone.
        """
        path = self.directory / _HISTORY
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
            return [Deed.model_validate_json(line) for line in lines]
        except (OSError, UnicodeDecodeError, ValidationError) as error:
            reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
            raise RunError(f"{path} cannot be read: {reason}", "put back a copy, or mend the line") from error

    @property
    def state(self) -> State:
        """What is so now. Raises RunError."""
        return state_after(self.deeds)

    def version(self, number: int) -> Version:
        """Raises RunError where there is none of that number."""
        known = sorted({deed.version for deed in self.deeds})
        if number not in known:
            there = f"there are: {', '.join(map(str, known))}" if known else "nothing was deployed yet"
            raise RunError(f"there is no version {number} in {self.directory}", there)
        path = self._path(number)
        try:
            return Version.model_validate_json(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RunError(f"{path} cannot be read: {error}", "deploy that model again") from error

    def deploy(self, place: Path, percent: float | None, note: str) -> Version:
        """The model of `place` is the next version. `percent`: see `Deed`.

        Raises:
            TuttiError: there is no model, or it cannot be written down.
        """
        # Here, because it needs torch, which would take 350 MB of a gateway that only reads.
        from tutti.serve.release.content import lineage_of, marks_of

        if percent is not None:
            require_serving(self.directory)
        place = place.resolve()
        files, lineage = marks_of(place), lineage_of(place)

        def write(_: State) -> tuple[Version, Deed]:
            version = self._next(place, files, lineage, note)
            write_json_atomically(self._path(version.version), version.model_dump(mode="json"))
            return version, self._deed("deployed", version.version, percent=percent, why=note)

        return self._do(write)

    def promote(self, why: str = "") -> int:
        """The canary serves everybody from now on; says which it was.

        Raises:
            RunError: there is none.
        """

        def write(state: State) -> tuple[int, Deed]:
            if state.canary is None:
                raise RunError(
                    f"there is no canary in {self.directory} that could be promoted",
                    f"deploy one: tutti deploy RUN --to {self.directory} --canary 10",
                )
            return state.canary, self._deed("promoted", state.canary, why=why)

        return self._do(write)

    def roll_back(
        self, to: int | None = None, *, only: int | None = None, why: str = "", by: str | None = None
    ) -> Deed | None:
        """Take the canary away, or where there is none (or `to` is named) serve the former version. `only`: do nothing
        unless that one is canary or serves; None is then what comes back.

        Raises:
            RunError: there is nothing to go back to, or no such version.
        """

        def write(state: State) -> tuple[Deed | None, Deed | None]:
            if only is not None and only not in (state.serving, state.canary):
                return None, None
            canary_goes = state.canary is not None and (only == state.canary or (only is None and to is None))
            if canary_goes:
                assert state.canary is not None
                deed = self._deed("rolled_back", state.canary, why=why, by=by)
                return deed, deed
            target = self._target(state, to)
            assert state.serving is not None
            deed = self._deed("rolled_back", state.serving, to=target, why=why, by=by)
            return deed, deed

        return self._do(write)

    def _target(self, state: State, to: int | None) -> int:
        if to is None and state.previous is None:
            raise RunError(
                f"there is nothing in {self.directory} to roll back to",
                "no other version has served; name one: tutti rollback DIR VERSION"
                if len(state.standings) > 1
                else "deploy another version",
            )
        target = state.previous if to is None else self.version(to).version
        assert target is not None
        if target == state.serving:
            raise RunError(f"version {target} serves already", "name another one")
        return target

    def _next(self, place: Path, files: tuple[FileMark, ...], lineage: Lineage, note: str) -> Version:
        taken = [int(path.stem) for path in self.gate.glob("[0-9]*.json") if path.stem.isdecimal()]
        return Version(
            version=max(taken, default=0) + 1,
            place=str(place),
            lineage=lineage,
            weights=weights_of(files),
            files=files,
            deployed=round(time.time(), 3),
            by=_who(),
            note=note,
        )

    def _deed(
        self,
        deed: str,
        version: int,
        *,
        percent: float | None = None,
        to: int | None = None,
        why: str = "",
        by: str | None = None,
    ) -> Deed:
        values = {
            "time": round(time.time(), 3),
            "deed": deed,
            "version": version,
            "percent": percent,
            "to": to,
        }
        return Deed.model_validate(values | {"by": by or _who(), "why": why})

    def _do(self, write: Callable[[State], tuple[_Made, Deed | None]]) -> _Made:
        """Add the line that `write` gives to what is so now, while nobody else does."""
        path = self.directory / _HISTORY
        with held(self.directory, "writing a release there"):
            made, deed = write(self.state)
            if deed is not None:
                line = deed.model_dump_json(exclude_none=True)
                try:
                    write_text_atomically(path, path.read_text(encoding="utf-8") + line + "\n")
                except OSError as error:
                    raise unwritable(self.directory, error) from error
        return made

    def _path(self, number: int) -> Path:
        return self.gate / f"{number:04d}.json"


def _who() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container may have no name for its user
        return f"user {os.getuid()}"
