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
from tutti.sync.policy import Meeting, Place, Policy, Totals, local_part, named_trainable, placed_like
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
    ) -> None:
        """`inside`: the parts of this replica, over which a step's totals are summed. `summing`: how what replicas
        did travels (None: as it is). `handover`: how a newcomer gets the state (None: there are none).

        `incarnation`: how often this replica was started; a reborn replica must not pass for its former self.
        """
        super().__init__(transport, place, ledger, batch)
        self._every = every
        self._inside = inside
        self._summing = summing or plain_sums(transport)
        self._incarnation = incarnation
        # The global batch is shared out by the configured number of replicas; fewer members, fewer samples a step.
        self._samples_per_step = batch // place.replicas + (place.replica < batch % place.replicas)
        self._done_samples = 0
        self._done_targets = 0
        self._steps_left = 0
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

    def after_step(self, step: int, last_step: int, totals: Totals) -> Meeting | None:
        self._done_samples += self._samples_per_step
        self._done_targets += totals.targets
        self._steps_left -= 1
        if self._steps_left > 0 and step < last_step and not totals.stop:
            return None
        return self._agree(step, last_step, totals.stop)

    @property
    def behind(self) -> bool:  # type: ignore[override]
        return self._joining.behind

    def sum_evaluation(self, measure: Callable[[int, int], Tensor]) -> Tensor:
        sums = measure(0, 1)
        self._inside.all_reduce(sums)
        return sums

    def consensus(self) -> dict[str, Tensor]:
        """The weights agreed on at the last meeting, this rank's part of each."""
        return self._views(self._agreed)

    def owed(self) -> dict[str, Tensor]:
        views = self._summing.owed([Buffer.of(self._agreed, self._views(self._agreed).items())])
        return {name: placed_like(view, self._parameters[name]) for name, view in views.items()}

    def give(self) -> dict[str, Any]:
        """What a newcomer needs of the policy: the state at the last meeting."""
        return {"agreed": self._agreed, "ledger": self.ledger.state(), "rounds": self.rounds}

    def take(self, state: dict[str, Any]) -> None:
        """Be where the donor of `state` was at its last meeting, with nothing done since."""
        self._agreed.copy_(state["agreed"])
        self.ledger.load_state(state["ledger"])
        self.rounds = state["rounds"]
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
        while True:
            self.transport.meet()
            try:
                minutes = self._exchange(step, stop)
            except PeerLost:
                self._summing.drop()
                self.transport.commit(good=False)
                continue
            if self.transport.commit():
                self._summing.keep()
                return minutes
            self._summing.drop()

    def _exchange(self, step: int, stop: bool) -> Minutes:
        call = [
            *self._joining.standing.row(),
            self.place.replica,
            self._incarnation,
            self._done_samples,
            self._done_targets,
            step,
            int(stop),
            round((time.monotonic() - self._round_began) * 1000),
        ]
        rows = [part.tolist() for part in self.transport.all_gather(torch.tensor(call, dtype=torch.int64))]
        self._joining.attend([Standing.of(row) for row in rows])
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
        self._steps_left = min(self._every, max(last_step - meeting.step, 0))
        self._lease(meeting, minutes)
        self.rounds += 1
        self._joining.version = self.rounds
        return meeting

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
        left = torch.tensor(float(max(1, int(self._steps_left * (1 - min(gone, 1))))))
        self._inside.all_reduce(left)
        if self._round_seconds and self._steps_left:
            self._steps_left = int(left) // self._inside.size
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

    def _lease(self, meeting: Meeting, minutes: Minutes) -> None:
        replicas = self.place.replicas
        for replica, life, *_ in sorted(minutes.rows):
            samples = self._steps_left * (self.batch // replicas + (replica < self.batch % replicas))
            if samples:
                name = _member_name(replica, life)
                meeting.leased[name] = self.ledger.lease(name, samples)

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
