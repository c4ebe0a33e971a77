"""What the console knows of the run: fed with events, asked for the bar's figures and for messages."""

from __future__ import annotations

from collections import deque

from tutti.observe import words
from tutti.observe.happened import sentence
from tutti.observe.starts import made_together, restarted_alone
from tutti.observe.tail import Event, number, of_a_tracker, when

#: Events that are worth a line above the bar. Errors are not: they are summarised once, at the end.
_SHOWN = (
    *("checkpoint", "validation", "restart", "resumed", "healed", "membership", "warning", "stalled"),
    *(
        "recovered",
        "serving",
        "disturbance",
        "joined",
        "left",
        "waiting",
        "enough",
        "interrupted",
        "test",
        "finished",
    ),
)
#: What every rank may say, and is news once.
_SAID_ONCE = ("warning", "waiting", "interrupted")
#: A save is told when none was for so long: the first always, the many of a short run not.
_SAVE_SECONDS = 30.0

#: Steps over which speed and loss are averaged.
_WINDOW = 20


class Progress:
    """The state of a run, as its events tell it."""

    def __init__(self) -> None:
        self._forget()

    def _forget(self) -> None:
        self.steps = 0
        self.step = 0
        self.bits_per_byte: float | None = None
        self._policy = "allreduce"
        self._together = True
        self._facts = ""
        self._members: object = None
        self._recent: dict[int, deque[Event]] = {}  # leader → its last steps
        self._rehearsed: dict[str, float] = {}  # what was tried → seconds
        self._said: set[str] = set()
        self._save_told = 0.0

    def take(self, event: Event) -> list[str]:
        """Learn from `event`; returns the lines that it is worth."""
        kind = event["kind"]
        if kind == "launched":  # another command: what an earlier one did is no news of this one
            self._forget()
        if kind == "rehearsal":
            what = str(event.get("what"))
            self._rehearsed[what] = max(self._rehearsed.get(what, 0.0), number(event.get("seconds")) or 0.0)
            return []
        # What ranks tried at the same time is one line, said when the first of them goes on.
        rehearsed = self._rehearsal() if kind in ("step", "membership", "restart", "interrupted") else []
        return rehearsed + self._lines(event)

    def _rehearsal(self) -> list[str]:
        tried, self._rehearsed = self._rehearsed, {}
        if not tried:
            return []
        return [f"rehearsed in {words.seconds(sum(tried.values()))}: {', '.join(tried)}"]

    def _lines(self, event: Event) -> list[str]:
        kind = event["kind"]
        if kind == "run_started":
            return self._start(event)
        if kind == "step" and number(event.get("loss")) is not None:
            rank = int(event.get("rank") or 0)
            self._recent.setdefault(rank, deque(maxlen=_WINDOW)).append(event)
            self.step = int(event.get("step") or 0)
        elif kind == "step" and not self._recent:  # who leads is on another machine
            self.step = int(event.get("step") or 0)
        if kind == "validation" and (bits := number(event.get("bits_per_byte"))) is not None:
            self.bits_per_byte = bits
        if kind == "sample_text":
            text, prompt = str(event.get("text", "")), str(event.get("prompt", ""))
            whole = text if text.startswith(prompt) else prompt + text
            return ["the model writes:", *(f"  │ {line}" for line in whole.rstrip().splitlines())]
        if kind == "membership":
            changed = event.get("replicas") != self._members  # it is said at every meeting, by every replica
            self._members = event.get("replicas")
            if not changed:
                return []
        if kind == "checkpoint":
            if when(event) - self._save_told < _SAVE_SECONDS:
                return []
            self._save_told = when(event)
        # A tracker's trouble is said where the run was started, when the bar may be gone.
        shown = sentence(event) if kind in _SHOWN and not of_a_tracker(event) else None
        if shown is None or (kind in _SAID_ONCE and shown in self._said):
            return []
        self._said.add(shown)
        return [shown]

    def _start(self, event: Event) -> list[str]:
        self.steps = int(event.get("steps") or 0)
        self._policy = str(event.get("policy", "allreduce"))
        self._together = made_together(event)
        if not restarted_alone(event):
            self.step = int(event.get("resumed_from") or 0)
            self._recent.clear()  # an earlier attempt's speed says nothing about another world's
        else:
            self._recent.pop(int(event.get("rank") or 0), None)  # one replica comes back; the others went on
        world = int(event.get("world_size") or 1)
        facts = [
            f"{words.count(number(event.get('parameters')))} parameters",
            words.workers(world, event.get("replicas"), event.get("layout"), self._policy),
            str(event.get("precision", "")),
            f"{words.count(number(event.get('tokens_per_step')))} tokens a step",
            words.plural(self.steps, "step"),
        ]
        line = " · ".join(fact for fact in facts if fact and not fact.startswith("–"))
        if line == self._facts:
            return []  # every leading rank of an asynchronous run says so, and every restart
        self._facts, lines = line, [line]
        if not event.get("attempt"):
            lines = [*(f"chosen: {choice}" for choice in event.get("choices") or []), *lines]
        return lines

    def _speakers(self) -> list[deque[Event]]:
        """Of replicas that make each step together the one that spoke last; else each speaks for itself, but for those
        who were not at the last meeting."""
        if self._together:
            return sorted(self._recent.values(), key=lambda recent: when(recent[-1]))[-1:]
        everybody = list(self._recent.values())
        met = self._members if isinstance(self._members, list) else []
        return [recent for recent in everybody if recent[-1].get("replica") in met] or everybody

    @property
    def loss(self) -> float | None:
        """Mean of the last few steps."""
        losses = [number(e.get("loss")) or 0.0 for recent in self._speakers() for e in list(recent)[-5:]]
        return sum(losses) / len(losses) if losses else None

    @property
    def tokens_per_second(self) -> float | None:
        """Over the last steps, of all workers together."""
        total = 0.0
        for recent in self._speakers():
            seconds = sum(number(event.get("seconds")) or 0.0 for event in recent)
            tokens = sum(number(event.get("tokens")) or 0.0 for event in recent)
            total += tokens / seconds if seconds > 0 else 0.0
        return total or None

    @property
    def eta_seconds(self) -> float | None:
        """Until the last step, at the pace of the last ones; saves and validations in between included."""
        for recent in self._speakers():
            if len(recent) >= 2:
                done = int(recent[-1].get("step") or 0) - int(recent[0].get("step") or 0)
                if done > 0:
                    pace = (when(recent[-1]) - when(recent[0])) / done
                    return max(0, self.steps - self.step) * pace
        return None

    def line(self) -> str:
        """The bar's figures as one plain line."""
        parts = [f"step {self.step:,}/{self.steps:,}"]
        if self.loss is not None:
            parts.append(f"loss {self.loss:.3f}")
        if self.tokens_per_second is not None:
            parts.append(f"{words.rate(self.tokens_per_second)} tokens/s")
        if self.bits_per_byte is not None:
            parts.append(f"{self.bits_per_byte:.3f} bits per byte")
        if self.eta_seconds is not None and self.step < self.steps:
            parts.append(f"{words.clock(self.eta_seconds)} left")
        return " · ".join(parts)
