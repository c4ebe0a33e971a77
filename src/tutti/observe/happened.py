"""One sentence for each event that a person wants to know of; the console and the report share them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tutti.observe import words
from tutti.observe.history import History
from tutti.observe.tail import Event, number, when


def sentence(event: Event) -> str | None:
    """What happened, in one sentence; None for events that say nothing by themselves."""
    make = _SENTENCES.get(str(event.get("kind")))
    return make(event) if make else None


def rank_name(rank: Any) -> str:
    """`rank 3`; the launcher is rank −1, a parameter server rank −2."""
    return {-1: "the launcher", -2: "the server"}.get(rank, f"rank {rank}")


def _step(event: Event) -> str:
    return f"step {int(number(event.get('step')) or 0):,}"


def _checkpoint(event: Event) -> str:
    best = ", the best so far" if event.get("best") else ""
    return (
        f"{_step(event)}: saved {words.size(number(event.get('bytes')))}{best} "
        f"(training waited {words.seconds(number(event.get('blocked_seconds')))}, "
        f"written in {words.seconds(number(event.get('write_seconds')))})"
    )


def _validation(event: Event) -> str:
    bits = number(event.get("bits_per_byte"))
    per_byte = f", {bits:.4f} bits per byte" if bits is not None else ""
    metrics = words.metrics(event.get("metrics"))
    said = f"{_step(event)}: validation loss {words.figure(number(event.get('loss')))}{per_byte}"
    return f"{said}, {metrics}" if metrics else said


def _test(event: Event) -> str:
    """The model is that of `step`."""
    return (
        f"final test of the model of {_step(event)}: loss {words.figure(number(event.get('loss')))}, "
        f"{words.metrics(event.get('metrics'))}"
    )


def _enough(event: Event) -> str:
    validations = words.plural(int(number(event.get("validations")) or 0), "validation")
    best = int(number(event.get("best_step")) or 0)
    return (
        f"{_step(event)}: {validations} in a row were no better than that of step {best:,}, whose model is handed on; "
        "the run ends early"
    )


def _stalled(event: Event) -> str:
    if event.get("message"):
        return str(event["message"])
    rank = event.get("of_rank", event.get("rank"))
    return (
        f"{rank_name(rank)} has not moved for {words.seconds(number(event.get('silent_seconds')))}; "
        f"its last step was {event.get('last_step')}, in phase {event.get('phase')}"
    )


def _error(event: Event) -> str:
    lines = str(event.get("message", "")).strip().splitlines() or [""]
    return f"{rank_name(event.get('rank'))} failed at {_step(event)}: {event.get('type')}: {lines[0]}"


def _membership(event: Event) -> str:
    replicas = event.get("replicas")
    members = ", ".join(map(str, replicas)) if isinstance(replicas, list) else str(replicas)
    return f"{_step(event)}: replicas {members} train together"


def _visit(event: Event) -> str:
    numbers = event.get("of_replicas")
    who = ", ".join(map(str, numbers)) if isinstance(numbers, list) else str(numbers)
    how = "comes" if event.get("kind") == "joined" else event.get("how")
    return f"machine {event.get('machine')} {how}: replicas {who}"


def _waiting(event: Event) -> str:
    missing = words.plural(int(number(event.get("missing")) or 0), "more replica")
    return f"waiting for {missing} to start; without them it begins in {words.seconds(number(event.get('seconds')))}"


def _disturbance(event: Event) -> str:
    who, what = f"chaos: replica {event.get('of_replica')}", event.get("what")
    lasts = words.seconds(number(event.get("seconds")))
    if event.get("state") == "skipped":
        return f"{who} is spared a {what}: {event.get('reason')}"
    if event.get("state") == "ended":
        return f"{who} is let go after {lasts}"
    return {
        "kill": f"{who} is killed",
        "stop": f"{who} is stopped for {lasts}",
        "slow": f"{who} is slowed down to {words.percent(number(event.get('speed')))} for {lasts}",
        "cut": f"{who} is cut off for {lasts}",
    }.get(str(what), f"{who}: {what}")


def _interrupted(event: Event) -> str:
    if event.get("killed"):
        return "stopped at once; what came after the last checkpoint is done again by --resume"
    if not event.get("trained", True):
        return "interrupted before training went on; nothing was lost"
    return f"interrupted after {_step(event)}; everything is saved"


_SENTENCES: dict[str, Callable[[Event], str | None]] = {
    "checkpoint": _checkpoint,
    "validation": _validation,
    "test": _test,
    "enough": _enough,
    "stalled": _stalled,
    "error": _error,
    "membership": _membership,
    "disturbance": _disturbance,
    "joined": _visit,
    "left": _visit,
    "waiting": _waiting,
    "recovered": lambda e: str(e.get("message")),
    "restart": lambda e: (
        f"{'the server is' if e.get('of_replica') == -1 else 'workers are'} started again "
        f"(attempt {e.get('attempt')}): {e.get('reason')}"
    ),
    "serving": lambda e: (
        f"the server went on from what it had saved at {_step(e)}" if e.get("restored") else None
    ),
    "resumed": lambda e: f"went on from the checkpoint of {_step(e)}",
    "healed": lambda e: f"replica {e.get('replica')} was healed by its peers at {_step(e)}",
    "interrupted": _interrupted,
    "gave_up": lambda e: f"the run is given up: {e.get('reason')}",
    # A run that was interrupted says so itself.
    "finished": lambda e: f"finished at {_step(e)}" if e.get("state") != "interrupted" else None,
    "rehearsal": lambda e: f"rehearsed: {e.get('what')} ({words.seconds(number(e.get('seconds')))})",
    "warning": lambda e: f"warning: {e.get('message')}",
}

#: What stands on the report's page: not the validations and checkpoints, which have tables or are many.
_TOLD = (
    *("warning", "stalled", "recovered", "error", "restart", "resumed", "healed", "membership", "serving"),
    *("disturbance", "joined", "left", "enough", "interrupted", "gave_up", "test", "finished"),
)


def happenings(history: History) -> list[str]:
    """Markdown list of what happened, oldest first; the first line says what was saved."""
    lines = []
    saves = history.of("checkpoint")
    if saves:
        waited = sum(number(event.get("blocked_seconds")) or 0.0 for event in saves)
        lines.append(
            f"- {words.plural(len(saves), 'checkpoint')} written, the last at {_step(saves[-1])}; "
            f"training waited {words.seconds(waited)} for them in all"
        )
    if history.lost_steps:
        lines.append(
            f"- {words.plural(history.lost_steps, 'step')} had to be done again after a restart "
            f"({words.seconds(history.lost_seconds)})"
        )
    for told in told_of(history):
        lines.append(f"- {words.date(told['time'])} · {told['said']}")
        if told["more"]:
            lines.append(f"  - {told['more']}")
    return lines


def told_of(history: History) -> list[dict[str, Any]]:
    """What happened, oldest first: `time`, `kind`, what is `said` of it, and `more` ("" where there is none)."""
    told: list[dict[str, Any]] = []
    members: object = None
    for event in sorted((event for kind in _TOLD for event in history.of(kind)), key=when):
        if event["kind"] == "membership":  # written at every meeting; only a change is news
            if event.get("replicas") == members:
                continue
            members = event.get("replicas")
        said = sentence(event)
        if said is None or (told and said == told[-1]["said"]):  # every rank may say it
            continue
        stack, more = event.get("stack"), ""
        if event["kind"] == "error":
            more = str(event.get("hint") or "")
        elif event["kind"] == "stalled" and isinstance(stack, list) and stack:
            more = f"it was at `{stack[-1]}`"
        told.append({"time": when(event), "kind": event["kind"], "said": said, "more": more})
    return told
