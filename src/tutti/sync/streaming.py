"""Streaming DiLoCo: the weights in fragments that take turns, each exchanged while the replicas train on.

Douillard et al. 2025 (arXiv 2501.18512). With P fragments p (every P-th block of layers), one starts every H/P steps:

    Δ_p = θ_old,p − θ_p              at step s, sent in the background
    θ_old,p ← outer step by Δ        at step s + τ, when the mean has come
    θ_p ← θ_old,p + α (θ_p − θ_old,p)    α = `merge`: how much of what was done since the fragment last met stays

The peak of the traffic is 1/P of DiLoCo's, and the link has τ steps for it. Weights are summed by the targets that
replicas saw since the fragment's last turn.

The first meeting, the last, and those at which somebody comes or stops are held with everybody waiting; at the last,
all fragments meet. What is under way then lands before it, sooner than τ steps after it was sent.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tutti.core import ConfigError
from tutti.sync.background import in_background
from tutti.sync.diloco import DiLoCo
from tutti.sync.ledger import count
from tutti.sync.minutes import Minutes, Round
from tutti.sync.policy import Meeting, Totals, local_part
from tutti.sync.rounds import Contribution


@dataclass
class Flight:
    """A meeting in the background: since which step, with what, and what came of it."""

    step: int
    mine: Contribution
    minutes: Future[Minutes | None]


class StreamingDiLoCo(DiLoCo):
    """`fragments` P, `overlap` τ in steps, `merge` α; `every` H and the rest as `DiLoCo`."""

    def __init__(
        self, *rest: Any, every: int, fragments: int, overlap: int, merge: float, **others: Any
    ) -> None:
        super().__init__(*rest, every=every // fragments, **others)
        self._count = fragments
        self._overlap = overlap
        self._merge = merge if overlap else 0.0
        self._alpha = 0.0
        self._flight: Flight | None = None

    def _cut(self, parameters: Mapping[str, nn.Parameter]) -> list[list[str]]:
        found = fragments_of({name: p.numel() for name, p in parameters.items()}, self._count)
        if not all(found):
            raise ConfigError(
                f"sync.fragments is {self._count}, but the model of this rank falls into {sum(map(bool, found))} at "
                "most (the same blocks of layers are always together)",
                "take fewer",
            )
        return found

    def after_step(self, step: int, last_step: int, totals: Totals) -> Meeting | None:
        self._count_step(totals)
        meeting, over = None, totals.stop or step >= last_step
        # Before the last meeting it has to be down: two of them at once would cross each other on the way.
        if self._flight is not None and (over or step >= self._flight.step + self._overlap):
            meeting = self._land(step, totals.stop)
            if meeting.stop or meeting.step >= last_step:  # it was the last meeting: all waited for it
                return meeting
        if over or (not self._round.left and not self._overlap):
            last = self._agree(step, totals.stop)
            return last if meeting is None else last.after(meeting)
        if not self._round.left:
            self._take_off(step)
        return meeting

    def _take_off(self, step: int) -> None:
        """Begin a meeting in the background, and go on training."""
        mine = self._contribution(step, stop=False, waiting=False)
        self._flight = Flight(step, mine, in_background(lambda: self._meet(mine), "meeting"))
        for number in mine.deltas:  # what is seen from now on belongs to the fragment's next turn
            self._targets[number] = 0
        length = min(self._every, self._last_step - step)
        self._round = Round(step, length, length)

    def _land(self, step: int, stop: bool) -> Meeting:
        """End the meeting that is under way: take what it agreed on, and merge."""
        assert self._flight is not None
        flight, self._flight = self._flight, None
        minutes = flight.minutes.result()
        if (
            minutes is None
        ):  # somebody has come, or is to stop: everybody waits now, and sends what is true now
            for number in flight.mine.deltas:
                self._targets[number] += flight.mine.entry.targets[number]
            return self._agree(step, stop)
        done, targets, present = self._done_samples, list(self._targets), self._round
        self._alpha = self._merge
        meeting = self._conclude(minutes)
        self._alpha = 0.0
        # What was done since the meeting began is in the present round.
        self._done_samples, self._targets, self._round = done - flight.mine.entry.samples, targets, present
        return meeting

    def _write_back(self, numbers: Iterable[int]) -> None:
        views = self._views(self._agreed)
        with torch.no_grad():
            for number in numbers:
                for name in self._names[number]:
                    local_part(self._parameters[name]).lerp_(views[name], 1 - self._alpha)

    @contextmanager
    def consensus(self) -> Iterator[None]:
        own = self._flatten(self._parameters)
        super()._write_back(range(self._count))
        yield
        with torch.no_grad():
            for name, view in self._views(own).items():
                local_part(self._parameters[name]).copy_(view)

    # Accounts ------------------------------------------------------------------------------------------------

    def _settle(self, minutes: Minutes) -> Meeting:
        if not self._overlap or minutes.stop or minutes.step >= self._last_step:
            return super()._settle(minutes)
        meeting = Meeting(members=minutes.members, step=minutes.step)
        done = {entry.name: entry.samples for entry in minutes.roll}
        for name in sorted(self.ledger.loans):
            if name not in done:
                if returned := self.ledger.settle(name, 0)[1]:
                    meeting.returned[name] = returned
            elif committed := self.ledger.commit(name, done[name]):  # they are training on the rest
                meeting.committed[name] = committed
        return meeting

    def _begin_round(self, meeting: Meeting, minutes: Minutes) -> None:
        if not self._overlap:
            super()._begin_round(meeting, minutes)
            return
        left = max(self._last_step - meeting.step, 0)
        length = min(self._every, left)
        self._round = Round(meeting.step, length, length)
        for entry in sorted(minutes.roll, key=lambda entry: entry.replica):
            # The next meeting's result comes as long after its beginning as this one's.
            samples = min(self._every + self._overlap, left) * self._samples_of(entry.replica)
            more = samples - count(self.ledger.loans.get(entry.name, []))
            if more > 0:
                meeting.leased[entry.name] = self.ledger.extend(entry.name, more)


def fragments_of(sizes: Mapping[str, int], fragments: int) -> list[list[str]]:
    """Names by fragment: block b in fragment b mod P, strided as in the paper; what lies in no block goes where there
    is least. A block is known by the first number in its parameters' names; numbers without parameters (an activation
    between two layers) are not counted."""
    parts: list[list[str]] = [[] for _ in range(fragments)]
    loads = [0] * fragments
    found = {name: re.search(r"\.(\d+)\.", f".{name}.") for name in sizes}
    numbers = sorted({int(block[1]) for block in found.values() if block is not None})
    outside = []
    for name, size in sizes.items():
        if (block := found[name]) is None:
            outside.append(name)
            continue
        number = numbers.index(int(block[1])) % fragments
        parts[number].append(name)
        loads[number] += size
    for name in outside:
        number = min(range(fragments), key=lambda place: (loads[place], place))
        parts[number].append(name)
        loads[number] += sizes[name]
    return parts
