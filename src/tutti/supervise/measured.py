"""`sync: auto`: workers measure before the run, and the launcher chooses by what they found.

What was measured stays in the run's events, what was chosen in its `config.yaml`: a resumed run goes on with it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tutti.config import dump_config
from tutti.core.files import write_text_atomically
from tutti.core.rundir import RunDirectory
from tutti.launch.local import LocalLaunch
from tutti.launch.meeting import meeting_here
from tutti.resolve import Resolved, settle
from tutti.sync.choose import choose
from tutti.sync.ladder import Rung, rungs
from tutti.train.measure import main as measure_main
from tutti.train.measure import read_measured


def measuring(run: RunDirectory, resolved: Resolved, assignment: Callable[..., Any]) -> LocalLaunch:
    """Workers that measure, met as for the least lossy that they may choose."""
    config = resolved.config
    assert isinstance(config.replicas, int)
    first, *_ = _settled(resolved)
    return LocalLaunch(
        run=run.path,
        replicas=config.replicas,
        parts=config.layout.ranks,
        meeting=meeting_here("localhost", lighthouse=True, min_replicas=1)
        if first.sync.membership == "elastic"
        else None,
        max_restarts=0,
        min_replicas=1,  # who is left must not wait for the dead, but say that somebody is missing
        entry=measure_main,
        assignment=assignment,
    )


def decide(run: RunDirectory, resolved: Resolved, since: float) -> bool:
    """Choose by what workers measured since Unix time `since`: in `resolved`, and in the run's configuration. False:
    not all of them did."""
    config = resolved.config
    assert isinstance(config.replicas, int)
    measured = read_measured(run, since, config.replicas * config.layout.ranks)
    if measured is None:
        return False
    settled = _settled(resolved)
    choice = choose(settled, measured)
    said = settled[choice.rung]
    resolved.config = config.model_copy(update={"sync": choice.rung.sync})
    resolved.choices += [choice.reason, *said]
    write_text_atomically(run.config, dump_config(resolved.config))
    return True


def _settled(resolved: Resolved) -> dict[Rung, list[str]]:
    """The ladder with nothing left open, so that costs are of what would run; and what was chosen for each rung."""
    config = resolved.config
    assert isinstance(config.replicas, int)
    precision, found = config.train.precision, dict[Rung, list[str]]()
    for rung in rungs(config.sync, precision, config.train.steps):
        sync, said = settle(rung.sync, config.replicas, precision)
        found[Rung(sync, rung.price)] = said
    return found
