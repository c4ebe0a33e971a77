"""Where a gateway learns what to serve: from a registry, or it is one model for good."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from tutti.serve.release import Deed, Registry, State, Version

#: Who rolls back, in the history.
_OWN_NAME = "tutti serve"


class Source(Protocol):
    """`name`: what clients call the model."""

    @property
    def name(self) -> str: ...

    def state(self) -> State:
        """What is to be served now. Raises RunError."""

    def model(self, version: int) -> tuple[Path, Version | None]:
        """Where it lies, and what it has to be. Raises RunError."""

    def roll_back(self, version: int, why: str) -> Deed | None:
        """Serve it no more; None: it is not served any more. Raises RunError."""


class Released:
    """What `registry` says."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._seen: tuple[tuple[int, ...], State] | None = None

    @property
    def name(self) -> str:
        """That of the directory, whatever it serves."""
        return self._registry.directory.resolve().name

    def state(self) -> State:
        try:
            mark = self._registry.mark
        except OSError:
            mark = ()
        if self._seen is None or self._seen[0] != mark:
            self._seen = mark, self._registry.state
        return self._seen[1]

    def model(self, version: int) -> tuple[Path, Version | None]:
        found = self._registry.version(version)
        return Path(found.place), found

    def roll_back(self, version: int, why: str) -> Deed | None:
        return self._registry.roll_back(only=version, why=why, by=_OWN_NAME)


class Single:
    """The model of `place`, as version 1."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self._state = State(served=[1])

    @property
    def name(self) -> str:
        """That of its directory."""
        return self._place.resolve().name

    def state(self) -> State:
        return self._state

    def model(self, version: int) -> tuple[Path, Version | None]:
        return self._place, None

    def roll_back(self, version: int, why: str) -> Deed | None:
        return None
