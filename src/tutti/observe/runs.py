"""The runs in a directory: listed, shown, compared."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tutti.core import RunDirectory, RunError
from tutti.observe.arms import arms_of, differences
from tutti.observe.compared import draw_comparison, write_files
from tutti.observe.history import read_history
from tutti.observe.page import flat, read_config
from tutti.observe.report import summarise

_LISTED = (
    *("name", "state", "steps", "steps_planned", "parameters", "train_loss", "validation_loss"),
    *("validation_bits_per_byte", "tokens_per_second", "wall_seconds", "started"),
)

_COMPARED = (
    *("state", "steps", "tokens", "parameters", "train_loss", "validation_loss", "validation_bits_per_byte"),
    *("best_validation_loss", "tokens_per_second", "mfu", "wall_seconds", "goodput", "peak_memory_bytes"),
    *("world_size", "policy", "precision", "bytes_sent", "restarts"),
)

#: Settings that say nothing about what was learned, or how: their sections.
_BESIDE = ("name", "runs", "trackers", "alerts")


def list_runs(directory: Path) -> list[dict[str, Any]]:
    """One row of figures for every run in `directory`, the newest first (empty when there are none)."""
    if not directory.is_dir():
        return []
    rows = []
    for path in directory.iterdir():
        if RunDirectory(path).config.is_file():
            figures = _figures(path)
            rows.append({key: figures.get(key) for key in _LISTED} | {"path": str(path)})
    return sorted(rows, key=lambda row: row["started"] or 0.0, reverse=True)


def show_run(run: Path) -> dict[str, Any]:
    """All figures of the run as they stand now, with `path` and `config`.

    Raises:
        RunError: there is no run at `run`.
    """
    RunDirectory(run).require()
    return summarise(run) | {"path": str(run), "config": read_config(run)}


def compare_runs(
    runs: Sequence[Path], *, png: Path | None = None, html: Path | None = None
) -> dict[str, Any]:
    """`{runs: names, config: {dotted.key: values}, figures: {name: values}, arms, differences}`, a value for each run.

    `config` holds only the settings in which the runs differ. Runs that differ in seeds alone are one of the `arms`;
    `differences` say of every arm beside the first one what is more than chance. `png`, `html`: files for the curves,
    and for all of it.

    Raises:
        RunError: there is no run at one of the paths, or no directory for a file.
    """
    for run in runs:
        RunDirectory(run).require()
    for file in (png, html):
        if file is not None and not file.absolute().parent.is_dir():
            raise RunError(f"there is no directory {file.parent} for {file.name}", "make it, or name another")
    configs = [
        {key: value for key, value in flat(read_config(run)) if key.partition(".")[0] not in _BESIDE}
        for run in runs
    ]
    figures = [_figures(run) for run in runs]
    keys = {key: None for config in configs for key in config}  # a set that keeps order
    differing = {key: [config.get(key) for config in configs] for key in keys}
    names = [run.absolute().name for run in runs]
    arms = arms_of(names, configs)
    judged = {
        name: [_judged(figure).get(name) for figure in figures]
        for name in {name: None for figure in figures for name in _judged(figure)}
    }
    compared = {
        "runs": names,
        "config": {key: values for key, values in differing.items() if any(v != values[0] for v in values)},
        "figures": {name: [figure.get(name) for figure in figures] for name in _COMPARED} | judged,
        "arms": [{"name": arm.name, "runs": [names[number] for number in arm.runs]} for arm in arms],
        "differences": [one.told() for one in differences(arms, judged)],
    }
    if png is not None or html is not None:
        picture = draw_comparison(arms, [read_history(run) for run in runs])
        write_files(compared, picture, png, html)
    return compared


def _judged(figures: dict[str, Any]) -> dict[str, float]:
    """What says how good a run is: its best validation loss, or its task's metrics, and those of the test."""
    found = {"best_validation_loss": figures.get("best_validation_loss")}
    for part, of in (("validation", figures.get("best")), ("test", figures.get("test"))):
        for name, value in ((of or {}).get("metrics") or {}).items():
            found[f"{part} {name}"] = value
    return {name: float(value) for name, value in found.items() if isinstance(value, int | float)}


def _figures(run: Path) -> dict[str, Any]:
    """From `report.json` when nothing was written since; otherwise from the events."""
    report = RunDirectory(run).report_json
    try:
        written = report.stat().st_mtime
        events = RunDirectory(run).events.glob("rank-*.jsonl")
        if all(path.stat().st_mtime <= written for path in events):
            found = json.loads(report.read_text(encoding="utf-8"))
            if isinstance(found, dict) and found.get("state") != "running":
                return found
    except (OSError, ValueError):
        pass
    return summarise(run)
