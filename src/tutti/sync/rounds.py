"""Policies that meet every H steps: replicas train on their own in between, then agree on weights.

    Δ_r = θ_old − θ_r                 what replica r did since the last meeting
    Δ   = Σ n_r Δ_r ÷ Σ n_r           n_r targets, summed over the live members
    θ   ← outer step of θ_old by Δ    what tells the policies apart

The weighting (Decoupled DiLoCo's) lets a replica that was late or newly come not count as if it had worked.

Data is leased by the round. At a meeting every member says how far it came in its lease; what was not done, and
what members lent who are no longer there, returns to the ledger and is taken first in the next round.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from tutti.sync.ledger import Ledger, Range, cut
from tutti.sync.policy import Meeting, Place, Policy, Totals, local_part, named_trainable, placed_like
from tutti.sync.summing import Buffer, Summing, plain_sums
from tutti.sync.transport import PeerLost, StaticTransport, Transport


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
    ) -> None:
        """`inside`: the parts of this replica, over which a step's totals are summed. `summing`: how what replicas
        did travels (None: as it is).

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

    def attach(self, objective: nn.Module) -> nn.Module:
        self._parameters = dict(named_trainable(objective))
        self._agreed = self._flatten()
        return objective

    @property
    def _name(self) -> str:
        return _member_name(self.place.replica, self._incarnation)

    def start(self, step: int, last_step: int) -> Meeting | None:
        self._agreed = self._flatten()  # a checkpoint may have been loaded since `attach`
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

    def consensus(self) -> dict[str, Tensor]:
        """The weights agreed on at the last meeting, this rank's part of each."""
        return self._views(self._agreed)

    def owed(self) -> dict[str, Tensor]:
        views = self._summing.owed([Buffer.of(self._agreed, self._views(self._agreed).items())])
        return {name: placed_like(view, self._parameters[name]) for name, view in views.items()}

    def give(self) -> dict[str, Any]:
        """What a newcomer needs of the policy: the state at the last meeting."""
        return {"agreed": self._agreed, "ledger": self.ledger.state(), "summing": self._summing.give()}

    def take(self, state: dict[str, Any]) -> None:
        """Be where the donor of `state` was at its last meeting, with nothing done since."""
        self._agreed.copy_(state["agreed"])
        self.ledger.load_state(state["ledger"])
        self._summing.take(state["summing"])
        self._write_back()

    @abstractmethod
    def _outer_step(self, mean: Tensor) -> None:
        """Change `_agreed` by the members' mean Δ, which may be used up."""

    # Meeting -----------------------------------------------------------------------------------------------

    def _agree(self, step: int, last_step: int, stop: bool) -> Meeting:
        """Exchange with whoever is alive until it counts, then step the outer optimizer and lease anew."""
        healed = False
        while True:
            healed = self.transport.meet() or healed
            if healed:  # parameters, momentum and ledger are the donor's now; nothing of ours is in them
                self._done_samples = self._done_targets = 0
            try:
                mean, roll = self._exchange(step, stop)
            except PeerLost:
                self._summing.drop()
                self.transport.commit()  # votes no
                continue
            if self.transport.commit():
                self._summing.keep()
                break
            self._summing.drop()
        meeting = self._settle(roll)
        meeting.healed = healed
        if mean is not None:
            own = self._agreed - self._flatten()
            meeting.divergence = float((own - mean).norm() / self._agreed.norm().clamp_min(1e-12))
            self._outer_step(mean)
            self._write_back()
        self._done_samples = self._done_targets = 0
        self._steps_left = min(self._every, max(last_step - meeting.step, 0))
        self._lease(meeting, roll)
        return meeting

    def _exchange(self, step: int, stop: bool) -> tuple[Tensor | None, list[list[int]]]:
        """The members' mean Δ (None when nobody has worked) and the roll call."""
        call = [
            self.place.replica,
            self._incarnation,
            self._done_samples,
            self._done_targets,
            step,
            int(stop),
        ]
        roll = [part.tolist() for part in self.transport.all_gather(torch.tensor(call, dtype=torch.int64))]
        targets = sum(entry[3] for entry in roll)
        if targets == 0:
            return None, roll
        delta = (self._agreed - self._flatten()).mul_(self._done_targets / targets)
        self._summing.sum(Buffer.of(delta, self._views(delta).items()))
        return delta, roll

    def _write_back(self) -> None:
        """The agreed weights become the parameters."""
        views = self._views(self._agreed)
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                local_part(parameter).copy_(views[name])

    def _settle(self, roll: list[list[int]]) -> Meeting:
        meeting = Meeting(members=[entry[0] for entry in roll], step=max(entry[4] for entry in roll))
        meeting.stop = any(entry[5] for entry in roll)
        done = {_member_name(entry[0], entry[1]): entry[2] for entry in roll}
        for name in sorted(self.ledger.loans):
            committed, returned = self.ledger.settle(name, done.get(name, 0))
            if committed:
                meeting.committed[name] = committed
            if returned:
                meeting.returned[name] = returned
        return meeting

    def _lease(self, meeting: Meeting, roll: list[list[int]]) -> None:
        replicas = self.place.replicas
        for replica, incarnation, *_ in sorted(roll):
            samples = self._steps_left * (self.batch // replicas + (replica < self.batch % replicas))
            if samples:
                name = _member_name(replica, incarnation)
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
