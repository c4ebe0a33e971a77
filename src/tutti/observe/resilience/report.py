"""What disturbances cost a run: `chaos.json` and `chaos.md`, from the run's events alone.

goodput = tokens in the model ÷ seconds from the beginning of the first step to the end of the last that counts
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tutti.core import RunDirectory, write_json_atomically, write_text_atomically
from tutti.core.rundir import unwritable
from tutti.observe import words
from tutti.observe.report import summarise
from tutti.observe.resilience.account import take_account
from tutti.observe.resilience.hits import Hit, find_hits
from tutti.observe.resilience.trace import Trace, read_trace
from tutti.observe.tail import when

_PERCENTILES = (("p50", 0.5), ("p95", 0.95), ("p99", 0.99), ("max", 1.0))


def resilience_figures(run: Path, against: Path | None = None) -> dict[str, Any]:
    """What hit the run at `run` and what that cost; `against`: a run of the same configuration, undisturbed.

    Raises:
        RunError: there is no run.
    """
    for path in (run, against):
        if path is not None:
            RunDirectory(path).require()
    run = run.absolute()
    trace = read_trace(run)
    hits = find_hits(trace)
    summary = summarise(run)
    account = take_account(trace)
    goodput, seconds = _goodput(trace, account.committed)
    began = next((step.time - step.seconds for step in trace.steps), 0.0)
    plan = trace.of("chaos")[-1] if trace.of("chaos") else {}
    figures: dict[str, Any] = {
        "run": run.name,
        **{
            key: summary[key] for key in ("state", "policy", "replicas", "steps", "steps_planned", "restarts")
        },
        "seed": plan.get("seed"),
        "schedule": plan.get("schedule", []),
        "goodput_tokens_per_second": goodput,
        "seconds": seconds,
        "tokens_committed": round(account.committed * trace.tokens_per_sample),
        "samples_committed": account.committed,
        "samples_lost": account.lost,
        "samples_trained_twice": account.twice,
        "samples_waiting": account.waiting,
        "samples_computed_again": account.computed_again,
        "stall_seconds": _by_kind(hits, lambda hit: hit.stalls.values()),
        "recovery_seconds": _by_kind(
            hits, lambda hit: [] if hit.recovery_seconds is None else [hit.recovery_seconds]
        ),
        "not_recovered": sum(hit.recovered is None for hit in hits),
        "disturbances": [_hit(hit, began) for hit in hits],
        "skipped": [
            {
                "what": e.get("what"),
                "replica": e.get("of_replica"),
                "at_seconds": when(e) - began,
                "reason": e["reason"],
            }
            for e in trace.of("disturbance")
            if e.get("state") == "skipped"
        ],
        "train_loss": summary["train_loss"],
        "validation_loss": summary["validation_loss"],
        "undisturbed": None,
    }
    if against is not None:
        figures["undisturbed"] = _pair(figures, against.absolute())
    return figures


def write_resilience_report(run: Path, against: Path | None = None) -> dict[str, Any]:
    """Write `chaos.json` and `chaos.md` of the run at `run`; returns the content of the former.

    Raises:
        RunError: there is no run, or its directory cannot be written.
    """
    figures = resilience_figures(run, against)
    paths = RunDirectory(run)
    try:
        write_text_atomically(paths.chaos_markdown, resilience_page(figures))
        write_json_atomically(paths.chaos_json, figures)
    except OSError as error:
        raise unwritable(run, error) from error
    return figures


def _goodput(trace: Trace, samples: int) -> tuple[float | None, float]:
    """Tokens a second, and the seconds; time between two commands of the user counts for nobody."""
    kept = trace.kept_steps(None)
    if not kept:
        return None, 0.0
    begin = min(step.time - step.seconds for step in trace.steps)
    end = max(step.time for step in kept)
    seconds = end - begin
    for launch in sorted(when(event) for event in trace.of("launched")):
        before = max((s.time for s in trace.steps if s.time < launch), default=None)
        after = min((s.time - s.seconds for s in trace.steps if s.time > launch), default=None)
        if before is not None and after is not None:
            seconds -= max(0.0, after - before)
    return (samples * trace.tokens_per_sample / seconds if seconds > 0 else None), seconds


def _by_kind(hits: Sequence[Hit], values: Any) -> dict[str, dict[str, Any]]:
    """Percentiles for each kind of hit, and for all."""
    kinds = list(dict.fromkeys(hit.what for hit in hits))
    groups = {kind: [hit for hit in hits if hit.what == kind] for kind in kinds}
    if len(groups) > 1:
        groups["all"] = list(hits)
    return {
        kind: percentiles(value for hit in group for value in values(hit)) for kind, group in groups.items()
    }


def percentiles(values: Iterable[float]) -> dict[str, Any]:
    """Number, p50, p95, p99 and max of `values`, linear between neighbours; None where there are none."""
    ordered = sorted(values)
    found: dict[str, Any] = {"count": len(ordered)}
    for name, share in _PERCENTILES:
        place = share * (len(ordered) - 1)
        low, high = math.floor(place), math.ceil(place)
        found[name] = ordered[low] + (place - low) * (ordered[high] - ordered[low]) if ordered else None
    return found


def _hit(hit: Hit, began: float) -> dict[str, Any]:
    return {
        "what": hit.what,
        "replica": hit.victim,
        "at_seconds": hit.began - began,
        "seconds": hit.ended - hit.began,
        "speed": hit.speed,
        "planned": hit.planned,
        "recovery_seconds": hit.recovery_seconds,
        "stall_seconds": {str(replica): seconds for replica, seconds in sorted(hit.stalls.items())},
    }


def _pair(figures: dict[str, Any], against: Path) -> dict[str, Any]:
    other = resilience_figures(against)
    mine, theirs = figures["goodput_tokens_per_second"], other["goodput_tokens_per_second"]

    def difference(key: str) -> float | None:
        return None if None in (figures[key], other[key]) else figures[key] - other[key]

    kept = ("run", "state", "steps", "goodput_tokens_per_second", "seconds", "train_loss", "validation_loss")
    return {
        **{key: other[key] for key in kept},
        "goodput_ratio": mine / theirs if mine and theirs else None,
        "train_loss_difference": difference("train_loss"),
        "validation_loss_difference": difference("validation_loss"),
    }


# The page ----------------------------------------------------------------------------------------------------


def resilience_page(figures: dict[str, Any]) -> str:
    """`figures` as Markdown."""
    sections = [
        f"# {figures['run']}: what disturbances cost",
        _table(["", ""], resilience_rows(figures), "lr"),
    ]
    if figures["stall_seconds"]:
        sections += ["## Stalls of survivors, and recovery of victims", _percentile_table(figures)]
    if figures["disturbances"]:
        sections += ["## Each disturbance", _hit_table(figures)]
    if figures["skipped"]:
        lines = [
            f"- at {words.seconds(s['at_seconds'])}, {s['what']} of replica {s['replica']}: {s['reason']}"
            for s in figures["skipped"]
        ]
        sections += ["## Left out", "\n".join(lines)]
    if figures["schedule"]:
        lines = [f"- `{line}`" for line in figures["schedule"]]
        sections += [f"## Schedule (seed {figures['seed']})", "\n".join(lines)]
    return "\n\n".join(sections) + "\n"


def resilience_rows(figures: dict[str, Any]) -> list[list[str]]:
    """Name and value of what a person wants to know first."""
    pair = figures["undisturbed"] or {}
    rows = [
        ["State", f"{figures['state']}, step {figures['steps']:,} of {figures['steps_planned'] or 0:,}"],
        ["Copies", f"{figures['replicas']}, joined by {figures['policy']}"],
        ["Goodput", f"{words.rate(figures['goodput_tokens_per_second'])} tokens/s in the model"],
    ]
    if pair:
        rows.append(["÷ undisturbed run", f"{words.percent(pair['goodput_ratio'])} of {pair['run']}"])
    rows += [
        ["Samples lost", f"{figures['samples_lost']:,}"],
        ["Samples twice in the model", f"{figures['samples_trained_twice']:,}"],
        [
            "Samples computed again",
            f"{figures['samples_computed_again']:,} (of {figures['samples_committed']:,})",
        ],
        ["Restarts", f"{figures['restarts']:,}"],
        ["Training loss", _loss(figures, pair, "train_loss")],
        ["Validation loss", _loss(figures, pair, "validation_loss")],
    ]
    return rows


def _loss(figures: dict[str, Any], pair: dict[str, Any], key: str) -> str:
    difference = pair.get(f"{key}_difference")
    more = "" if difference is None else f" ({difference:+.4f} to the undisturbed run)"
    return words.figure(figures[key]) + more


def _percentile_table(figures: dict[str, Any]) -> str:
    names = [name for name, _ in _PERCENTILES]
    rows = [
        [kind, label, str(found["count"]), *(words.seconds(found[name]) for name in names)]
        for kind in figures["stall_seconds"]
        for label, key in (("stall", "stall_seconds"), ("recovery", "recovery_seconds"))
        for found in [figures[key][kind]]
    ]
    return _table(["", "", "count", *names], rows, "llrrrrr")


def _hit_table(figures: dict[str, Any]) -> str:
    rows = []
    for hit in figures["disturbances"]:
        stalls = ", ".join(f"{replica}: {words.seconds(s)}" for replica, s in hit["stall_seconds"].items())
        who = "?" if hit["replica"] is None else str(hit["replica"])
        back = hit["recovery_seconds"]
        rows.append(
            [
                *(words.seconds(hit["at_seconds"]), hit["what"], who, words.seconds(hit["seconds"] or None)),
                *("not until the end" if back is None else words.seconds(back), stalls or "–"),
            ]
        )
    head = ["at", "what", "replica", "for", "victim trains again after", "survivors stood still"]
    return _table(head, rows, "rlrrrl")


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], align: str) -> str:
    rule = ["---:" if side == "r" else "---" for side in align]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [list(head), rule, *rows])
