"""`tutti deploy`: a model becomes a version when it is sure that it can be served."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tutti.core.errors import ConfigError
from tutti.serve.load import load_any
from tutti.serve.release.registry import Registry, require_room, require_serving
from tutti.serve.release.version import Version


def deploy(
    place: Path, directory: Path, percent: float | None, note: str, say: Callable[[str], None]
) -> Version:
    """The model of `place` is the next version of the releases in `directory`: for everybody, or for `percent` of all
    requests. It is loaded once, so that nothing counts that cannot be served.

    Raises:
        TuttiError: there is no such model, it cannot be served, or the releases cannot be written.
    """
    if percent is not None and not 0 <= percent <= 100:
        raise ConfigError(f"--canary {percent:g}: a share is from 0 to 100", "try --canary 10")
    if place.resolve() == directory.resolve():
        raise ConfigError(
            f"{place} cannot be a release of itself", "name the run, and --to another directory"
        )
    require_room(directory)
    if percent is not None:
        require_serving(directory)
    say(f"loading {place}, to see that it can be served …")
    load_any(place)
    return Registry.create(directory).deploy(place, percent, note)
