"""The history of a run that goes on: what is new is added; it is read anew only where something was undone."""

from __future__ import annotations

import time
from pathlib import Path

from tutti.observe.history import History, Step, merge_step, one_after_the_other, slim, sort_events
from tutti.observe.progress import Progress
from tutti.observe.starts import made_together
from tutti.observe.tail import Event, Tail, number, of_a_tracker, when

#: After these, steps that were made may not count any more.
_UPSETTING = frozenset({"launched", "run_started", "restart", "resumed", "healed", "serving", "undone"})
#: Replicas that are on their own way may speak of a step so many steps later.
OPEN_STEPS = 200
#: To read a long history anew takes seconds: that is done for so small a share of the time.
_READING_SHARE = 0.1


class GrowingHistory:
    """`refresh()` brings `history` and `progress` to what the files say now."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.history = History()
        self.progress = Progress()
        #: Changes where anything but new steps at the end may have changed: a reader of steps begins again.
        self.edition = 0
        self._tail = Tail(run)
        self._open: dict[int, dict[int, Event]] = {}
        self._stale = True
        self._read_again_at = 0.0

    def refresh(self, *, at_once: bool = False) -> bool:
        """Read what is new; whether there was anything. `at_once`: even where that takes long again."""
        if at_once:
            self._read_again_at = 0.0
        if self._stale or self._tail.replaced():
            return self._read_whole() if time.monotonic() >= self._read_again_at else False
        fresh = self._tail.poll()
        for event in fresh:
            self.progress.take(event)
            self._add(slim(event))
        if self._stale and time.monotonic() >= self._read_again_at:
            self._read_whole()
        return bool(fresh)

    def _read_whole(self) -> bool:
        began = time.monotonic()
        self._tail, self.progress = Tail(self.run), Progress()
        events = [slim(event) for event in self._tail.poll()]
        for event in events:
            self.progress.take(event)
        self.history = sort_events(events)
        self.edition += 1
        self._reopen(events)
        self._stale = False
        now = time.monotonic()
        self._read_again_at = now + (now - began) / _READING_SHARE
        return True

    def _reopen(self, events: list[Event]) -> None:
        """Remember who spoke of the last steps, and of these only what counts."""
        self._open = {step.step: {} for step in self.history.steps[-OPEN_STEPS:]}
        counted = {step.step: step.time for step in self.history.steps[-OPEN_STEPS:]}
        for event in events:
            step = int(event.get("step") or 0)
            if event["kind"] != "step" or number(event.get("loss")) is None:
                continue
            if step in counted and when(event) >= counted[step]:
                self._note(step, event)

    def _add(self, event: Event) -> None:
        history, kind = self.history, event["kind"]
        if not of_a_tracker(event):
            history.first_time = history.first_time or when(event)
            history.last_time = max(history.last_time, when(event))
        if kind in _UPSETTING or "push" in event:
            self._stale = True
        elif kind == "step":
            self._add_step(event)
        elif kind == "validation":
            known = {int(e.get("step") or 0): e for e in history.validations}
            known[int(event.get("step") or 0)] = event
            history.validations = [known[step] for step in sorted(known)]
        else:
            history.other.setdefault(kind, []).append(event)

    def _add_step(self, event: Event) -> None:
        history, number_of_step = self.history, int(event.get("step") or 0)
        rank, replica = int(event.get("rank") or 0), int(event.get("replica") or 0)
        if (alone := number(event.get("alone_seconds"))) is not None:
            history.alone.setdefault(number_of_step, {})[rank] = alone
        if (sent := number(event.get("bytes_sent"))) is not None:
            history.counters.append((when(event), rank, replica, int(sent), number_of_step))
        if number(event.get("loss")) is None:
            return
        last = history.steps[-1].step if history.steps else 0
        if number_of_step <= last and number_of_step not in self._open:
            self._stale = True
            return
        self._note(number_of_step, event)
        step = merge_step(number_of_step, list(self._open[number_of_step].values()), history)
        if number_of_step > last:
            history.steps.append(step)
        else:
            self._replace(step)
        while len(self._open) > OPEN_STEPS:
            del self._open[min(self._open)]

    def _note(self, step: int, event: Event) -> None:
        """As `history` sorts steps: of those made together one speaks for all; else each for itself."""
        ranks = self._open.setdefault(step, {})
        rank = int(event.get("rank") or 0)
        if made_together(self.history.start):
            if not ranks or rank <= min(ranks):
                ranks.clear()
                ranks[rank] = event
        else:
            ranks[rank] = one_after_the_other(ranks[rank], event) if rank in ranks else event

    def _replace(self, step: Step) -> None:
        steps = self.history.steps
        for place in range(len(steps) - 1, -1, -1):
            if steps[place].step == step.step:
                steps[place] = step
                return
            if steps[place].step < step.step:
                steps.insert(place + 1, step)
                return
        steps.insert(0, step)
