"""One error, shown once: the first cause, not the N echoes of it.

When one rank dies, its peers die of a closed connection a moment later. So the earliest error that is not
about communication is the cause; the others are only counted.
"""

from __future__ import annotations

import re
from pathlib import Path

from tutti.core import RunDirectory, read_events
from tutti.observe import words
from tutti.observe.happened import rank_name
from tutti.observe.tail import Event, when

_ECHO = re.compile(
    r"connection (was )?(closed|reset|refused|aborted)|closed by peer|broken pipe|socket|timed? ?out|timeout"
    r"|\bgloo\b|\bnccl\b|process ?group|heartbeat|rendezvous|tcpstore|distnetwork|distbackend"
    r"|distributed backend|peer (is )?(gone|left|died)|read error|write error: |sigterm",
    re.IGNORECASE,
)


def is_echo(event: Event) -> bool:
    """Whether this error only says that another rank could not be reached (`peer`: its writer knew that)."""
    if event.get("user") or event.get("peer"):
        return bool(event.get("peer"))
    return bool(_ECHO.search(f"{event.get('type', '')}: {event.get('message', '')}"))


def find_cause(errors: list[Event]) -> Event | None:
    """The earliest error that is no echo, or the earliest of all; before them one that arose where it was met."""
    ordered = sorted(errors, key=lambda event: (not event.get("here", True), when(event)))
    return next((event for event in ordered if not is_echo(event)), ordered[0] if ordered else None)


def summarise_errors(run: Path, since: float) -> str | None:
    """The error that ended (or shook) the run after Unix time `since`, in a few lines, or None."""
    errors = [event for event in read_events(run, "error") if when(event) >= since]
    cause = find_cause(errors)
    if cause is None:
        return None
    rank, step = cause.get("rank"), cause.get("step")
    message = str(cause.get("message") or "").strip() or "(no message)"
    hint = str(cause.get("hint") or "").strip()
    if hint and message.endswith(f"→ {hint}"):  # a TuttiError's text ends with its hint already
        message = message[: -len(f"→ {hint}")].rstrip()
    at = f" at step {int(step):,}" if isinstance(step, int) else ""
    lines = [f"{rank_name(rank).capitalize()} failed{at}: {cause.get('type', 'error')}: {message}"]
    if hint:
        lines.append(f"  → {hint}")
    if others := _others(errors, cause):
        lines.append(f"  {others}")
    lines.append(f"  log with the traceback: {log_of(run, rank)}")
    return "\n".join(lines)


def _others(errors: list[Event], cause: Event) -> str:
    by_rank = {e.get("rank"): e for e in errors if e.get("rank") not in (cause.get("rank"), -1)}
    echoes = sum(is_echo(event) for event in by_rank.values())
    same = sum(not is_echo(e) and e.get("type") == cause.get("type") for e in by_rank.values())
    different = len(by_rank) - echoes - same
    parts = []
    if same:
        parts.append(f"{words.plural(same, 'other rank')} met the same error")
    if different:
        parts.append(f"{words.plural(different, 'other rank')} failed after it in another way")
    if echoes:
        parts.append(f"{words.plural(echoes, 'other rank')} lost the connection because of it")
    return "; ".join(parts)


def log_of(run: Path, rank: object) -> Path:
    """The newest file that holds what `rank` printed; the directory of logs when there is none."""
    logs = RunDirectory(run).logs
    exact = re.compile(rf"(^|\D)rank-?{rank}(\D|$)")
    found = [path for path in logs.rglob("*") if path.is_file() and exact.search(path.name)]
    return max(found, key=lambda path: path.stat().st_mtime, default=logs)
