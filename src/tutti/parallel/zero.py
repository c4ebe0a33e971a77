"""When ranks that share out a model exchange gradients: the difference between ZeRO-1 and the others."""

from __future__ import annotations

from torch import nn
from torch.distributed.fsdp import FSDPModule


def before_backward(objective: nn.Module, zero: int, *, last: bool) -> None:
    """ZeRO-1: parameters stay gathered, and gradients whole, until the `last` micro-batch of a step."""
    if zero == 1 and isinstance(objective, FSDPModule):
        objective.set_requires_gradient_sync(last)
        objective.set_reshard_after_backward(last)
