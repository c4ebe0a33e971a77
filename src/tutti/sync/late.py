"""Policy `allreduce` with `overlap: 1`: gradients travel while the next step is computed.

    x_{t+1} = x_t − step(Σ over replicas of g_{t−1})             (Pipe-SGD: Li et al. 2018, arXiv 1811.03619, K = 2)
    g_t     = g(x_t + (x_t − x_{t−1}))                           (SpecTrain: Chen et al. 2018, arXiv 1809.02839)

A step takes as long as computing or sending, whichever is longer, and not as both. What that costs: every step is made
with the gradient of the step before it. So gradients are computed where the weights are thought to be by then: a step
further the same way. It also costs a second buffer as large as the gradients and a copy of the weights, and of the
first step nothing is there yet. The last step is made with both gradients that are left, as one of a batch twice as
large.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from tutti.sync.allreduce import AllReduce
from tutti.sync.buckets import OverlappedBuckets
from tutti.sync.policy import Meeting, Totals
from tutti.sync.transport import PeerLost, Wait

#: Under this name a checkpoint has what the gradient that is under way sums up.
_TOTALS = "late_totals"
#: And behind the name of a parameter what it was before the last step.
_BEFORE = ".before"


@dataclass
class _Sent:
    """A gradient that was sent off, and what it sums up: float64, as `Totals.vector`; no targets: there is none."""

    buckets: OverlappedBuckets
    totals: Tensor
    #: Until the totals have arrived.
    wait: Wait | None = None
    views: dict[str, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.views = {
            part.name: bucket.flat[part.start : part.start + part.size].view(part.shape)
            for bucket in self.buckets.buckets
            for part in bucket.buffer.parts
        }


class LateAllReduce(AllReduce):
    """For fixed members, each with a whole copy of the model."""

    late = True

    def attach(self, objective: nn.Module) -> nn.Module:
        attached = super().attach(objective)
        # One replica alone is as late as several: what is learned must not follow from their number.
        first = self._buckets if self._buckets is not None else self._new_buckets(objective)
        self._buckets = first
        #: What is computed into, and what was sent off last.
        self._sets: list[_Sent] = []
        for buckets in (first, self._new_buckets(objective)):
            buckets.gate = self._receive  # one after the other: what one owes the next one pays
            self._sets.append(
                _Sent(buckets, torch.zeros(Totals.SIZE, dtype=torch.float64, device=self._device))
            )
        #: Where the weights were at the beginning of the last step, and are while they are moved ahead.
        self._before = {name: p.detach().clone() for name, p in self._parameters.items()}
        self._last_step = 0
        return attached

    def start(self, step: int, last_step: int) -> Meeting | None:
        self._last_step = last_step
        if not self._sets[1].totals.any():  # else what was under way was loaded, and this with it
            for name, parameter in self._parameters.items():
                self._before[name].copy_(parameter.detach())
        self._sets[1].totals[3:] = 0  # who asked to stop before that was loaded got it
        return super().start(step, last_step)

    def rest(self) -> None:
        for one in self._sets:
            one.buckets.close()

    def zero_gradients(self, objective: nn.Module) -> None:
        """The gradient that is about to be computed goes where the one lies that was stepped with."""
        super().zero_gradients(objective)
        self._sets[0].totals.zero_()
        self._move_ahead()

    def before_step(self, totals: Totals) -> Totals:
        """Send this gradient off; what is left to step with is the former one."""
        self._move_back()
        new, former = self._sets
        new.totals.copy_(totals.vector(self._device))
        new.buckets.start_rest()
        self._receive()  # where there was nothing to send
        new.wait = self._summing.start_plain(new.totals, self._totals_transport)
        new.buckets.arm(False)
        self._sets = [former, new]
        self._buckets = former.buckets
        if self._step_ranges[0] >= self._last_step:
            self._receive()
            for into, other in zip(former.buckets.buckets, new.buckets.buckets, strict=True):
                into.flat += other.flat
                other.flat.zero_()
            former.totals += new.totals
            new.totals.zero_()
        found = Totals.of(former.totals)
        if found.targets:
            former.buckets.lend_sums()
        else:  # nothing came before: nothing is stepped with
            for parameter in self._parameters.values():
                parameter.grad = None
        return found

    @torch.no_grad()
    def _move_ahead(self) -> None:
        for name, parameter in self._parameters.items():
            way = parameter - self._before[name]
            self._before[name].copy_(parameter)
            parameter.add_(way)

    @torch.no_grad()
    def _move_back(self) -> None:
        for name, parameter in self._parameters.items():
            parameter.copy_(self._before[name])

    def _receive(self) -> None:
        """Have all of the gradient that was sent off last. Raises PeerLost when a member was lost."""
        sent = self._sets[1]
        if sent.wait is None:
            return
        wait, sent.wait = sent.wait, None
        sent.buckets.receive()
        wait()
        self._summing.keep()

    def settle(self) -> int | None:
        self._receive()
        return None

    def sum_evaluation(self, measure: Callable[[int, int], Tensor]) -> Tensor:
        self.settle()  # both would use one group, on which all ranks have to make the same calls in the same order
        return super().sum_evaluation(measure)

    def tensors(self) -> dict[str, Tensor]:
        """The gradient that the next step is made with, and where the weights were before."""
        self._receive()
        before = {f"{name}{_BEFORE}": tensor for name, tensor in self._before.items()}
        return self._sets[1].views | before | {_TOTALS: self._sets[1].totals}

    def close(self) -> None:
        with suppress(PeerLost):
            self.settle()  # others may still wait for what this replica sends
        super().close()
