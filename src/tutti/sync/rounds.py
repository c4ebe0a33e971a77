"""Policies that meet every H steps: replicas train on their own in between, then agree on weights.

    Δ_r = θ_old − θ_r                 what replica r did since the last meeting
    Δ   = Σ n_r Δ_r ÷ Σ n_r           n_r targets, summed over the live members
    θ   ← outer step of θ_old by Δ    what tells the policies apart

The weighting (Decoupled DiLoCo's) lets a replica that was late or newly come not count as if it had worked.

Data is leased by the round. At a meeting every member says how far it came in its lease; what was not done, and
what members lent who are no longer there, returns to the ledger and is taken first in the next round.

A replica that comes late listens until the run's state has arrived (`joining`): at meetings it gives nothing and keeps
what came of them. If the state is there early in a round, it trains for the rest of it.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tutti.sync.joining import Joining, Standing
from tutti.sync.ledger import Ledger, Range, cut
from tutti.sync.policy import Meeting, Place, Policy, T, Totals, local_part, named_trainable, placed_like
from tutti.sync.shares import Shares
from tutti.sync.summing import Buffer, Summing, plain_sums
from tutti.sync.transport import PeerLost, StaticTransport, Transport

#: How much of a round a newcomer waits for its state; later, it goes to the next meeting and listens.
_PATIENCE = 0.5

#: How a newcomer gets the state: what a member gives, and what is done with it.
Handover = tuple[Callable[[], Any], Callable[[Any], None]]


@dataclass
class Minutes:
    """What a meeting came to: of each member [replica, incarnation, samples, targets, step, stop, milliseconds], and
    the mean Δ (None: nobody had done anything)."""

    rows: list[list[int]]
    mean: Tensor | None

    @property
    def members(self) -> list[int]:
        return [row[0] for row in self.rows]

    @property
    def step(self) -> int:
        return max(row[4] for row in self.rows)

    @property
    def stop(self) -> bool:
        return any(row[5] for row in self.rows)


@dataclass
class Round:
    """A replica makes `steps` local steps while the run goes from `start` over `length` steps; `done` of them are made.

    Faster replicas make more, slower ones fewer; each is numbered by how far in the run's steps it reaches.
    """

    start: int
    length: int
    steps: int
    done: int = 0

    @property
    def left(self) -> int:
        return self.steps - self.done

    def next_step(self) -> int:
        """The number of the local step that comes now."""
        return self.start + -(-(self.done + 1) * self.length // self.steps)

    def skip(self, share: float) -> None:
        """Come late by `share` of the round; at least one step is left."""
        self.done = min(int(self.steps * share), max(self.steps - 1, 0))


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
        self._done_targets = 0
        self._shares = Shares(measured=measured_shares)
        self._round = Round(0, 0, 0)
        give, take = handover or (self.give, self.take)
        self._joining = Joining(transport, give, take)
        self._round_began = time.monotonic()
        self._round_seconds = 0.0

    def attach(self, objective: nn.Module) -> nn.Module:
        self._parameters = dict(named_trainable(objective))
        self._agreed = self._flatten()
        return objective

    @property
    def _name(self) -> str:
        return _member_name(self.place.replica, self._incarnation)

    def start(self, step: int, last_step: int) -> Meeting | None:
        self._agreed = self._flatten()  # a checkpoint may have been loaded since `attach`
        self._joining.version = self.rounds
        return self._agree(step, last_step, stop=False)

    def samples(self, step: int) -> list[Range]:
        lease = self.ledger.loans[self._name]
        return cut(lease, self._done_samples, self._done_samples + self._samples_per_step)

    def before_step(self, totals: Totals) -> Totals:
        vector = totals.vector(self._agreed.device)
        self._inside.all_reduce(vector)
        return Totals.of(vector)

    def make_step(self, step: int, work: Callable[[int], T]) -> tuple[int, T]:
        step = self._round.next_step()
        return step, work(step)

    def after_step(self, step: int, last_step: int, totals: Totals) -> Meeting | None:
        self._done_samples += self._samples_per_step
        self._done_targets += totals.targets
        self._round.done += 1
        if self._round.left and not totals.stop:
            return None
        return self._agree(step, last_step, totals.stop)

    @property
    def behind(self) -> bool:  # type: ignore[override]
        return self._joining.behind

    def sum_evaluation(self, measure: Callable[[int, int], Tensor]) -> Tensor:
        sums = measure(0, 1)
        self._inside.all_reduce(sums)
        return sums

    def owed(self) -> dict[str, Tensor]:
        views = self._summing.owed([Buffer.of(self._agreed, self._views(self._agreed).items())])
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
        self._write_back()

    @abstractmethod
    def _outer_step(self, mean: Tensor) -> None:
        """Change `_agreed` by the members' mean Δ, which may be used up."""

    # Meeting -----------------------------------------------------------------------------------------------

    def _agree(self, step: int, last_step: int, stop: bool) -> Meeting:
        """Meet, and go on meeting for as long as this replica can only listen."""
        while True:
            minutes = self._meet(step, stop)
            self._done_samples = self._done_targets = 0
            if not self.behind:
                return self._conclude(minutes, last_step)
            self._joining.listen(minutes)
            over = minutes.stop or minutes.step >= last_step
            if self._arrived(None if over else _PATIENCE * self._round_seconds):
                return self._enter(last_step)
            if over:  # it cannot be had, and there is nothing left to come late for
                return Meeting(members=minutes.members, step=minutes.step, stop=True)
            step = minutes.step

    def _meet(self, step: int, stop: bool) -> Minutes:
        """Exchange with whoever is alive until it counts."""
        milliseconds = self._milliseconds()  # before the wait for others
        while True:
            self.transport.meet()
            try:
                minutes = self._exchange(step, stop, milliseconds)
            except PeerLost:
                self._summing.drop()
                self.transport.commit(good=False)
                continue
            if self.transport.commit():
                self._summing.keep()
                return minutes
            self._summing.drop()

    def _exchange(self, step: int, stop: bool, milliseconds: int) -> Minutes:
        call = [
            *self._joining.standing.row(),
            self.place.replica,
            self._incarnation,
            self._done_samples,
            self._done_targets,
            step,
            int(stop),
            milliseconds,
        ]
        rows = [part.tolist() for part in self.transport.all_gather(torch.tensor(call, dtype=torch.int64))]
        current = self._joining.attend([Standing.of(row) for row in rows])
        for rank, row in enumerate(rows):
            if rank not in current:  # what it did cannot be used
                row[5] = row[6] = 0
        minutes = Minutes([row[3:] for row in rows], None)
        targets = sum(row[6] for row in rows)
        if targets:
            idle = self.behind or self._done_targets == 0
            delta = torch.zeros_like(self._agreed) if idle else self._agreed - self._flatten()
            delta.mul_(self._done_targets / targets)
            self._summing.sum(Buffer.of(delta, self._views(delta).items()))
            minutes.mean = delta
        self._round_seconds = max((row[9] for row in rows if row[5]), default=0) / 1000
        self._round_began = time.monotonic()
        return minutes

    def _conclude(self, minutes: Minutes, last_step: int) -> Meeting:
        """Step the outer optimizer, settle the accounts and lease anew."""
        meeting = self._settle(minutes)
        if minutes.mean is not None:
            own = self._agreed - self._flatten()
            meeting.divergence = float((own - minutes.mean).norm() / self._agreed.norm().clamp_min(1e-12))
            self._outer_step(minutes.mean)
            self._write_back()
        self._begin_round(meeting, minutes, last_step)
        self.rounds += 1
        self._joining.version = self.rounds
        return meeting

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

    def _enter(self, last_step: int) -> Meeting:
        """Become a member like the others, in the middle of the round that the last meeting began."""
        self._joining.receive()
        for minutes in self._joining.missed:
            meeting = self._conclude(minutes, last_step)
        self._joining.missed = []
        gone = (time.monotonic() - self._round_began) / max(self._round_seconds, 1e-9)
        missed = torch.tensor(min(gone, 1.0) if self._round_seconds else 0.0, dtype=torch.float64)
        self._inside.all_reduce(missed)
        self._round.skip(float(missed) / self._inside.size)
        self._round_began = time.monotonic()  # its speed is that of what it does
        meeting.healed = True
        return meeting

    def _write_back(self) -> None:
        """The agreed weights become the parameters."""
        views = self._views(self._agreed)
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                local_part(parameter).copy_(views[name])

    def _settle(self, minutes: Minutes) -> Meeting:
        meeting = Meeting(members=minutes.members, step=minutes.step, stop=minutes.stop)
        done = {_member_name(replica, life): samples for replica, life, samples, *_ in minutes.rows}
        for name in sorted(self.ledger.loans):
            committed, returned = self.ledger.settle(name, done.get(name, 0))
            if committed:
                meeting.committed[name] = committed
            if returned:
                meeting.returned[name] = returned
        return meeting

    def _begin_round(self, meeting: Meeting, minutes: Minutes, last_step: int) -> None:
        """Share out the local steps of the next round, and lease their samples."""
        length = min(self._every, max(last_step - meeting.step, 0))
        rows = sorted(minutes.rows)
        for replica, _, samples, _, _, _, milliseconds in rows:
            self._shares.note(replica, samples // self._samples_of(replica), milliseconds / 1000)
        steps = (
            self._shares.counts(length * len(rows), [row[0] for row in rows]) if length else [0] * len(rows)
        )
        for (replica, life, *_), count in zip(rows, steps, strict=True):
            if replica == self.place.replica:
                self._round = Round(meeting.step, length, count)
            if count:
                name = _member_name(replica, life)
                meeting.leased[name] = self.ledger.lease(name, count * self._samples_of(replica))

    def _samples_of(self, replica: int) -> int:
        """A local step's; of the global batch as many as the configured number of replicas leaves."""
        return self.batch // self.place.replicas + (replica < self.batch % self.place.replicas)

    # Flat buffers ------------------------------------------------------------------------------------------

    def _flatten(self) -> Tensor:
        """This rank's part of all parameters as one fp32 vector."""
        parts = [local_part(p.detach()).reshape(-1).float() for p in self._parameters.values()]
        return torch.cat(parts)

    def _views(self, flat: Tensor) -> dict[str, Tensor]:
        locals_ = {name: local_part(p.detach()) for name, p in self._parameters.items()}
        pieces = torch.split(flat, [p.numel() for p in locals_.values()])
        return {name: piece.view(p.shape) for (name, p), piece in zip(locals_.items(), pieces, strict=True)}


def _member_name(replica: int, incarnation: int) -> str:
    return f"replica-{replica}.{incarnation}"
