"""A learning rate that suits a model and its data, from one short run in which the rate grows with every step."""

from __future__ import annotations

import math
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tutti.config import Config, SyncConfig, count_groups, with_settings
from tutti.config.alerts import AlertsConfig
from tutti.core.errors import ConfigError, RunError, TrainingError, TuttiError
from tutti.core.rundir import RunDirectory
from tutti.core.say import printer
from tutti.observe.history import read_history
from tutti.observe.rates import draw_rates, judge_rates
from tutti.search.showing import shown
from tutti.starting import start_run
from tutti.supervise import Supervision, in_started_world

STEPS, _LEAST_STEPS = 200, 40
#: Rates of the first and the last step; of Adafactor they are relative to the weights.
_RANGES = {"adamw": (1e-6, 1.0), "muon": (1e-6, 1.0), "adafactor": (1e-5, 10.0)}


def find_rate(
    config: Config,
    *,
    steps: int = STEPS,
    lowest: float | None = None,
    highest: float | None = None,
    png: Path | None = None,
    console: bool = True,
) -> dict[str, Any]:
    """Find a learning rate for the model and data of `config`, in `steps` steps at rates that grow from `lowest` to
    `highest` (None: what suits the optimizer). It is a run of its own that leaves nothing behind but `png`, a picture.

    Returns `suggestion` with its `reason`; the rates at which the loss falls fastest (`steepest`), is `lowest` and
    `diverges` (None: nowhere); what `auto` would take and why; `rates`, `losses` and what is left of them when they are
    `smooth`. The same seed finds the same.

    Raises:
        TuttiError: it cannot be trained, or the loss falls at no rate.
    """
    say = printer(console)
    low, high = _range(config, steps, lowest, highest)
    if png is not None and not png.parent.is_dir():
        raise RunError(
            f"there is no directory {png.parent} for {png.name}", "make it, or give another file with --png"
        )
    runs = Path(config.runs).expanduser()
    with tempfile.TemporaryDirectory(
        prefix=".find-rate-", dir=runs if runs.is_dir() else None, ignore_cleanup_errors=True
    ) as place:
        run = RunDirectory.of(place, "rate")
        resolved, prepared = start_run(_temporary(config, place, steps, low / high), say)
        auto = resolved.config.train.learning_rate
        assert isinstance(auto, float)
        train = resolved.config.train.model_copy(update={"learning_rate": high})
        reason = next((c for c in resolved.choices if c.startswith("train.learning_rate = ")), "")
        resolved.config = resolved.config.model_copy(update={"train": train})
        resolved.choices = []
        say(f"{steps} steps, the learning rate growing from {low:.1e} to {high:.1e}")
        run.create()
        supervision = Supervision(run, resolved, prepared.directory, resume=False, console=False)
        try:
            with shown(run.path, steps, say):
                report = supervision.execute()
        except TuttiError:
            # That the loss comes apart is what is looked for; the run ends then, but its steps are there.
            if not _came_apart(run):
                raise
        else:
            if report["state"] != "finished":
                raise KeyboardInterrupt
        made = [(step.learning_rate, step.loss) for step in read_history(run.path).steps]
    rates = [rate for rate, _ in made if rate is not None]
    test = judge_rates(rates, [loss for rate, loss in made if rate is not None])
    if png is not None:
        draw_rates(test, png, f"{config.name}: {train.optimizer}, {len(rates)} steps", auto)
    return asdict(test) | {
        "optimizer": train.optimizer,
        "seed": train.seed,
        "auto": auto,
        "auto_reason": reason.partition(": ")[2],
        "png": str(png) if png is not None else None,
    }


def _range(config: Config, steps: int, lowest: float | None, highest: float | None) -> tuple[float, float]:
    """The first and the last rate. Raises ConfigError where there is nothing to find."""
    if in_started_world():
        raise ConfigError(
            "find-rate starts a short run by itself, which torchrun cannot", "start it without torchrun"
        )
    if count_groups(config) > 1:
        raise ConfigError(
            "find-rate looks at one model, and groups are several", "try it with groups=1, for each by itself"
        )
    if steps < _LEAST_STEPS:
        raise ConfigError(
            f"{steps} steps are too few to see anything", f"take {_LEAST_STEPS} or more; {STEPS} are usual"
        )
    low, high = _RANGES[config.train.optimizer]
    low, high = (low if lowest is None else lowest), (high if highest is None else highest)
    if low <= 0 or not 10 * low <= high < math.inf:
        raise ConfigError(
            f"rates cannot grow from {low:g} to {high:g}",
            "give --from above 0, and --to at least ten times that",
        )
    return low, high


def _temporary(config: Config, place: str, steps: int, first: float) -> Config:
    """`config` as a short run of its own: whatever would add to it, stop it or tell somebody is left out. `first`: rate
    of the first step, as a share of the last one's.

    Replicas sum gradients, fixed in number, whatever `sync` says: what each would do by itself depends on their number.
    """
    settings: dict[str, Any] = {
        "name": "rate",
        "runs": place,
        "search": {},
        "sync": SyncConfig(membership="fixed").model_dump(),
        "alerts": AlertsConfig().model_dump(),
        "trackers": [],
        "watch.max_restarts": 0,
        "train.steps": steps,
        "train.epochs": None,
        "train.patience": None,
        "train.average": 0.0,
        "train.schedule": "rising",
        "train.learning_rate": "auto",
        "train.warmup": 0,
        "train.final_learning_rate": first,
        "evaluate.every": steps,
        "evaluate.prompts": [],
        "checkpoint.every": steps,
        "checkpoint.keep": 1,
    }
    return with_settings(config, settings)


def _came_apart(run: RunDirectory) -> bool:
    if not run.path.exists():
        return False
    try:
        errors = read_history(run.path).of("error")
    except (OSError, RunError):
        return False
    return any(event.get("type") == TrainingError.__name__ for event in errors)
