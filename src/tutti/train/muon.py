"""Muon: momentum whose every matrix is replaced by the nearest (semi-)orthogonal one.

Equation (K. Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/), per matrix W [A, B], gradient G:

    M ← μ M + (1 − μ) G                          momentum
    U = (1 − μ) G + μ M                          Nesterov
    O = NS(U)  ≈ (U Uᵀ)^(−1/2) U                 Newton-Schulz, quintic
    W ← W − η (0.2 √max(A, B) · O + λ W)         scaled to AdamW's usual RMS (Moonshot, arXiv:2502.16982)

so that one learning rate and one weight decay serve Muon and AdamW alike.

torch.optim.Muon iterates in bf16, always, one matrix after the other. Here the arithmetic of the iteration is
chosen (bf16 on a CPU without bf16 units is many times slower than fp32), matrices of one shape go through one
batched product on accelerators, and sharded parameters (DTensor, as FSDP2 makes them) are gathered,
orthogonalised on every rank and cut again: the result is that of one process, at the price of doing the same
work on all ranks of a layout.

Shapes: N matrices of one shape, A ≤ B their sides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate

#: Coefficients of the quintic, from Jordan's post: steepest at 0, singular values end in 0.7…1.2.
QUINTIC = (3.4445, -4.7750, 2.0315)
_TINY = 1e-7


def orthogonalize(matrices: Tensor, iterations: int = 5) -> Tensor:
    """The (semi-)orthogonal matrices next to `matrices` [N, A, B]; singular values end in about 0.7…1.2.

    Works in the dtype that it is given. A matrix of zeros stays one.
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    if tall:
        matrices = matrices.mT
    a, b, c = QUINTIC
    norms = torch.linalg.matrix_norm(matrices, keepdim=True).clamp_min(_TINY)
    x: Tensor = matrices / norms  # so that no singular value exceeds 1
    if x.device.type == "cpu":  # one product after the other: 1.2 to 2 times as fast there as a batched one
        for one in x:
            for _ in range(iterations):
                gram = torch.mm(one, one.T)
                one.copy_(torch.addmm(one, torch.addmm(gram, gram, gram, beta=b, alpha=c), one, beta=a))
    else:
        for _ in range(iterations):
            gram = torch.bmm(x, x.mT)
            x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def iteration_dtype(device: torch.device) -> torch.dtype:
    """The dtype in which `device` iterates fast: bf16 on accelerators and on CPUs with bf16 units, else fp32.

    Decided by what the device has, not by a measurement: ranks must not come to different answers by chance.
    """
    if device.type != "cpu":
        return torch.bfloat16
    has_units = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if has_units else torch.float32


class Muon(torch.optim.Optimizer):
    """Muon for 2-D parameters, plain or DTensor; state: `momentum_buffer`, placed like its parameter.

    `dtype`: arithmetic of the iteration; None: `iteration_dtype` of the parameters' device.

    Raises:
        ValueError: a parameter is not a matrix.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        *,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        iterations: int = 5,
        dtype: torch.dtype | None = None,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "iterations": iterations}
        super().__init__(params, defaults)
        self.dtype = dtype
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.ndim != 2:
                    raise ValueError(
                        f"Muon takes matrices only, not a parameter of shape {tuple(parameter.shape)}"
                    )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            for alike in _by_shape(parameters):
                self._update(alike, group)
        return loss

    def _update(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        """Update `parameters`, all of one shape up to transposition, on one device and mesh."""
        grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
        buffers = [self._buffer(parameter) for parameter in parameters]
        momentum, rate = group["momentum"], group["lr"]
        torch._foreach_lerp_(buffers, grads, 1 - momentum)
        nesterov = torch._foreach_lerp(grads, buffers, momentum)

        whole = [u.full_tensor() if isinstance(u, DTensor) else u for u in nesterov]
        full = torch.stack([u if _is_wide(u) else u.mT for u in whole])
        dtype = self.dtype or iteration_dtype(full.device)
        updates = orthogonalize(full.to(dtype), group["iterations"]).to(parameters[0].dtype)

        scale = 0.2 * math.sqrt(max(parameters[0].shape))
        if group["weight_decay"]:
            torch._foreach_mul_(parameters, 1 - rate * group["weight_decay"])
        ours = [
            _placed_like(update if _is_wide(parameter) else update.mT, parameter)
            for update, parameter in zip(updates, parameters, strict=True)
        ]
        torch._foreach_add_(parameters, ours, alpha=-rate * scale)

    def _buffer(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        buffer: Tensor = state["momentum_buffer"]
        return buffer


def _is_wide(matrix: Tensor) -> bool:
    return matrix.shape[0] <= matrix.shape[1]


def _by_shape(parameters: list[Tensor]) -> list[list[Tensor]]:
    """Those that can go through one batched product: same sides, dtype, device and way of being sharded."""
    groups: dict[Any, list[Tensor]] = {}
    for parameter in parameters:
        sharding = None
        if isinstance(parameter, DTensor):
            # A transposed shard lies in other places than an untransposed one: do not mix them in one stack.
            sharding = (parameter.device_mesh, parameter.placements, _is_wide(parameter))
        key = (min(parameter.shape), max(parameter.shape), parameter.dtype, parameter.device, sharding)
        groups.setdefault(key, []).append(parameter)
    return list(groups.values())


def _placed_like(full: Tensor, parameter: Tensor) -> Tensor:
    """`full`, equal on all ranks, cut as `parameter` is; nothing is sent."""
    if not isinstance(parameter, DTensor):
        return full
    mesh = parameter.device_mesh
    whole = DTensor.from_local(full, mesh, [Replicate()] * mesh.ndim, run_check=False)
    return whole.redistribute(mesh, parameter.placements)
