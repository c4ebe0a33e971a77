"""The public functions. The command line calls these, and a notebook can do all that it can.

config = tutti.load_config(Path("demo.yaml"), ["train.steps=200"])
report = tutti.train(config)
tutti.generate(Path("runs/demo"), ["def read_csv("])
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tutti import hardware
from tutti.alerting import try_alerts, watch_alerts
from tutti.compress import combine as make_one
from tutti.compress import compress as make_smaller
from tutti.config import Config, count_groups
from tutti.core.errors import ConfigError, LaunchError, RunError
from tutti.core.rundir import RunDirectory
from tutti.core.say import printer
from tutti.disturbing import chaos, chaos_report
from tutti.finished import evaluate, explain, export, generate, predict
from tutti.grouping import train_groups
from tutti.labelling import label
from tutti.observe import compare_runs, list_runs, show_run
from tutti.observe.dashboard.show import dashboard
from tutti.profiling import profile
from tutti.search import tune as find_settings
from tutti.serving import deploy, promote, releases, rollback, serve
from tutti.starting import check_run, prepare, start_run
from tutti.supervise import (
    Reception,
    Supervision,
    Visit,
    candidate,
    in_started_world,
    read_key,
    run_in_started_world,
    split_address,
)

__all__ = [
    "chaos",
    "chaos_report",
    "combine",
    "compare_runs",
    "compress",
    "dashboard",
    "deploy",
    "doctor",
    "evaluate",
    "explain",
    "export",
    "generate",
    "join",
    "label",
    "list_runs",
    "predict",
    "prepare",
    "profile",
    "promote",
    "releases",
    "rollback",
    "serve",
    "show_run",
    "train",
    "try_alerts",
    "tune",
    "watch_alerts",
]


def train(
    config: Config,
    *,
    resume: bool = False,
    console: bool = True,
    listen: str | None = None,
    here: int | None = None,
    key: Path | None = None,
) -> dict[str, Any]:
    """Train as `config` says on this machine's workers (or in the world that torchrun started).

    Returns the content of `report.json`. `resume`: continue the run of that name from its newest sound
    checkpoint, with any number of workers. `console`: show the run while it goes on. `listen`: an address of this
    machine, HOST:PORT, at which `join` lets other machines take part with the replicas that are not among the `here`
    that start on this one; `key`: a file with the key that they need (None: one is made in the run's directory).

    Raises:
        TuttiError: one clear error; a run that failed before its first step leaves no directory behind.
    """
    if config.model.python is not None:
        raise ConfigError("model.python belongs to tutti.fit", "give model a size, a path or a config")
    reception = Reception.of(listen, here, key) if listen is not None else None
    if reception is None and (here is not None or key is not None):
        raise ConfigError("--here and --key belong to --listen", "give --listen HOST:PORT as well")
    if reception is not None:
        reception.check_before(config)
    if count_groups(config) > 1:
        return train_groups(config, resume, console)
    if reception is not None and in_started_world():
        raise LaunchError(
            "torchrun starts all processes of a run itself", "leave out either torchrun or --listen"
        )
    run = RunDirectory.of(config.runs, config.name)
    start = functools.partial(start_run, continues=run if resume else None)
    if in_started_world():
        return run_in_started_world(
            lambda: check_run(run, config, resume), run, resume=resume, console=console, start=start
        )
    say = printer(console)
    resolved, prepared = start(check_run(run, config, resume), say)
    if reception is not None:
        reception.check(resolved.config, candidate(resolved))
        resolved.threads = max(1, hardware.usable_cores() // (reception.here * config.layout.ranks))
    if not resume:
        run.create()
    if reception is not None:
        say(reception.invitation(run, resolved.config))
    return Supervision(
        run, resolved, prepared.directory, resume=resume, console=console, reception=reception
    ).execute()


def join(
    address: str,
    key: Path,
    *,
    replicas: int | None = None,
    runs: Path = Path("runs"),
    cache: Path | None = None,
    console: bool = True,
) -> dict[str, Any]:
    """Take part, with this machine, in the run that was started at `address` (HOST:PORT) with `listen`.

    Returns `run`, `state` (finished, left, or interrupted: on the first machine), the `replicas` that this machine had,
    and the last `step` they made. `key`: a copy of the run's key file. `replicas`: as many as this machine takes at
    most (None: one for each core). `runs`, `cache`: where its part of the run, and prepared text that it has to fetch,
    are kept.

    Raises:
        TuttiError: nobody answers there, the key is another, there is no place left, or the run failed here.
    """
    host, port = split_address(address)
    return Visit(host, port, read_key(key), replicas, runs, cache, console).take_part()


def compress(
    run: Path,
    *,
    recipes: Sequence[str] = (),
    target: str = "<1% worse",
    destination: Path | None = None,
    recovery_steps: int | None = None,
    console: bool = True,
) -> dict[str, Any]:
    """Make the model of `run` smaller and faster; keep the fastest (batch 1) of `recipes` that meets `target`.

    Returns what `compression.json` of the run holds: a line for each recipe, and which is kept. What that may be, and
    what recipes there are: see `tutti compress --help`. `destination`: `compressed/` of the run by default.
    `recovery_steps`: of training for a model that lost layers or channels; as many as the run had by default.

    Raises:
        TuttiError: there is nothing to make smaller, or no recipe meets the target: nothing is kept then.
    """
    return make_smaller(
        run,
        recipes=recipes,
        target=target,
        destination=destination,
        recovery_steps=recovery_steps,
        say=printer(True) if console else None,
    )


def combine(runs: Sequence[Path], *, destination: Path | None = None, console: bool = True) -> dict[str, Any]:
    """Make one model of those of `runs`, which learned the same examples: the mean of their weights, if that is better
    than each alone. Returns what `combination.json` in `destination` (default: `combined/` of the first run) holds: a
    line for each way to combine them, and which is kept.

    Raises:
        TuttiError: there are fewer than two, or they cannot be compared.
    """
    if not runs:
        raise RunError("there is nothing to combine", "name two runs or more")
    return make_one(runs, destination or runs[0] / "combined", say=printer(console))


def tune(
    config: Config,
    *,
    trials: int | None = None,
    parallel: int = 1,
    resume: bool = False,
    console: bool = True,
) -> dict[str, Any]:
    """Find the settings that train best: try values of the keys in `config.search` (or usual ones), trial by trial.

    Each trial is an ordinary run in `trials/` of `runs/NAME-search`; the best settings are written there as
    `best.yaml`, for `train`. Returns what `search.json` there holds. `trials`: of all calls together; None: 20, or what
    the search had. `parallel`: trials at the same time, which share the machine's cores. `resume`: go on with the
    search that is there; a trial that was under way goes on from its last checkpoint, or begins again.

    Raises:
        TuttiError: Optuna is not installed, something cannot be searched, or no trial came to its end.
    """
    return find_settings(config, trials=trials, parallel=parallel, resume=resume, say=printer(console))


def doctor() -> hardware.Machine:
    """What this machine has, measured, and what is missing and how to get it."""
    return hardware.probe()
