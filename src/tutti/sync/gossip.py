"""Policy `gossip`: stochastic gradient push. Replicas step on their own, and after every step each talks to two.

Assran et al. 2019 (arXiv 1811.10792). A replica holds numbers x and a weight w; its model is z = x ÷ w:

    x ← x + a (opt(z) − z)          its optimizer's step at z; a: its share of the samples, 1 on average
    send ½ (x, w) to the replica 2^(k mod ⌈log₂ n⌉) ahead;  (x, w) ← ½ (x, w) + what came from as far behind

Every `every` steps all meet as in `local_sgd` and take Σx ÷ Σw (Gossip-PGA, Chen et al. 2021, arXiv 2105.09080): there
they find out who is alive, validate and save. A round begins with w = a and x = a θ. What travels is
½ (x − w θ_old), a small difference that codecs can write: all know θ_old since the last meeting.

**The mean.** An exchange changes neither Σx nor Σw, with any codec (`push`). So Σx ÷ Σw is
θ_old + Σ_r s_r Δ_r ÷ Σ_r s_r at any time, Δ_r what replica r's steps add up to and s_r its samples in a step.

**How far apart.** Where n = 2^m, the matrices of m exchanges in a row multiply to the plain mean, so of older steps
everybody has the same. With steps of at most D and equal shares, no replica is further from the mean than
2 D (m − 2 + 2/n) after an exchange (n = 2: 0; 4: D; 8: 2.5 D), however long the round. What a codec has not sent comes
on top; as no codec writes more than twice a number (but for `topk` with `value_bits: 2`), an exchange never makes
Σ |x − w θ_old| over the replicas larger.

**A replica that dies** in mid-round takes along the (x, w) that it held; what it gave before stays with the others.
Nobody's x is without its w, so Σx ÷ Σw is still a mean of models. The others keep what they cannot give and go on alone
until the next meeting, where it is no member any more and its samples are leased again. A newcomer is nobody's
neighbour before the meeting after it has got the run's state.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from tutti.sync.buffer import Buffer
from tutti.sync.codecs import Codec
from tutti.sync.ledger import count
from tutti.sync.local_sgd import LocalSGD
from tutti.sync.minutes import Minutes, member_name
from tutti.sync.policy import Meeting, Totals, local_part
from tutti.sync.push import Push

#: A weight is sent to the meeting as a whole number of this.
_GRAIN = 2.0**-32
#: Who holds less than this of its share has given long without getting, and gives no more.
_LEAST = 2.0**-10


def hops(members: int) -> list[int]:
    """How far ahead a member's neighbour stands, exchange by exchange: a directed exponential graph."""
    return [2**power for power in range((members - 1).bit_length())]


class Gossip(LocalSGD):
    """`squeeze`: compress what neighbours exchange with zstd; the rest as `LocalSGD`."""

    def __init__(self, *rest: Any, squeeze: bool = False, **others: Any) -> None:
        super().__init__(*rest, **others)
        codec = self._summing.codec
        assert isinstance(codec, Codec), "check_sync refuses powersgd"
        self._push = Push(self.transport, codec, self._inside, squeeze=squeeze)
        self._moved: float | None = None

    def attach(self, objective: nn.Module) -> nn.Module:
        attached = super().attach(objective)
        self._shape = self._buffer(self._agreed, 0).parts
        return attached

    def after_step(self, step: int, last_step: int, totals: Totals) -> Meeting | None:
        last_of_round = self._round.left <= 1
        self._mix(alone=last_of_round)
        # Neighbours wait for each other, so all make the same steps: who is asked to stop does at the next meeting.
        return super().after_step(step, last_step, replace(totals, stop=totals.stop and last_of_round))

    def figures(self) -> dict[str, float]:
        return {} if self._moved is None else {"divergence": self._moved}

    def _conclude(self, minutes: Minutes) -> Meeting:
        meeting = super()._conclude(minutes)
        shares = {name: count(lease) for name, lease in meeting.leased.items()}
        if shares:  # none: that was the last meeting
            self._share = (
                shares[member_name(self.place.replica, self._incarnation)]
                * len(shares)
                / sum(shares.values())
            )
            self._most = max(shares.values()) / min(shares.values())
        self._mass = self._share if shares else 0.0
        self._exchanges = 0
        self._neighbours = minutes.current
        self._push.begin()
        self._stretch_from(None)
        return meeting

    def _weights(self) -> list[int]:
        return [round(self._mass / _GRAIN) if self._done_samples else 0]

    # Between meetings ----------------------------------------------------------------------------------------

    def _mix(self, *, alone: bool) -> None:
        """Push-sum after the optimizer's step; with `alone` no exchange, because all meet now."""
        before, model = self._before, self._flatten(self._parameters)
        if before is not None:  # x ← x + a Δ is z ← z + (a ÷ w) Δ
            model = before + (model - before).mul_(self._stretch)
        ring, self._moved = self._neighbours, None
        members = len(ring)
        if alone or members == 1 or self.transport.rank not in ring:
            if before is not None:
                self._write(model)
            return
        ways = hops(members)
        hop = ways[self._exchanges % len(ways)]
        self._exchanges += 1
        me, part = ring.index(self.transport.rank), 0.5 if self._mass > _LEAST * self._share else 0.0
        held = (model - self._agreed).mul_(self._mass)
        given, came = self._push.exchange(
            Buffer(held * part, self._shape),
            self._mass * part,
            ring[(me + hop) % members],
            ring[(me - hop) % members],
        )
        self._mass += came.weight - given.weight
        mixed = held.sub_(given.numbers).add_(came.numbers).div_(self._mass).add_(self._agreed)
        self._moved = float((mixed - model).norm() / self._agreed.norm().clamp_min(1e-12))
        self._write(mixed)
        self._stretch_from(mixed)

    def _write(self, flat: Tensor) -> None:
        """`flat` becomes the parameters."""
        with torch.no_grad():
            for name, view in self._views(flat).items():
                local_part(self._parameters[name]).copy_(view)

    def _stretch_from(self, model: Tensor | None) -> None:
        """Note how much further than its optimizer says this replica goes from `model` in its next step.

        That is a ÷ w, and no more than it can be when nobody is lost; 1 needs no `model` to start from.
        """
        self._stretch = 1.0 if model is None else min(self._share / self._mass, self._most)
        self._before = None if self._stretch == 1.0 else model
