"""One optimizer step with the exact gradient, however its samples are divided.

The loss is a sum over targets, divided once by the number of targets of the whole step. Backward runs on the
sum divided by a nominal constant (to keep numbers in range); the true divisor is known when totals have been
summed over all ranks, and is applied together with clipping in one pass over the gradients.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from tutti.core.types import Batch
from tutti.sync import Policy, Totals
from tutti.train.precision import LossScale


@dataclass(frozen=True)
class Gradient:
    """A finished gradient: mean `loss` over the `totals`' targets, and its norm before clipping."""

    loss: float
    norm: float
    totals: Totals
    usable: bool


class Accumulator:
    """Computes the gradient of a step from micro-batches and hands it, exact, to the optimizer."""

    def __init__(
        self,
        objective: nn.Module,
        policy: Policy,
        *,
        nominal_targets: int,
        clip: float | None,
        context: AbstractContextManager[None],
        loss_scale: LossScale,
        sharded_over: int,
        seed: int,
    ) -> None:
        """`sharded_over`: ranks over which FSDP averages gradients (1: not sharded)."""
        self._objective = objective
        self._module = policy.attach(objective)
        self._policy = policy
        self._nominal = nominal_targets
        self._clip = clip
        self._context = context
        self._scale = loss_scale
        self._sharded_over = sharded_over
        self._seed = seed
        self._draws = any(isinstance(m, nn.Dropout) and m.p > 0 for m in objective.modules()) or _has_dropout(
            objective
        )

    @property
    def module(self) -> nn.Module:
        """What is called instead of the objective (DDP wraps it)."""
        return self._module

    def run(self, micro_batches: Sequence[Batch], tokens: int, key: int, stop: bool) -> Gradient:
        """Leave the exact, clipped gradient of the step in the parameters.

        `tokens`: what this rank computes; `key`: first position of this rank in the global order, from which
        random numbers (dropout) follow; `stop`: this rank was asked to stop.
        """
        self._policy.zero_gradients(self._objective)
        divisor = self._nominal / self._scale.value
        losses: list[Tensor] = []
        targets = 0
        for number, batch in enumerate(micro_batches):
            last = number == len(micro_batches) - 1
            if self._draws:
                torch.manual_seed(hash((self._seed, key, number)) & 0x7FFFFFFF)
            with self._policy.micro_batch(last=last):
                with self._context:
                    total, counted = self._module(batch)
                (total / divisor).backward()
            losses.append(total.detach().double())
            targets += int(counted)
        loss = float(torch.stack(losses).sum())  # one wait for the device a step
        totals = self._policy.before_step(Totals(loss, targets, tokens, stop))
        return self._finish(totals)

    def _finish(self, totals: Totals) -> Gradient:
        factor = self._nominal * self._sharded_over / (max(totals.targets, 1) * self._scale.value)
        gradients = [p.grad for p in self._objective.parameters() if p.grad is not None]
        norm = gradient_norm(gradients) * factor
        usable = self._scale.accepts(norm)
        if usable:
            if self._clip is not None and norm > self._clip:
                factor *= self._clip / (norm + 1e-6)
            if factor != 1.0:
                torch._foreach_mul_(
                    [g.to_local() if isinstance(g, DTensor) else g for g in gradients], factor
                )
        return Gradient(totals.loss / max(totals.targets, 1), norm, totals, usable)


def gradient_norm(gradients: Sequence[Tensor]) -> float:
    """Euclidean norm over all `gradients`, sharded ones included (a collective then)."""
    if not gradients:
        return 0.0
    norm = torch.nn.utils.get_total_norm(gradients)
    value = float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
    return value if math.isfinite(value) else math.nan


def _has_dropout(module: nn.Module) -> bool:
    """Attention keeps its dropout rate in the configuration of the Hugging Face model, not in a module."""
    config = getattr(getattr(module, "model", None), "config", None)
    rates = (getattr(config, name, 0.0) for name in ("attention_dropout", "attn_pdrop", "resid_pdrop"))
    return any(rates)
