"""From a model that knows one device to one that is split over the ranks of a replica.

One function, one fixed order, so that it can be read what happens to a model: compile the repeated blocks, then
shard them.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from tutti.models import find_blocks


def apply_layout(
    objective: nn.Module, *, mesh: DeviceMesh | None, dtype: torch.dtype | None, compile: bool
) -> None:
    """Split `objective` in place over `mesh` (None: it stays whole).

    `dtype`: arithmetic of a sharded model; its parameters, gradients and their reduction stay fp32 (None: all fp32).
    """
    blocks = find_blocks(objective)
    if compile:
        for block in blocks or [objective]:
            block.compile()
    if mesh is None:
        return
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    for block in blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(objective, mesh=mesh, mp_policy=policy)


def undo_compile(objective: nn.Module) -> None:
    """Forget compilation, after it failed."""
    torch._dynamo.reset()
    for module in objective.modules():
        module._compiled_call_impl = None
