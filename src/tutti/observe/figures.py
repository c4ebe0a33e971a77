"""The figures of a run, computed from its events alone: the content of `report.json`.

tokens_per_second = tokens ÷ sum of the steps' seconds               (surviving steps)
mfu               = flops_per_token · tokens ÷ sum of seconds · peak (the peak measured at the start)
goodput           = sum of the surviving steps' seconds ÷ wall seconds
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tutti.core import RunDirectory
from tutti.observe.history import History
from tutti.observe.noise import noise_figures
from tutti.observe.tail import Event, number, when

#: A run whose last sign of life is older than this is not running any more, whatever its files say.
_SIGN_SECONDS = 60.0

_LAST_STEPS = 20


def compute_figures(run: Path, history: History) -> dict[str, Any]:
    """Everything of the report that is a figure; what the events don't tell is None."""
    start, steps = history.start, history.steps
    tokens, seconds = sum(s.tokens for s in steps), sum(s.seconds for s in steps)
    loss, loss_basis = _train_loss(history)
    validation = history.validations[-1] if history.validations else {}
    bests = [v for e in history.validations if (v := finite(e.get("loss"))) is not None]
    mfu, mfu_basis = _mfu(history)
    wall = history.wall_seconds
    return {
        "name": run.name,
        "state": run_state(run, history),
        "steps": steps[-1].step if steps else 0,
        "steps_planned": start.get("steps"),
        "tokens": tokens,
        "train_loss": loss,
        "train_loss_basis": loss_basis,
        "validation_loss": finite(validation.get("loss")),
        "validation_bits_per_byte": finite(validation.get("bits_per_byte")),
        "validation_metrics": validation.get("metrics"),
        "validation_step": validation.get("step"),
        "best": _best(history),
        "test": {key: history.of("test")[-1].get(key) for key in ("step", "loss", "metrics")}
        if history.of("test")
        else None,
        "best_validation_loss": min(bests, default=None),
        "gradient_noise": noise_figures(steps),
        "tokens_per_second": tokens / seconds if seconds > 0 else None,
        "mfu": mfu,
        "mfu_basis": mfu_basis,
        "wall_seconds": wall,
        "goodput": min(1.0, seconds / wall) if wall > 0 else None,
        "peak_memory_bytes": max(
            (int(n) for e in history.of("memory") if (n := number(e.get("peak_memory_bytes"))) is not None),
            default=None,
        ),
        "world_size": start.get("world_size"),
        "replicas": start.get("replicas"),
        "layout": start.get("layout"),
        "policy": start.get("policy"),
        "transport": start.get("transport"),
        "precision": start.get("precision"),
        "parameters": start.get("parameters"),
        "bytes_sent": sum(sent for _, sent in sent_by_step(history)),
        "restarts": history.restarts,
        "steps_repeated": history.lost_steps,
        "stalls": len(history.of("stalled")),
        "checkpoints": [
            {
                key: event.get(key)
                for key in ("step", "path", "bytes", "blocked_seconds", "write_seconds", "best")
            }
            for event in history.of("checkpoint")
        ],
        "time": time_spent(history),
        "choices": list(start.get("choices") or []),
        "started": history.first_time,
        "ended": history.last_time,
    }


def _best(history: History) -> dict[str, Any] | None:
    """Step and metrics of the checkpoint that was the best when it was saved; None where there are no metrics."""
    steps = [event.get("step") for event in history.of("checkpoint") if event.get("best")]
    found = [e for e in history.validations if e.get("metrics") and e.get("step") in steps[-1:]]
    return {"step": found[-1]["step"], "metrics": found[-1]["metrics"]} if found else None


def finite(value: Any) -> float | None:
    """A finite figure, or None: JSON has no NaN."""
    found = number(value)
    return found if found is not None and math.isfinite(found) else None


def _train_loss(history: History) -> tuple[float | None, str]:
    last = history.steps[-max(_LAST_STEPS, len(history.steps) // 10) :]
    if not last:
        return None, "no step was finished"
    return finite(sum(s.loss for s in last) / len(last)), f"mean over the last {len(last)} steps"


def _mfu(history: History) -> tuple[float | None, str]:
    per_token = finite(history.start.get("flops_per_token"))
    measured = [s for s in history.steps if s.peak_flops and math.isfinite(s.peak_flops)]
    possible = sum(s.seconds * (s.peak_flops or 0.0) for s in measured)
    if per_token is None or possible <= 0:
        return None, "not known: no peak was measured or the model's arithmetic is not known"
    if (mfu := share_of_peak(per_token * sum(s.tokens for s in measured), possible)) is None:
        return (
            None,
            "not known: steps were faster than the measured peak, so the machine was busy at the start",
        )
    peak = measured[-1].peak_flops or 0.0
    ranks, precision = history.start.get("world_size", "?"), history.start.get("precision", "?")
    basis = (
        f"against {peak / 1e9:,.0f} GFLOP/s: {precision} matrix products measured on this machine "
        f"at the start of the run, all {ranks} workers together"
    )
    return mfu, basis


def share_of_peak(operations: float, possible: float) -> float | None:
    """Share of the `possible` operations that were done. None: not known, or more were done than the measured peak
    allows. The peak is measured in half a second at the start; a machine that was busy just then has spoiled it."""
    if possible <= 0 or not math.isfinite(possible) or operations > possible:
        return None
    return operations / possible


def sent_by_step(
    history: History, first: int = 0, before: dict[int, tuple[int, int]] | None = None
) -> Iterator[tuple[int, int]]:
    """(step, bytes that a rank has sent since it last said), ordered by time. A rank's counter is cumulative, and
    begins at zero again in a new process. `first`: of the history's counters; `before`: what to know of those before
    it."""
    before = {} if before is None else before
    counters = history.counters[first:]
    starts = {replica: history.process_starts(replica) for replica in {counter[2] for counter in counters}}
    for time_written, rank, replica, value, step in counters:
        attempt = sum(begin <= time_written for begin in starts[replica])
        last_attempt, last = before.get(rank, (attempt, 0))
        fresh = value < last or attempt != last_attempt
        yield step, value if fresh else value - last
        before[rank] = (attempt, value)


def time_spent(history: History) -> dict[str, float]:
    """Where the wall time went, in seconds; the parts add up to `wall_seconds` (but for rounding)."""
    steps = history.steps
    wait, sync = sum(s.wait_data_seconds for s in steps), sum(s.sync_seconds for s in steps)
    whole = sum(s.seconds for s in steps)
    saving = sum(number(e.get("blocked_seconds")) or 0.0 for e in history.of("checkpoint"))
    validation = sum(number(e.get("seconds")) or 0.0 for e in history.validations)
    known = whole + saving + validation + history.lost_seconds
    return {
        "compute": max(0.0, whole - wait - sync),
        "waiting for data": wait,
        "sync": sync,
        "checkpoint": saving,
        "validation": validation,
        "repeated after a restart": history.lost_seconds,
        "start-up, rehearsal and the rest": max(0.0, history.wall_seconds - known),
    }


def run_state(run: Path, history: History, now: float | None = None) -> str:
    """`finished`, `interrupted`, `failed` or `running`.

    What the last attempt wrote last decides. A run that was killed whole wrote nothing: it counts as running
    only while it shows signs of life.
    """
    ends: list[Event] = []
    for kind in ("finished", "interrupted", "error", "gave_up"):
        ends += [event for event in history.of(kind) if when(event) >= history.begun]
    if last := [event for event in ends if event["kind"] == "finished"]:
        return "interrupted" if last[-1].get("state") == "interrupted" else "finished"
    restarts = [when(event) for event in history.of("restart")]
    ends = [event for event in ends if when(event) >= max(restarts, default=0.0)]
    if any(event["kind"] == "interrupted" for event in ends):
        return "interrupted"
    if any(event["kind"] == "gave_up" for event in ends):
        return "failed"
    alive = max(history.last_time, _last_sign(run))
    if ends:
        # Another rank's error may yet be answered by a restart; steps after it mean that it was (diloco).
        last_step = history.steps[-1].time if history.steps else 0.0
        if last_step <= max(when(event) for event in ends):
            return "failed"
    return "running" if (time.time() if now is None else now) - alive < _SIGN_SECONDS else "interrupted"


def given_up(history: History) -> str | None:
    """Why the launcher has given the run up; None: it has not."""
    return next((str(e.get("reason")) for e in history.of("gave_up") if when(e) >= history.begun), None)


def _last_sign(run: Path) -> float:
    """Of a worker, or of the launcher, who sees to those that are silent."""
    latest = 0.0
    for path in RunDirectory(run).live.glob("*.json"):
        try:
            latest = max(latest, number(json.loads(path.read_text()).get("time")) or 0.0)
        except (OSError, ValueError, AttributeError):
            continue
    return latest
