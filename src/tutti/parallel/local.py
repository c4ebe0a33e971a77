"""Parameters that are pieces."""

from __future__ import annotations

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard


def keep_piece(parameter: nn.Parameter, dimension: int, mesh: DeviceMesh) -> nn.Parameter:
    """`parameter`, on the meta device, as one that is cut into equal pieces along `dimension` over `mesh`."""
    assert parameter.is_meta and parameter.shape[dimension] % mesh.size() == 0
    shape = list(parameter.shape)
    shape[dimension] //= mesh.size()
    piece = torch.empty(shape, dtype=parameter.dtype, device="meta")
    whole = DTensor.from_local(
        piece, mesh, [Shard(dimension)], run_check=False, shape=parameter.shape, stride=parameter.stride()
    )
    return nn.Parameter(whole, requires_grad=parameter.requires_grad)
