"""One optimizer step with the exact gradient, however its samples are divided.

The loss is a sum over targets, divided once by the number of targets of the whole step. Backward runs on the
sum divided by a nominal constant (to keep numbers in range); the true divisor is known when totals have been
summed over all ranks, and is applied together with clipping in one pass over the gradients.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from tutti.core.types import Batch, module_device
from tutti.parallel import Split
from tutti.sync import Policy, StaticTransport, Totals
from tutti.sync.policy import StepMade, local_part
from tutti.train.clock import Clock, Mark
from tutti.train.precision import LossScale
from tutti.train.remembering import Hold


@dataclass(frozen=True)
class Spent:
    """Seconds of a gradient. `forward`, `backward`: of this rank; None: a pipeline goes both ways at once. `alone`:
    until this rank had done its share; `exchange`: from then until the shares of all had arrived."""

    forward: float | None = None
    backward: float | None = None
    alone: float = 0.0
    exchange: float = 0.0


@dataclass(frozen=True)
class Part:
    """The gradient of this replica's first micro-batch alone: its norm, and how many targets it was divided by."""

    norm: float
    targets: int


@dataclass(frozen=True)
class Gradient:
    """A finished gradient: mean `loss` over the `totals`' targets, and its norm before clipping.

    made: the policy has made the step already. first: where it was asked for.
    """

    loss: float
    norm: float
    totals: Totals
    usable: bool
    made: StepMade | None = None
    spent: Spent = Spent()
    first: Part | None = None


class Accumulator:
    """Computes the gradient of a step from micro-batches and hands it, exact, to the optimizer."""

    def __init__(
        self,
        split: Split,
        policy: Policy,
        *,
        nominal_targets: int,
        clip: float | None,
        context: AbstractContextManager[None],
        loss_scale: LossScale,
        seed: int,
        hold: Hold | None = None,
    ) -> None:
        objective = split.objective
        self._split = split
        self._objective = objective
        self._module = policy.attach(objective)
        self._policy = policy
        self._nominal = nominal_targets
        self._clip = clip
        self._context = context
        self._scale = loss_scale
        self._seed = seed
        self._hold = hold
        self._first: Part | None = None
        self._clock = Clock(module_device(objective))

    @property
    def tells_apart(self) -> bool:
        """Whether the gradient of a micro-batch is ever there by itself and whole; else `run` leaves `first` None."""
        layout = self._split.world.layout
        whole = self._split.pipeline is None and layout.tensor == 1
        at_once = layout.zero > 1 or layout.data == 1
        prompt = not self._policy.owns_step and not self._policy.late
        return whole and at_once and self._hold is None and prompt

    def try_out(self, batch: Batch) -> None:
        """Forward and backward of `batch`, of which nothing remains."""
        before = {name: buffer.clone() for name, buffer in self._objective.named_buffers()}
        if self._split.pipeline is not None:
            self._split.pipeline.train(
                [batch], math.inf, self._context, lambda _: self._policy.micro_batch(last=False)
            )
        else:
            self._split.before_micro_batch(last=True)
            with self._policy.micro_batch(last=False):
                with self._context:
                    total, _ = self._module(batch)
                (total * 0.0).backward()
        for parameter in self._objective.parameters():
            parameter.grad = None
        with torch.no_grad():
            for (
                name,
                buffer,
            ) in self._objective.named_buffers():  # such as the statistics of batch normalisation
                buffer.copy_(before[name])

    def measure(self, batches: Iterable[Batch]) -> tuple[float, int]:
        """Loss and targets of `batches`, to be added up over all ranks."""
        return self._split.measure(batches, self._context)

    def run(
        self,
        micro_batches: Sequence[Batch],
        tokens: int,
        key: int,
        stop: bool,
        *,
        enough: bool = False,
        apart: bool = False,
    ) -> Gradient:
        """Leave the exact, clipped gradient of the step in the parameters.

        `tokens`: what this rank computes; `key`: first position of this rank in the global order, from which
        random numbers (dropout) follow; `stop`: this rank wants to stop; `enough`: because patience is at its end;
        `apart`: look at the first micro-batch by itself (all ranks of a replica alike).
        """
        began = time.perf_counter()
        self._first = None
        self._policy.zero_gradients(self._objective)
        divisor = self._nominal / self._scale.value
        loss, targets, ways = self._accumulate(micro_batches, divisor, key, apart and self.tells_apart)
        accumulated = time.perf_counter()
        if not self._split.world.counts:
            loss, targets, tokens = 0.0, 0, 0
        totals = self._policy.before_step(Totals(loss, targets, tokens, stop, enough))
        self._split.complete_gradients()
        spent = Spent(*ways, accumulated - began, time.perf_counter() - accumulated)
        if self._policy.owns_step:
            made = self._policy.push(totals)
            mean = totals.loss / max(totals.targets, 1)
            return Gradient(mean, made.norm, totals, usable=True, made=made, spent=spent)
        return self._finish(totals, spent)

    def _accumulate(
        self, micro_batches: Sequence[Batch], divisor: float, key: int, apart: bool
    ) -> tuple[float, int, tuple[float | None, float | None]]:
        """Forward and backward; returns the loss, how many targets it sums up, and the seconds of both ways."""
        if not micro_batches:  # a replica that only listens
            return 0.0, 0, (0.0, 0.0)
        if self._split.pipeline is not None:
            self._seed_dice(key, 0)
            loss, targets = self._split.pipeline.train(
                micro_batches, divisor, self._context, lambda last: self._policy.micro_batch(last=last)
            )
            return loss, targets, (None, None)
        losses: list[Tensor] = []
        marks: list[tuple[Mark, Mark, Mark]] = []
        targets = 0
        for number, batch in enumerate(micro_batches):
            last = number == len(micro_batches) - 1
            self._seed_dice(key, number)
            self._split.before_micro_batch(last=last)
            with self._policy.micro_batch(last=last):
                began = self._clock.mark()
                with self._context:
                    total, counted = self._module(batch)
                penalised = self._with_penalty(total, counted)
                turned = self._clock.mark()
                (penalised / divisor).backward()  # type: ignore[no-untyped-call]
                marks.append((began, turned, self._clock.mark()))
            losses.append(total.detach().double())
            targets += int(counted)
            if apart and number == 0 and not last:
                self._first = self._part(targets)
        loss = float(torch.stack(losses).sum())  # one wait for the device a step
        forward = sum(self._clock.seconds(began, turned) for began, turned, _ in marks)
        backward = sum(self._clock.seconds(turned, ended) for _, turned, ended in marks)
        return loss - self._objective.added(), targets, (forward, backward)

    def _part(self, targets: int) -> Part:
        """Of what is in the gradients, the sum over this rank's `targets` and those of its replica's other ranks."""
        world = self._split.world
        counted = torch.tensor(
            float(targets if world.counts else 0), dtype=torch.float64, device=world.device
        )
        StaticTransport(world.inside).all_reduce(counted)
        return Part(self._split.gradient_norm() * self._factor(int(counted)), int(counted))

    def _factor(self, targets: int) -> float:
        """What makes gradients as they come out of backward the mean over `targets`."""
        # FSDP averages over its ranks; the contract is a sum.
        over = self._split.world.layout.data
        return self._nominal * over / (max(targets, 1) * self._scale.value)

    def _with_penalty(self, total: Tensor, counted: Tensor) -> Tensor:
        """Every target carries the penalty once, so that divided by all of them it is there once, whoever has which."""
        penalty = self._objective.penalty
        return total if penalty is None else total + counted * penalty()

    def _seed_dice(self, key: int, number: int) -> None:
        """Of dropout and whatever else draws: which models do is not to be seen from outside."""
        torch.manual_seed(hash((self._seed, key, number)) & 0x7FFFFFFF)

    def _finish(self, totals: Totals, spent: Spent) -> Gradient:
        factor = self._factor(totals.targets)
        if self._hold is not None:
            self._hold.add_gradients(1 / factor)
        gradients = [local_part(p.grad) for p in self._objective.parameters() if p.grad is not None]
        norm = self._split.gradient_norm() * factor
        usable = self._scale.accepts(norm)
        if usable:
            if self._clip is not None and norm > self._clip:
                factor *= self._clip / (norm + 1e-6)
            if factor != 1.0 and gradients:
                torch._foreach_mul_(gradients, factor)
        mean = totals.loss / max(totals.targets, 1)
        return Gradient(mean, norm, totals, usable, spent=spent, first=self._first)
