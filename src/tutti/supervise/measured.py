"""`sync: auto`: workers measure before the run, and the launcher chooses by what they found.

What was measured stays in the run's events, what was chosen in its `config.yaml`: a resumed run goes on with it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from tutti.config import dump_config
from tutti.config.agreement import SyncConfig
from tutti.core.files import write_text_atomically
from tutti.core.rundir import RunDirectory
from tutti.launch.local import LocalLaunch
from tutti.launch.meeting import Meeting
from tutti.resolve import Resolved, settle
from tutti.sync.choose import choose
from tutti.sync.ladder import Rung, rungs
from tutti.train.measure import main as measure_main
from tutti.train.measure import read_measured

#: How long what other machines measured may be on its way.
_ARRIVAL_SECONDS = 20.0


def candidate(resolved: Resolved) -> SyncConfig:
    """How replicas agree in this run, or the least lossy way that it may choose, with nothing left open."""
    if not resolved.config.sync.undecided:
        return resolved.config.sync
    first, *_ = settled_rungs(resolved)
    return first.sync


def measuring(
    run: RunDirectory,
    resolved: Resolved,
    assignment: Callable[..., Any],
    *,
    meeting: AbstractContextManager[Meeting] | None,
    here: Sequence[int] | None,
) -> LocalLaunch:
    """Workers that measure, those `here` (None: all); `meeting`: where they meet, if members may come and go."""
    config = resolved.config
    assert isinstance(config.replicas, int)
    return LocalLaunch(
        run=run.path,
        replicas=config.replicas,
        parts=config.layout.ranks,
        meeting=meeting,
        here=here,
        max_restarts=0,
        min_replicas=1,  # who is left must not wait for the dead, but say that somebody is missing
        entry=measure_main,
        assignment=assignment,
    )


def decide(run: RunDirectory, resolved: Resolved, since: float, *, elsewhere: bool) -> bool:
    """Choose by what workers measured since Unix time `since`: in `resolved`, and in the run's configuration. False:
    not all of them did. `elsewhere`: some did on other machines, and it is on its way."""
    config = resolved.config
    assert isinstance(config.replicas, int)
    ranks, deadline = config.replicas * config.layout.ranks, time.monotonic() + _ARRIVAL_SECONDS
    while (
        (measured := read_measured(run, since, ranks)) is None and elsewhere and time.monotonic() < deadline
    ):
        time.sleep(0.2)
    if measured is None:
        return False
    settled = settled_rungs(resolved)
    choice = choose(settled, measured)
    said = settled[choice.rung]
    resolved.config = config.model_copy(update={"sync": choice.rung.sync})
    resolved.choices += [choice.reason, *said]
    write_text_atomically(run.config, dump_config(resolved.config))
    return True


def settled_rungs(resolved: Resolved) -> dict[Rung, list[str]]:
    """The ladder with nothing left open, so that costs are of what would run; and what was chosen for each rung."""
    config = resolved.config
    assert isinstance(config.replicas, int) and isinstance(config.train.steps, int)
    precision, found = config.train.precision, dict[Rung, list[str]]()
    for rung in rungs(config.sync, precision, config.train.steps):
        sync, said = settle(rung.sync, config.replicas, precision, config.train.steps)
        found[Rung(sync, rung.price)] = said
    return found
