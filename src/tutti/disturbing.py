"""A training that is broken on purpose, and what that cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tutti.config import Config
from tutti.core.errors import ConfigError, LaunchError, TuttiError
from tutti.core.rundir import RunDirectory
from tutti.core.say import printer
from tutti.disturb import read_schedule
from tutti.disturb.trouble import Trouble
from tutti.observe.resilience import write_resilience_report
from tutti.starting import start_run
from tutti.supervise import Supervision, in_started_world


def chaos(
    config: Config,
    schedule: Mapping[str, Sequence[str]],
    *,
    seed: int = 0,
    compare: bool = False,
    against: Path | None = None,
    console: bool = True,
) -> dict[str, Any]:
    """Train as `config` says while things break, and report what that cost (the content of `chaos.json`).

    `schedule`: for each of `kill`, `stop`, `slow` and `cut` lines such as `30s@2` (`tutti.disturb.schedule` has them
    all); what they leave to chance follows from `seed`. `compare`: train the same undisturbed first, as
    NAME-undisturbed; `against`: compare with a run that is there already.

    Raises:
        TuttiError: one clear error, before anything starts wherever that can be; if the run did not survive, its
            first error, and the report lies in its directory.
    """
    trouble = Trouble(read_schedule(schedule), seed)
    if in_started_world():
        raise LaunchError(
            "under torchrun the workers are not Tutti's to disturb", "run `tutti chaos` without torchrun"
        )
    if compare and against is not None:
        raise ConfigError(
            "compare trains an undisturbed run, against names one that is there", "give only one of them"
        )
    run = RunDirectory.of(config.runs, config.name)
    run.refuse_existing()
    pair = RunDirectory.of(config.runs, f"{config.name}-undisturbed") if compare else None
    if pair is not None:
        pair.refuse_existing()
        if len(pair.name) > 100:  # as long as the schema lets a name be
            raise ConfigError(
                f"the name {pair.name} of the undisturbed run is too long", "choose a shorter name"
            )
        against = pair.path
    elif against is not None:
        RunDirectory(against).require()
    resolved, prepared = start_run(config, printer(console))
    trouble.check(resolved.config)
    if pair is not None:
        pair.create()
        renamed = replace(resolved, config=resolved.config.model_copy(update={"name": pair.name}))
        report = Supervision(pair, renamed, prepared.directory, resume=False, console=console).execute()
        if report["state"] != "finished":
            raise KeyboardInterrupt
    run.create()
    supervision = Supervision(
        run, resolved, prepared.directory, resume=False, console=console, trouble=trouble
    )
    try:
        supervision.execute()
    except TuttiError:
        if run.path.exists():
            write_resilience_report(run.path, against)
        raise
    return write_resilience_report(run.path, against)


def chaos_report(run: Path, *, against: Path | None = None) -> dict[str, Any]:
    """What disturbances cost the run at `run`, planned or not, anew from its events; written as `chaos` does.

    Raises:
        RunError: there is no such run.
    """
    return write_resilience_report(run, against)
