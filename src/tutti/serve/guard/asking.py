"""Models that the guard itself asks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tutti.core.errors import ConfigError

if TYPE_CHECKING:
    from tutti.package import Asker


def open_asker(place: Path, kind: str) -> Asker:
    """The model of `place`, a run or a package, whose task is of `kind`.

    Raises:
        TuttiError: there is none, or it does something else.
    """
    # Here, because it needs torch, which a guard that asks no model can do without.
    from tutti.package import is_package, open_package
    from tutti.train.labelled import LabelledJob
    from tutti.trained import asker_of, load_trained

    if is_package(place):
        found = open_package(place)
    else:
        job, config, _ = load_trained(place)
        if not isinstance(job, LabelledJob):
            raise ConfigError(f"{place} is a model that writes", f"name a run with task: {kind}")
        found = asker_of(job, config)
    if found.task.kind != kind:
        raise ConfigError(f"{place} has learned to {found.task.kind}", f"name a run with task: {kind}")
    return found
