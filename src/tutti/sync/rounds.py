"""Policies that meet every H steps: replicas train on their own in between, then agree on weights.

    Δ_r = θ_old − θ_r                 what replica r did since the last meeting
    Δ   = Σ n_r Δ_r ÷ Σ n_r           n_r targets, summed over the live members
    θ   ← outer step of θ_old by Δ    what tells the policies apart

The weighting (Decoupled DiLoCo's) lets a replica that was late or newly come not count as if it had worked.

Data is leased by the round. At a meeting every member says how far it came in its lease; what was not done, and
what members lent who are no longer there, returns to the ledger and is taken first in the next round.

A replica that comes late listens until the run's state has arrived (`joining`): at meetings it gives nothing and keeps
what came of them. If the state is there early in a round, it trains for the rest of it.

Weights lie in flat vectors, cut into fragments; here there is one, `streaming` has several.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tutti.sync.buffer import Buffer
from tutti.sync.joining import Joining
from tutti.sync.ledger import Ledger, Range, cut
from tutti.sync.minutes import Entry, Minutes, Round, member_name
from tutti.sync.policy import (
    Meeting,
    Place,
    Policy,
    T,
    Totals,
    local_part,
    named_trainable,
    placed_like,
)
from tutti.sync.shares import Shares
from tutti.sync.summing import Summing, plain_sums
from tutti.sync.transport import PeerLost, StaticTransport, Transport

#: How much of a round a newcomer waits for its state; later, it goes to the next meeting and listens.
_PATIENCE = 0.5

#: How a newcomer gets the state: what a member gives, and what is done with it.
Handover = tuple[Callable[[], Any], Callable[[Any], None]]


@dataclass
class Contribution:
    """What this member brings to a meeting: what it says, and Δ of the fragments whose turn it is."""

    entry: Entry
    deltas: dict[int, Tensor]


class Rounds(Policy):
    """Local steps by the inner optimizer, an outer step at every meeting."""

    drifts = True

    def __init__(
        self,
        transport: Transport,
        place: Place,
        ledger: Ledger,
        batch: int,
        *,
        every: int,
        inside: StaticTransport,
        incarnation: int,
        summing: Summing | None = None,
        handover: Handover | None = None,
        measured_shares: bool = False,
    ) -> None:
        """`inside`: the parts of this replica, over which a step's totals are summed. `summing`: how what replicas
        did travels (None: as it is). `handover`: how a newcomer gets the state (None: there are none).
        `measured_shares`: faster replicas make more local steps in a round.

        `incarnation`: how often this replica was started; a reborn replica must not pass for its former self.
        """
        super().__init__(transport, place, ledger, batch)
        self._every = every
        self._inside = inside
        self._summing = summing or plain_sums(transport)
        self._incarnation = incarnation
        self._samples_per_step = self._samples_of(place.replica)
        self._done_samples = 0
        self._shares = Shares(measured=measured_shares)
        self._round = Round(0, 0, 0)
        give, take = handover or (self.give, self.take)
        self._joining = Joining(transport, give, take)
        self._round_began = time.monotonic()
        self._round_seconds = 0.0
        self._last_step = 0

    def attach(self, objective: nn.Module) -> nn.Module:
        parameters = dict(named_trainable(objective))
        self._names = self._cut(parameters)
        self._parameters = {name: parameters[name] for names in self._names for name in names}
        self._fragments, stop = list[slice](), 0
        for names in self._names:
            start, stop = stop, stop + sum(local_part(parameters[name].detach()).numel() for name in names)
            self._fragments.append(slice(start, stop))
        self._agreed = self._flatten(self._parameters)
        self._targets = [0] * len(self._fragments)
        return objective

    def _cut(self, parameters: Mapping[str, nn.Parameter]) -> list[list[str]]:
        """The names of each fragment's parameters."""
        return [list(parameters)]

    def start(self, step: int, last_step: int) -> Meeting | None:
        self._agreed = self._flatten(self._parameters)  # a checkpoint may have been loaded since `attach`
        self._joining.version = self.rounds
        self._last_step = last_step
        return self._agree(step, stop=False)

    def fall_behind(self) -> None:
        """Be without the run's state: at the next meeting somebody hands it over."""
        self._joining.behind = True

    def make_step(self, step: int, work: Callable[[int], T]) -> tuple[int, T]:
        step = self._round.next_step()
        return step, work(step)

    def samples(self, step: int) -> list[Range]:
        lease = self.ledger.loans[member_name(self.place.replica, self._incarnation)]
        return cut(lease, self._done_samples, self._done_samples + self._samples_per_step)

    def before_step(self, totals: Totals) -> Totals:
        vector = totals.vector(self._agreed.device)
        self._inside.all_reduce(vector)
        return Totals.of(vector)

    def after_step(self, step: int, last_step: int, totals: Totals) -> Meeting | None:
        self._count_step(totals)
        if self._round.left and not totals.stop:
            return None
        return self._agree(step, totals.stop)

    def _count_step(self, totals: Totals) -> None:
        self._done_samples += self._samples_per_step
        self._targets = [count + totals.targets for count in self._targets]
        self._round.done += 1

    @property
    def behind(self) -> bool:  # type: ignore[override]
        return self._joining.behind

    def sum_evaluation(self, measure: Callable[[int, int], Tensor]) -> Tensor:
        sums = measure(0, 1)
        self._inside.all_reduce(sums)
        return sums

    def owed(self) -> dict[str, Tensor]:
        views = self._summing.owed(
            self._buffer(self._agreed, number) for number in range(len(self._fragments))
        )
        return {name: placed_like(view, self._parameters[name]) for name, view in views.items()}

    def give(self) -> dict[str, Any]:
        """What a newcomer needs of the policy: the state at the last meeting."""
        return {
            "agreed": self._agreed,
            "ledger": self.ledger.state(),
            "rounds": self.rounds,
            "shares": self._shares.state(),
        }

    def take(self, state: dict[str, Any]) -> None:
        """Be where the donor of `state` was at its last meeting, with nothing done since."""
        self._agreed.copy_(state["agreed"])
        self.ledger.load_state(state["ledger"])
        self.rounds = state["rounds"]
        self._shares.load_state(state["shares"])
        self._write_back(range(len(self._fragments)))

    def _weights(self) -> list[int]:
        """What this member counts for in the coming mean of each fragment: the targets that it saw."""
        return list(self._targets)

    @abstractmethod
    def _outer_step(self, mean: Tensor, place: slice) -> None:
        """Change `_agreed[place]` by the members' mean Δ of it, which may be used up."""

    # Meeting -----------------------------------------------------------------------------------------------

    def _agree(self, step: int, stop: bool) -> Meeting:
        """Meet, and go on meeting for as long as this replica can only listen."""
        while True:
            minutes = self._meet(self._contribution(step, stop, waiting=True))
            assert minutes is not None
            if not self.behind:
                return self._conclude(minutes)
            self._forget_work()
            self._joining.listen(minutes)
            over = minutes.stop or minutes.step >= self._last_step
            if self._arrived(None if over else _PATIENCE * self._round_seconds):
                return self._enter()
            if over:  # it cannot be had, and there is nothing left to come late for
                return Meeting(members=minutes.members, step=minutes.step, stop=True)
            step = minutes.step

    def _contribution(self, step: int, stop: bool, *, waiting: bool) -> Contribution:
        """Of this moment. (Also called before the run's state is there: then nothing in it will be used.)"""
        entry = Entry(
            standing=self._joining.standing,
            replica=self.place.replica,
            incarnation=self._incarnation,
            samples=self._done_samples,
            step=step,
            stop=stop,
            milliseconds=self._milliseconds(),
            waiting=waiting,
            targets=self._weights(),
        )
        deltas = {number: self._delta(number) for number in self._due(self._joining.version, step, stop)}
        return Contribution(entry, deltas)

    def _due(self, version: int, step: int, stop: bool) -> Iterable[int]:
        """The fragments whose turn it is at meeting number `version`: all of them at the last one."""
        count = len(self._fragments)
        return range(count) if stop or step >= self._last_step else [version % count]

    def _meet(self, mine: Contribution) -> Minutes | None:
        """Exchange with whoever is alive until it counts. None: it has to be done with everybody waiting."""
        while True:
            self.transport.meet()
            mine.entry.standing = self._joining.standing
            try:
                minutes = self._exchange(mine)
            except PeerLost:
                self._summing.drop()
                self.transport.commit(good=False)
                continue
            if self.transport.commit():
                self._summing.keep()
                if minutes is not None or not mine.entry.waiting:
                    return minutes
            self._summing.drop()

    def _exchange(self, mine: Contribution) -> Minutes | None:
        """None: somebody newly come, or asked to stop, finds others who do not wait; all have to meet again."""
        rows = self.transport.all_gather(mine.entry.row())
        roll = [Entry.of(row.tolist()) for row in rows]
        if not all(entry.waiting for entry in roll):
            versions = {entry.standing.version for entry in roll}
            if len(versions) > 1 or any(entry.waiting or not entry.standing.has for entry in roll):
                return None
        current = self._joining.attend([entry.standing for entry in roll])
        for rank, entry in enumerate(roll):
            if rank not in current:  # what it did cannot be used
                entry.samples, entry.targets = 0, [0] * len(entry.targets)
        minutes = Minutes(roll, current)
        for number in self._due(self._joining.version, minutes.step, minutes.stop):
            targets = sum(entry.targets[number] for entry in roll)
            own = roll[self.transport.rank].targets[number]
            if targets:
                place = self._fragments[number]
                if own:
                    delta = mine.deltas[number] if number in mine.deltas else self._delta(number)
                    delta = delta * (own / targets)  # kept as it is, in case this has to be repeated
                else:
                    delta = torch.zeros_like(self._agreed[place])
                self._summing.sum(self._buffer(delta, number, whole=False))
                minutes.means[number] = delta
        self._round_seconds = max((entry.milliseconds for entry in roll if entry.samples), default=0) / 1000
        self._round_began = time.monotonic()
        return minutes

    def _conclude(self, minutes: Minutes) -> Meeting:
        """Step the outer optimizer, settle the accounts and lease anew."""
        if {entry.name for entry in minutes.roll} != self.ledger.loans.keys():
            # Somebody new may come from a checkpoint as far as everybody is, which knows nothing of who was how fast:
            # all go by this round alone, or they would lend the same samples to different members.
            self._shares.begin({})
        meeting = self._settle(minutes)
        for number, mean in minutes.means.items():
            place = self._fragments[number]
            apart = self._delta(number).sub_(mean)
            size = self._agreed[place].norm().clamp_min(1e-12)
            meeting.divergence = max(meeting.divergence, float(apart.norm() / size))
            del apart
            self._outer_step(mean, place)
        self._write_back(minutes.means)
        self._done_samples = 0
        for number in minutes.means:
            self._targets[number] = 0
        self._begin_round(meeting, minutes)
        self.rounds += 1
        self._joining.version = self.rounds
        return meeting

    def _forget_work(self) -> None:
        self._done_samples = 0
        self._targets = [0] * len(self._fragments)

    def _milliseconds(self) -> int:
        """Since the round began: of the slowest part, for all parts of this replica, which share out alike."""
        taken = torch.zeros(self._inside.size, dtype=torch.float64)
        taken[self._inside.rank] = (time.monotonic() - self._round_began) * 1000
        self._inside.all_reduce(taken)
        return round(float(taken.max()))

    def _arrived(self, seconds: float | None) -> bool:
        """Whether all parts of this replica have the run's state, waiting for at most so long."""
        missing = torch.tensor(float(not self._joining.wait(seconds)))
        self._inside.all_reduce(missing)
        return not missing

    def _enter(self) -> Meeting:
        """Become a member like the others, in the middle of the round that the last meeting began."""
        self._joining.receive()
        for minutes in self._joining.missed:
            meeting = self._conclude(minutes)
        self._joining.missed = []
        gone = (time.monotonic() - self._round_began) / max(self._round_seconds, 1e-9)
        missed = torch.tensor(min(gone, 1.0) if self._round_seconds else 0.0, dtype=torch.float64)
        self._inside.all_reduce(missed)
        self._round.skip(float(missed) / self._inside.size)
        self._round_began = time.monotonic()  # its speed is that of what it does
        meeting.healed = True
        return meeting

    # Accounts ------------------------------------------------------------------------------------------------

    def _settle(self, minutes: Minutes) -> Meeting:
        meeting = Meeting(members=minutes.members, step=minutes.step, stop=minutes.stop)
        done = {entry.name: entry.samples for entry in minutes.roll}
        for name in sorted(self.ledger.loans):
            committed, returned = self.ledger.settle(name, done.get(name, 0))
            if committed:
                meeting.committed[name] = committed
            if returned:
                meeting.returned[name] = returned
        return meeting

    def _begin_round(self, meeting: Meeting, minutes: Minutes) -> None:
        """Share out the local steps of the next round, and lease their samples."""
        length = min(self._every, max(self._last_step - meeting.step, 0))
        roll = sorted(minutes.roll, key=lambda entry: entry.replica)
        for entry in roll:
            made = entry.samples // self._samples_of(entry.replica)
            self._shares.note(entry.replica, made, entry.milliseconds / 1000)
        replicas = [entry.replica for entry in roll]
        steps = self._shares.counts(length * len(roll), replicas) if length else [0] * len(roll)
        for entry, count in zip(roll, steps, strict=True):
            if entry.replica == self.place.replica:
                self._round = Round(meeting.step, length, count)
            if count:
                samples = count * self._samples_of(entry.replica)
                meeting.leased[entry.name] = self.ledger.lease(entry.name, samples)

    def _samples_of(self, replica: int) -> int:
        """A local step's; of the global batch as many as the configured number of replicas leaves."""
        return self.batch // self.place.replicas + (replica < self.batch % self.place.replicas)

    # Flat vectors --------------------------------------------------------------------------------------------

    def _flatten(self, names: Iterable[str]) -> Tensor:
        """This rank's part of these parameters as one fp32 vector."""
        parts = [local_part(self._parameters[name].detach()).reshape(-1).float() for name in names]
        return torch.cat(parts) if parts else torch.empty(0)

    def _delta(self, number: int) -> Tensor:
        """Δ of fragment `number`, since it was agreed on."""
        flat = self._flatten(self._names[number])
        return torch.sub(self._agreed[self._fragments[number]], flat, out=flat)

    def _write_back(self, numbers: Iterable[int]) -> None:
        """The agreed weights of these fragments become the parameters."""
        views = self._views(self._agreed)
        with torch.no_grad():
            for number in numbers:
                for name in self._names[number]:
                    local_part(self._parameters[name]).copy_(views[name])

    def _views(self, flat: Tensor) -> dict[str, Tensor]:
        locals_ = {name: local_part(p.detach()) for name, p in self._parameters.items()}
        pieces = torch.split(flat, [p.numel() for p in locals_.values()])
        return {name: piece.view(p.shape) for (name, p), piece in zip(locals_.items(), pieces, strict=True)}

    def _buffer(self, flat: Tensor, number: int, *, whole: bool = True) -> Buffer:
        """Fragment `number` of `flat` (or `flat` itself), with the parameters that lie in it."""
        some = flat[self._fragments[number]] if whole else flat
        named = [(name, local_part(self._parameters[name].detach())) for name in self._names[number]]
        return Buffer.of(some, named)
