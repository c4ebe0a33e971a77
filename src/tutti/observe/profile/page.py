"""A profile as people and programs read it: the verdict first, then what it rests on."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tutti.observe import words
from tutti.observe.profile.cause import Cause, spent
from tutti.observe.profile.figures import Figures
from tutti.observe.profile.ranks import RankSteps
from tutti.observe.profile.verdict import Verdict
from tutti.observe.tail import number

#: Operators on the console; on the page there are more.
_SHOWN, _LISTED = 8, 40
_WIDEST = 60


def profile_json(name: str, figures: Figures, verdict: Verdict) -> dict[str, Any]:
    """The content of `profile.json`: plain JSON values."""
    return {
        "name": name,
        "bottleneck": verdict.bottleneck.kind,
        "verdict": _plain(verdict.bottleneck),
        "others": [_plain(cause) for cause in verdict.others],
        "notes": figures.notes,
        "step_seconds": figures.seconds,
        "parts": figures.parts,
        "flops": figures.flops,
        "peak_flops": figures.peak_flops,
        "mfu": figures.mfu,
        "utilisation": figures.utilisation,
        "products_share": figures.products_share,
        "peak_memory_bytes": figures.peak_bytes,
        "memory_bytes": figures.memory_bytes,
        "stalled_seconds": figures.stalled,
        "ranks": [_rank(rank) for rank in figures.ranks],
        "operators": figures.trace.get("heaviest", []),
        "ways": {key: value for key, value in (figures.ways or {}).items() if key not in _OF_EVENTS} or None,
        "planned": {key: value for key, value in figures.planned.items() if key not in _OF_EVENTS},
    }


#: What every event has.
_OF_EVENTS = ("time", "kind", "rank", "replica", "phase")


def _plain(cause: Cause) -> dict[str, Any]:
    return asdict(cause) | {"evidence": list(cause.evidence)}


def _rank(rank: RankSteps) -> dict[str, Any]:
    seconds = {
        part: rank.mean(part)
        for part in ("seconds", "alone", "data", "forward", "backward", "exchange", "optimizer", "sync")
    }
    return {
        "rank": rank.rank,
        "replica": rank.replica,
        "steps": len(rank.steps),
        "step_seconds": seconds.pop("seconds"),
        **{f"{part}_seconds": value for part, value in seconds.items()},
        "samples_per_second": rank.rate,
        "sent_bytes": rank.sent_bytes / max(1, len(rank.steps)),
        "busy": rank.busy,
        "peak_memory_bytes": rank.peak_bytes,
        **{counter: rank.used_in_step(counter) for counter in rank.used if counter != "stalled_seconds"},
        "trace": rank.said.get("traced", {}).get("trace"),
    }


def print_profile(
    figures: Figures, verdict: Verdict, places: list[tuple[str, Path]], console: Console | None = None
) -> None:
    """The verdict, where a step goes, the heaviest operators, and where the rest lies."""
    console = console or Console(highlight=False)
    console.print()
    found = verdict.bottleneck
    head = f"bottleneck: {found.kind}"
    console.print(
        Text(head, style="bold").append(f", {words.percent(found.share)} of a step", style="not bold")
    )
    for line in found.evidence:
        console.print(Text(f"  {line}"))
    console.print(Text("change      ", style="dim").append(found.change, style="bold not dim"))
    console.print(Text("expected    ", style="dim").append(expectation(found, figures), style="not dim"))
    for note in figures.notes:
        console.print(Text("note        ", style="dim").append(note, style="yellow not dim"))
    for cause in verdict.others:
        console.print(
            Text("then        ", style="dim").append(
                f"{cause.kind}, {words.percent(cause.share)}: {cause.change}", style="not dim"
            )
        )
    console.print()
    console.print(_table("where a step goes", ("", "seconds", "share"), step_rows(figures)))
    if len(figures.ranks) > 1:
        console.print(_table("ranks", _RANK_HEAD, rank_rows(figures)))
    if rows := operator_rows(figures, _SHOWN):
        console.print(_table("heaviest operators of a step, traced", _OPERATOR_HEAD, rows))
    for name, path in places:
        console.print(Text(f"{name:<12}", style="dim").append(str(path), style="not dim"), soft_wrap=True)


def expectation(cause: Cause, figures: Figures) -> str:
    """What a step would take with the change, and how that is known."""
    if cause.expected_seconds is None:
        return cause.why
    times = figures.seconds / max(cause.expected_seconds, 1e-9)
    return (
        f"{spent(cause.expected_seconds)} instead of {spent(figures.seconds)} for as many samples "
        f"({times:.2f} × as fast): {cause.why}"
    )


def profile_page(name: str, figures: Figures, verdict: Verdict) -> str:
    """`profile.md`."""
    found = verdict.bottleneck
    lines = [
        f"# What holds {name} up",
        "",
        f"**{found.kind}**, {words.percent(found.share)} of a step of {spent(figures.seconds)}.",
        "",
        *(f"- {line}" for line in found.evidence),
        "",
        f"Change: `{found.change}`",
        "",
        f"Expected: {expectation(found, figures)}.",
        "",
        *(f"**Note:** {note}.\n" for note in figures.notes),
    ]
    if verdict.others:
        lines += ["## Then", ""]
        for cause in verdict.others:
            lines += [
                f"**{cause.kind}**, {words.percent(cause.share)}: {cause.change}. Expected: "
                f"{expectation(cause, figures)}.",
                "",
                *(f"- {line}" for line in cause.evidence),
                "",
            ]
    lines += ["## Where a step goes", "", *_markdown(("", "seconds", "share"), step_rows(figures)), ""]
    lines += ["## Ranks", "", *_markdown(_RANK_HEAD, rank_rows(figures)), ""]
    if rows := operator_rows(figures, _LISTED):
        trace = figures.trace
        lines += [
            "## Heaviest operators",
            "",
            f"Their own seconds in a step, in {words.plural(int(trace.get('steps') or 0), 'step')} that the profiler "
            f"looked into, each {spent(number(trace.get('seconds')) or 0.0)}.",
            "",
            *_markdown(_OPERATOR_HEAD, rows),
            "",
        ]
    return "\n".join(lines)


_RANK_HEAD = ("rank", "samples/s", "alone", "exchange", "sent", "on a core", "memory")
_OPERATOR_HEAD = ("operator", "operands", "calls", "seconds", "share")


def step_rows(figures: Figures) -> list[tuple[str, ...]]:
    """A row for each part of a step that takes any time."""
    rows: list[tuple[str, ...]] = [
        (part, spent(seconds), words.percent(seconds / figures.seconds))
        for part, seconds in figures.parts.items()
        if seconds > 0
    ]
    return [*rows, ("a step", spent(figures.seconds), "")]


def rank_rows(figures: Figures) -> list[tuple[str, ...]]:
    """A row for each rank."""
    return [
        (
            str(rank.rank),
            words.rate(rank.rate),
            spent(rank.mean("alone") or 0.0),
            spent((rank.mean("exchange") or 0.0) + (rank.mean("sync") or 0.0)),
            words.size(rank.sent_bytes / max(1, len(rank.steps))),
            words.percent(rank.busy),
            words.size(rank.peak_bytes),
        )
        for rank in figures.ranks
    ]


def operator_rows(figures: Figures, most: int) -> list[tuple[str, ...]]:
    """The operators of a step whose own time is the longest."""
    trace = figures.trace
    whole = sum(number(trace.get(key)) or 0.0 for key in ("own_seconds", "device_seconds"))
    return [
        (
            str(row["name"]),
            _short(str(row["shapes"])),
            f"{row['calls']:.0f}",
            spent(max(row["seconds"], row["device_seconds"])),
            words.percent(max(row["seconds"], row["device_seconds"]) / whole) if whole else "–",
        )
        for row in trace.get("heaviest", [])[:most]
    ]


def _short(shapes: str) -> str:
    return shapes if len(shapes) <= _WIDEST else f"{shapes[: _WIDEST - 1]}…"


def _table(title: str, head: tuple[str, ...], rows: list[tuple[str, ...]]) -> Table:
    table = Table(title=Text(title, style="bold"), title_justify="left")
    for number_of_column, column in enumerate(head):
        table.add_column(Text(column), overflow="fold", justify="left" if number_of_column == 0 else "right")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def _markdown(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    lines = [head, tuple("---" for _ in head), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]
