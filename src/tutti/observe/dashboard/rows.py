"""Steps as so few rows as a chart can show: neighbours are put together, and none is left out."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

from tutti.observe.figures import finite, sent_by_step, share_of_peak
from tutti.observe.growing import OPEN_STEPS, GrowingHistory
from tutti.observe.history import History, Step
from tutti.observe.skew import over_the_others
from tutti.observe.tail import Event

#: Of all rows that this process has made: what is made anew is newer than whatever a page has.
_REVISIONS = itertools.count(1)
#: Rows at most: a chart has not many more points across.
MOST_ROWS = 1000

#: A row: a figure by name; what is not known is not in it.
Row = dict[str, float]


class Rows:
    """The rows of a run. `width`: steps of each, a power of two; `rows`: all but the last are whole. `revision`: grows
    whenever they change."""

    def __init__(self) -> None:
        self.width = 1
        self.rows: list[Row] = []
        self.revision = 0
        self._revisions: list[int] = []  # in which each row changed last
        self._edition = -1
        self._seen = 0  # steps
        self._noted = 0  # saves and validations
        self._counted = 0  # counters of bytes
        self._before: dict[int, tuple[int, int]] = {}
        self._sent: dict[int, int] = {}

    def update(self, growing: GrowingHistory) -> None:
        """Have rows of all steps that there are now."""
        history = growing.history
        saves, validations = history.of("checkpoint"), history.validations
        if growing.edition != self._edition:
            self._edition, self._seen, self._noted, self._counted = growing.edition, 0, 0, 0
            self._before, self._sent = {}, {}
        for step, sent in sent_by_step(history, self._counted, self._before):
            self._sent[step] = self._sent.get(step, 0) + sent
        self._counted = len(history.counters)
        width = 1
        while len(history.steps) > MOST_ROWS * width:
            width *= 2
        begin = 0
        if width == self.width and self._seen:
            begin = max(0, self._seen - OPEN_STEPS) // width
            if self._noted != len(saves) + len(validations):  # what is told later of an earlier step
                begin = 0
        self.width, self._seen, self._noted = width, len(history.steps), len(saves) + len(validations)
        beside = {
            "checkpoint": _seconds_by_step(saves, "blocked_seconds"),
            "validation": _seconds_by_step(validations, "seconds"),
        }
        before, self.rows = self.rows, self.rows[:begin]
        tokens = self.rows[-1]["tokens"] if self.rows else 0
        for first in range(begin * width, len(history.steps), width):
            steps = history.steps[first : first + width]
            row = _row(steps, history, tokens) | _apart(steps, beside, self._sent)
            tokens = row["tokens"]
            self.rows.append(row)
        self._note_changes(before, begin)

    def changed_since(self, revision: int) -> int:
        """Number of the first row that changed after `revision`."""
        changed = (number for number, of in enumerate(self._revisions) if of > revision)
        return next(changed, len(self.rows))

    def _note_changes(self, before: list[Row], begin: int) -> None:
        rows = self.rows
        changed = [n for n in range(begin, len(rows)) if n >= len(before) or rows[n] != before[n]]
        if changed or len(before) != len(rows):
            self.revision = next(_REVISIONS)
        del self._revisions[len(rows) :]
        self._revisions += [0] * (len(rows) - len(self._revisions))
        for number in changed:
            self._revisions[number] = self.revision


def columns_of(rows: Sequence[Row]) -> dict[str, list[float | None]]:
    """By name, a figure of each row with six digits; None: it is not known."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [_six_digits(row.get(name)) for row in rows] for name in names}


def _six_digits(value: float | None) -> float | None:
    if value is None or isinstance(value, int):
        return value
    if not math.isfinite(value):
        return None  # JSON has no NaN: it would take the whole page with it
    return float(f"{value:.6g}") if abs(value) < 1e5 else round(value, 1)


def _row(steps: Sequence[Step], history: History, tokens_before: float) -> Row:
    seconds, tokens = sum(s.seconds for s in steps), sum(s.tokens for s in steps)
    losses = [s.loss for s in steps if math.isfinite(s.loss)]
    row: Row = {
        "step": steps[-1].step,
        "steps": len(steps),
        "time": steps[-1].time,
        "tokens": tokens_before + tokens,
    }
    if losses:
        row |= {"loss": sum(losses) / len(losses), "loss_low": min(losses), "loss_high": max(losses)}
    if len(losses) < len(steps):
        row["not_finite"] = len(steps) - len(losses)
    if norms := [n for s in steps if (n := finite(s.gradient_norm)) is not None]:
        row["gradient_norm"] = max(norms)
    if steps[-1].learning_rate is not None:
        row["learning_rate"] = steps[-1].learning_rate
    if seconds > 0:
        row["tokens_per_second"] = tokens / seconds
    per_token = finite(history.start.get("flops_per_token"))
    possible = sum(s.seconds * (s.peak_flops or 0.0) for s in steps)
    if per_token and (mfu := share_of_peak(per_token * tokens, possible)) is not None:
        row["mfu"] = mfu
    if (spread := _skew(steps, history)) is not None:
        row["skew"] = spread
    return row | _parts(steps)


def _parts(steps: Sequence[Step]) -> Row:
    """Mean seconds of what a step is made of."""

    def mean(value: Callable[[Step], float | None]) -> float | None:
        found = [value(step) for step in steps]
        known = [seconds for seconds in found if seconds is not None]
        return sum(known) / len(known) if len(known) == len(found) else None

    seconds = mean(lambda s: s.seconds) or 0.0
    parts = {
        "data": mean(lambda s: s.wait_data_seconds),
        "forward": mean(lambda s: s.forward_seconds),
        "backward": mean(lambda s: s.backward_seconds),
        "sync": mean(lambda s: s.sync_seconds + (s.exchange_seconds or 0.0)),
        "optimizer": mean(lambda s: s.optimizer_seconds),
    }
    known = {f"{name}_seconds": value for name, value in parts.items() if value is not None}
    rest = max(0.0, seconds - sum(known.values()))
    return known | {"rest_seconds" if parts["forward"] is not None else "compute_seconds": rest}


def _apart(steps: Sequence[Step], beside: dict[str, dict[int, float]], sent: dict[int, int]) -> Row:
    """What is told of steps elsewhere, per step."""
    row: Row = {}
    for name, seconds in beside.items():
        if seconds:
            row[f"{name}_seconds"] = sum(seconds.get(s.step, 0.0) for s in steps) / len(steps)
    if any(sent.values()):
        row["bytes"] = sum(sent.get(s.step, 0) for s in steps) / len(steps)
    return row


def _seconds_by_step(events: Sequence[Event], key: str) -> dict[int, float]:
    found = {}
    for event in events:
        found[int(event.get("step") or 0)] = finite(event.get(key)) or 0.0
    return found


def _skew(steps: Sequence[Step], history: History) -> float | None:
    """How much longer the slowest rank works than the others, as a share; the mean over steps."""
    found = [over_the_others(history.alone.get(step.step, {})) for step in steps]
    slowest = [max(ratios.values()) - 1 for ratios in found if ratios]
    return sum(slowest) / len(slowest) if slowest else None
