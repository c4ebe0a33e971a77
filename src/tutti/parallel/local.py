"""Parameters that are pieces."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard


def keep_piece(parameter: nn.Parameter, dimension: int, mesh: DeviceMesh, matrices: int = 1) -> nn.Parameter:
    """`parameter` as one that is cut into equal pieces along `dimension` over `mesh`.

    On the meta device its content comes later; in memory the piece is copied, of each of the `matrices` in it.
    """
    ways = mesh.size()
    assert parameter.shape[dimension] % (matrices * ways) == 0
    shape = list(parameter.shape)
    shape[dimension] //= ways
    if parameter.is_meta:
        piece = torch.empty(shape, dtype=parameter.dtype, device="meta")
    else:
        piece = piece_of_matrices(parameter.detach(), dimension, matrices, ways, mesh.get_local_rank())
    whole = DTensor.from_local(
        piece, mesh, [Shard(dimension)], run_check=False, shape=parameter.shape, stride=parameter.stride()
    )
    return nn.Parameter(whole, requires_grad=parameter.requires_grad)


def piece_of_matrices(whole: Tensor, dimension: int, matrices: int, ways: int, rank: int) -> Tensor:
    """A copy of piece `rank` of `ways` of each of the `matrices` that lie in `whole` along `dimension`."""
    each = whole.chunk(matrices, dimension)
    return torch.cat([matrix.chunk(ways, dimension)[rank] for matrix in each], dimension).contiguous()
