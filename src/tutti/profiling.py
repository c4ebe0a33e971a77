"""What holds a training up: some of its steps are measured and some traced, in a run of their own that is then gone."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from tutti.config import AlertsConfig, Config, SyncConfig, count_groups, load_config
from tutti.core.errors import ConfigError, LaunchError, RunError
from tutti.core.events import EventWriter, read_events
from tutti.core.files import write_json_atomically, write_text_atomically
from tutti.core.rundir import RunDirectory, unwritable
from tutti.core.say import Say, printer
from tutti.data import Prepared
from tutti.data.labelled import PreparedExamples
from tutti.hardware import usable_cores
from tutti.launch.local import LAUNCHER_RANK
from tutti.observe.profile import Figures, Verdict, judge, profile_json, profile_page, read_profile
from tutti.parallel import anything_else, check_layout
from tutti.resolve import Facts, Resolved, resolve
from tutti.starting import start_run
from tutti.supervise import Supervision, in_started_world
from tutti.supervise.measured import settled_rungs
from tutti.sync import check_sync
from tutti.sync.choose import choose
from tutti.sync.cost import Measured, step_seconds, travels_as
from tutti.sync.ladder import left_open
from tutti.train.function import JOB_FILE
from tutti.train.measure import read_measured
from tutti.train.profiler import Profiling, shortened

#: Before steps are as long as they will be: memory is taken, kernels are chosen, links are set up.
_WARM_UP = 3
_TRACED = 3


@dataclass(frozen=True)
class Profile:
    """What was found, and the directory in which it lies."""

    directory: Path
    figures: Figures
    verdict: Verdict
    #: The content of `profile.json`.
    report: dict[str, Any]


def profile(
    target: Config | Path,
    *,
    overrides: Sequence[str] = (),
    steps: int = 10,
    to: Path | None = None,
    console: bool = True,
) -> Profile:
    """Train `steps` steps as a configuration, or the run at a path, says, measure them, and judge what holds them up.

    A run is profiled as it was configured, from its beginning, with `overrides` as on the command line; nothing in its
    directory is touched, and read are but `config.yaml`, and of one of `tutti.fit` the job. Everything is kept in `to`
    (default: `runs/NAME-profile`, with a number where there is one already): `profile.json`, `profile.md`, the events,
    and for each rank a trace for Perfetto or Chrome.

    Raises:
        TuttiError: it cannot be trained, or nothing could be measured; nothing is left behind then.
    """
    if steps < 1:
        raise ConfigError(f"steps is {steps}, and should be 1 or more", "leave it out, or say how many")
    if in_started_world():
        raise LaunchError(
            "torchrun starts all processes of a run itself", "run `tutti profile` without torchrun"
        )
    say, former = printer(console), target if isinstance(target, Path) else None
    if former is not None:
        RunDirectory(former).require()
    config = load_config(former / "config.yaml", overrides) if former is not None else target
    assert isinstance(config, Config)
    if count_groups(config) > 1:
        raise ConfigError(
            f"groups: {count_groups(config)} are several runs side by side", "profile one of them: groups=1"
        )
    # Nobody is to be woken, nor told of a run that is none.
    config = config.model_copy(update={"alerts": AlertsConfig(), "trackers": []})
    resolved, prepared = _begin(config, former, say)
    plan = Profiling(_WARM_UP, steps, _TRACED)
    place = _place(resolved.config, to)
    try:
        return _profile(resolved, prepared, former, plan, place, say)
    except BaseException:
        shutil.rmtree(place, ignore_errors=True)
        raise


def _begin(
    config: Config, former: Path | None, say: Say
) -> tuple[Resolved, Prepared | PreparedExamples | None]:
    """What would run, and what it would learn (None: what `tutti.fit` was given)."""
    if config.model.python is None:
        return start_run(config, say)
    if former is None or not (former / JOB_FILE).is_file():
        raise ConfigError(
            "model.python belongs to tutti.fit", "profile the run that it made: `tutti profile runs/NAME`"
        )
    resolved = resolve(config, Facts(parameters=1, tokens_per_sample=1, validation_samples=1))
    chosen = resolved.config
    check_sync(
        chosen.sync, chosen.train.precision, optimizer=chosen.train.optimizer, parts=chosen.layout.ranks
    )
    assert isinstance(chosen.train.batch, int) and isinstance(chosen.replicas, int)
    check_layout(chosen.layout, anything_else(chosen.train.batch // chosen.replicas))
    return resolved, None


def _place(config: Config, to: Path | None) -> Path:
    """A new, empty directory for what is found."""
    beside = Path(config.runs).expanduser() / f"{config.name}-profile"
    place, number = to if to is not None else beside, 1
    while to is None and place.exists():
        number += 1
        place = beside.with_name(f"{beside.name}-{number}")
    if place.exists():
        raise RunError(f"there is something at {place} already", "name another directory, or delete it")
    try:
        place.mkdir(parents=True)
    except OSError as error:
        raise unwritable(place, error) from error
    return place


def _profile(
    resolved: Resolved,
    prepared: Prepared | PreparedExamples | None,
    former: Path | None,
    plan: Profiling,
    place: Path,
    say: Say,
) -> Profile:
    run = RunDirectory(Path(tempfile.mkdtemp(prefix=".run-", dir=place)))
    if prepared is None:
        assert former is not None
        shutil.copyfile(former / JOB_FILE, run.path / JOB_FILE)
    watch = resolved.config.watch.model_copy(update={"max_restarts": 0})
    resolved.config = resolved.config.model_copy(update={"watch": watch})
    directory = prepared.directory if prepared is not None else None
    supervision = Supervision(run, resolved, directory, resume=False, console=False, profiling=plan)
    say(
        f"profiling {resolved.config.name}: {plan.warm_up} steps to warm up, {plan.measured} measured, {plan.traced} "
        "traced" + (", after the links between replicas" if supervision.measures_links else "")
    )
    try:
        report = supervision.execute()
    except LaunchError as error:  # which says how to resume
        raise LaunchError(error.problem, "mend that, and profile again") from error
    if report["state"] == "interrupted":
        raise KeyboardInterrupt
    _note(run, resolved, prepared, plan)
    figures = read_profile(read_events(run.path))
    if figures is None:
        raise RunError("no step could be measured", f"more steps may help: --steps {2 * plan.measured}")
    verdict = judge(figures)
    found = profile_json(resolved.config.name, figures, verdict)
    write_json_atomically(place / "profile.json", found)
    write_text_atomically(place / "profile.md", profile_page(resolved.config.name, figures, verdict))
    for path in (run.events, run.logs, run.path / "traces"):
        if path.exists():
            path.rename(place / path.name)
    shutil.rmtree(run.path)
    return Profile(place, figures, verdict, found)


def _note(
    run: RunDirectory, resolved: Resolved, prepared: Prepared | PreparedExamples | None, plan: Profiling
) -> None:
    """Tell the events what the run is to be, and what other ways there are to agree."""
    events = EventWriter(run.events, LAUNCHER_RANK)
    config = resolved.config
    train, sync = config.train, config.sync
    assert isinstance(config.replicas, int) and isinstance(sync.every, int)
    held = shortened(config, plan).sync.every
    assert isinstance(held, int)
    events.write(
        "profile",
        phase="planned",
        kind_of_job="function"
        if prepared is None
        else "text"
        if isinstance(prepared, Prepared)
        else "labelled",
        replicas=config.replicas,
        shares=config.replicas * config.layout.shard,
        batch=train.batch,
        micro_batch=train.micro_batch,
        precision=train.precision,
        compile=train.compile,
        recompute=config.memory.recompute,
        offload=config.memory.offload,
        policy=sync.policy,
        drifts=sync.policy in ("local_sgd", "diloco", "gossip"),
        spread=sync.shares,
        membership=sync.membership,
        rounds_held=held / sync.every,
        checkpoint_every=config.checkpoint.every,
        validate_every=config.evaluate.every,
        threads=resolved.threads,
        cores=usable_cores(),
        cache=str(config.data.cache),
    )
    measured = read_measured(run, 0.0, config.replicas * config.layout.ranks)
    if measured is not None:
        events.write("profile", phase="ways", **_ways(resolved, measured))
    events.close()


def _ways(resolved: Resolved, measured: list[Measured]) -> dict[str, Any]:
    """Seconds of a step as predicted from what ranks measured: as it is, and as `sync: auto` would have it."""
    config = resolved.config
    opened = replace(resolved, config=config.model_copy(update={"sync": left_open(config.sync)}))
    best = choose(settled_rungs(opened), measured).rung
    links = [rank.links[travels_as(config.sync.codec)] for rank in measured]
    slowest = min(links, key=lambda link: link.bytes_per_second)
    return {
        "link_bytes_per_second": slowest.bytes_per_second,
        "link_latency_seconds": slowest.latency_seconds,
        "own_setting": _setting(config.sync),
        "own_seconds": step_seconds(config.sync, measured),
        "best": {
            "setting": _setting(best.sync),
            "seconds": step_seconds(best.sync, measured),
            "price": best.price,
        },
    }


def _setting(sync: SyncConfig) -> str:
    """As it is typed: `{policy: allreduce, codec: bf16}`."""
    said = {"policy": sync.policy, "codec": sync.codec} | (
        {} if sync.policy == "allreduce" else {"every": sync.every}
    )
    return yaml.safe_dump(said, default_flow_style=True, sort_keys=False, width=1000).strip()
