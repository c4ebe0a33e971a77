"""Several groups in one run: which is best, and what they learnt from each other."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tutti.core import RunDirectory, write_json_atomically, write_text_atomically
from tutti.core.events import read_events
from tutti.core.rundir import unwritable
from tutti.observe import words
from tutti.observe.figures import compute_figures, finite
from tutti.observe.history import read_history
from tutti.observe.page import markdown_table, read_config
from tutti.observe.question import Question
from tutti.observe.result import Commands, next_moves
from tutti.observe.tail import Event, number, when

#: Figures of the best group that stand for the run where runs are listed and compared.
_OF_THE_BEST = (
    *("steps", "steps_planned", "tokens", "parameters", "train_loss", "validation_loss"),
    *("validation_bits_per_byte", "best_validation_loss", "tokens_per_second", "precision", "policy"),
)
_ROWS = 12


def has_groups(run: Path) -> bool:
    """Whether the run at `run` is of several groups."""
    return RunDirectory(run).groups.is_dir()


def summarise_groups(run: Path) -> dict[str, Any]:
    """The figures of a run of groups as they stand now: those of the best, and in `groups` those of each."""
    places = sorted(RunDirectory(run).groups.iterdir(), key=lambda path: int(path.name))
    ends = _ends(run)
    groups: list[dict[str, Any]] = []
    for place in places:
        history = read_history(place)
        figures = compute_figures(place, history)
        end = ends.get(int(place.name), {})
        learnt = _learnt(list(read_events(place, "cooperation")), figures, len(places))
        groups.append(
            {"group": int(place.name), "path": str(place)}
            | figures
            | {"state": end.get("state", figures["state"]), "reason": end.get("reason", ""), "learnt": learnt}
        )
    measured = [g for g in groups if g["validation_loss"] is not None]
    best = min(
        measured, key=lambda g: (g["validation_loss"], g["group"]), default=groups[0] if groups else {}
    )
    started = [g["started"] for g in groups if g["started"]]
    ended = [g["ended"] for g in groups if g["ended"]]
    return {
        "name": run.name,
        "state": _state([g["state"] for g in groups]),
        "best_group": best.get("group") if measured else None,
        **{key: best.get(key) for key in _OF_THE_BEST},
        "wall_seconds": max((g["wall_seconds"] for g in groups), default=0.0),
        "started": min(started, default=None),
        "ended": max(ended, default=None),
        "exchange": (read_config(run).get("cooperate") or {}).get("exchange"),
        "groups": groups,
    }


def _ends(run: Path) -> dict[int, Event]:
    """How each group ended, by the last command that was given."""
    began = max((when(event) for event in read_events(run, "launched")), default=0.0)
    return {int(e["group"]): e for e in read_events(run, "group_ended") if when(e) >= began}


def _state(states: list[str]) -> str:
    """One group that failed does not make the run fail; nobody calls it finished before all have ended."""
    for state in ("running", "interrupted", "finished"):
        if state in states:
            return state
    return "failed"


def _learnt(events: list[Event], figures: Mapping[str, Any], groups: int) -> dict[str, Any]:
    """What a group's events of `cooperation` add up to. `share_of_allreduce`: of what it would have sent, had the
    groups been replicas whose fp32 gradients are summed at every step."""
    taught = sum(int(e.get("taught") or 0) for e in events)
    sent = {"sent_bytes": 0, "received_bytes": 0, "lost": 0}
    before: dict[tuple[str, int], int] = {}
    for event in sorted(events, key=when):
        for key in sent:
            rank, value = int(event.get("rank") or 0), int(event.get(key) or 0)
            last = before.get((key, rank), 0)
            sent[key] += value - last if value >= last else value  # a new process counts from zero
            before[key, rank] = value
    heard: dict[str, int] = {}
    for event in events:
        for group, step in (event.get("heard") or {}).items():
            heard[group] = max(int(step), heard.get(group, 0))
    parameters, steps = figures.get("parameters"), figures.get("steps")
    allreduce = 2 * (groups - 1) / groups * 4 * parameters * steps if parameters and steps else None
    return {
        "targets": sum(int(e.get("targets") or 0) for e in events),
        "taught": taught,
        "divergence": _mean(events, "divergence", taught),
        "age_steps": _mean(events, "age_steps", taught),
        "heard": heard,
        **sent,
        "share_of_allreduce": sent["sent_bytes"] / allreduce if allreduce else None,
    }


def _mean(events: list[Event], key: str, taught: int) -> float | None:
    if not taught:
        return None
    return sum((finite(e.get(key)) or 0.0) * int(e.get("taught") or 0) for e in events) / taught


def write_groups_report(run: Path) -> dict[str, Any]:
    """Write `report.json` and `report.md` of a run of groups; returns the figures.

    Raises:
        RunError: the directory cannot be written.
    """
    run = run.absolute()
    figures = summarise_groups(run)
    try:
        write_text_atomically(RunDirectory(run).report_markdown, _page(run, figures))
        write_json_atomically(RunDirectory(run).report_json, figures)
    except OSError as error:
        raise unwritable(run, error) from error
    return figures


# In words ------------------------------------------------------------------------------------------------------


def group_rows(figures: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """A row for each group under `GROUP_HEAD`."""
    rows: list[tuple[str, ...]] = []
    for group in figures["groups"]:
        best = " (best)" if group["group"] == figures["best_group"] else ""
        planned = f" of {group['steps_planned']:,}" if group["steps_planned"] else ""
        rows.append(
            (
                f"{group['group']}{best}",
                str(group["state"]),
                words.count(group["parameters"]),
                f"{group['steps']:,}{planned}",
                words.figure(group["validation_loss"]),
                words.figure(group["validation_bits_per_byte"]),
                words.rate(group["tokens_per_second"]),
            )
        )
    return rows


GROUP_HEAD = ("group", "state", "parameters", "steps", "validation", "bits/byte", "tokens/s")


def _learnt_rows(figures: Mapping[str, Any]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for group in figures["groups"]:
        learnt = group["learnt"]
        share = learnt["taught"] / learnt["targets"] if learnt["targets"] else None
        rows.append(
            (
                str(group["group"]),
                f"{learnt['targets']:,}",
                words.percent(share),
                words.figure(learnt["divergence"]),
                "–" if learnt["age_steps"] is None else f"{learnt['age_steps']:.0f} steps",
                ", ".join(f"{g} (step {s:,})" for g, s in sorted(learnt["heard"].items())) or "nobody",
                words.size(learnt["sent_bytes"]),
                words.percent(learnt["share_of_allreduce"]),
            )
        )
    return rows


_LEARNT_HEAD = (
    *("group", "targets after the burn-in", "of these with a lesson", "KL to the others", "age of a lesson"),
    *("heard last of", "sent", "of all-reduce"),
)


def _course_rows(run: Path) -> list[tuple[str, ...]]:
    """What happened from exchange to exchange, at most `_ROWS` of each group."""
    rows: list[tuple[str, ...]] = []
    for place in sorted(RunDirectory(run).groups.iterdir(), key=lambda path: int(path.name)):
        by_step: dict[int, list[Event]] = {}
        for event in read_events(place, "cooperation"):
            by_step.setdefault(int(event.get("step") or 0), []).append(event)
        steps = sorted(by_step)
        shown = [steps[i * len(steps) // _ROWS] for i in range(_ROWS)] if len(steps) > _ROWS else steps
        for step in shown:
            events = by_step[step]
            targets = sum(int(e.get("targets") or 0) for e in events)
            taught = sum(int(e.get("taught") or 0) for e in events)
            latest = {e.get("rank"): e for e in events}.values()  # counters of a process only grow
            rows.append(
                (
                    place.name,
                    f"{step:,}",
                    words.percent(taught / targets) if targets else "burn-in",
                    words.figure(_mean(events, "divergence", taught)),
                    "–" if not taught else f"{_mean(events, 'age_steps', taught):.0f}",
                    words.size(sum(number(e.get("received_bytes")) or 0 for e in latest)),
                    str(sum(int(e.get("lost") or 0) for e in latest)),
                )
            )
    return rows


_COURSE_HEAD = ("group", "step", "with a lesson", "KL", "age", "received so far", "lost")


def _page(run: Path, figures: dict[str, Any]) -> str:
    told = f" and told each other their {figures['exchange']}" if figures["exchange"] else ""
    best = figures["best_group"]
    lead = f"{words.plural(len(figures['groups']), 'group')} trained side by side{told}: {figures['state']}."
    if best is not None:
        lead += (
            f" Group {best} is the best on text that none has seen: [its report](groups/{best}/report.md)."
        )
    failed = [f"- group {g['group']} {g['state']}: {g['reason']}" for g in figures["groups"] if g["reason"]]
    parts = [
        f"# {run.name}",
        lead,
        "## Groups",
        markdown_table(GROUP_HEAD, group_rows(figures), "llrrrrr"),
        *(["## What went wrong", "\n".join(failed)] if failed else []),
        "## What they learnt from each other",
        markdown_table(_LEARNT_HEAD, _learnt_rows(figures), "lrrrrlrr"),
        "*Of all-reduce*: what was sent, beside what a replica would have sent to sum fp32 gradients at every step.",
        "## From exchange to exchange",
        markdown_table(_COURSE_HEAD, _course_rows(run), "lrrrrrr"),
    ]
    return "\n\n".join(parts) + "\n"


def print_groups_ending(
    run: Path, figures: Mapping[str, Any], commands: Commands, console: Console | None = None
) -> None:
    """The last screen of a run of groups."""
    console = console or Console(highlight=False)
    console.print()
    table = Table(title=Text(f"run {run.name}: {figures['state']}", style="bold"), title_justify="left")
    for column in GROUP_HEAD:
        table.add_column(column)
    for row in group_rows(figures):
        table.add_row(*row)
    console.print(table)
    for group in figures["groups"]:
        if group["reason"]:
            console.print(Text(f"group {group['group']} {group['state']}: {group['reason']}"), soft_wrap=True)
    console.print(Text(f"Report  {RunDirectory(run).report_markdown}"), soft_wrap=True)
    best = figures["best_group"]
    moves = [(commands.resume, "go on from the last checkpoints")] if figures["state"] != "finished" else []
    if best is not None and figures["state"] == "finished":
        place = RunDirectory(run).groups / str(best)
        question = Question("generate", "Once upon a time")
        moves = [m for m in next_moves(place, figures, question, commands) if m[0] != commands.resume]
    for command, purpose in moves:
        console.print(
            Text(f"  {command}", style="bold").append(f"   # {purpose}", style="dim"), soft_wrap=True
        )
