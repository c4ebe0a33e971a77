"""Adafactor: of the squares of a matrix's gradients only the means of its rows and columns are kept.

Equations (Shazeer and Stern 2018, arXiv 1804.04235, algorithms 4 and 5), per matrix W [A, B], gradient G, step t:

    β = 1 − t^(−0.8)                                        t is counted from 1
    R ← β R + (1 − β) mean over B of (G ⊙ G + 1e-30)        [A, 1]
    C ← β C + (1 − β) mean over A of (G ⊙ G + 1e-30)        [1, B]
    U = G ⊘ √(R C ÷ mean R)                                 of anything but a matrix: G ⊘ √V, with V kept whole
    U ← U ÷ max(1, RMS U)                                   no step is larger than usual ones
    W ← W − η λ W − η max(0.001, RMS W) U                   η: the schedule's; steps are relative to the weights

The paper has η = min(0.01, 1 ÷ √t); here the schedule says it, as it does for the other optimizers. There is no
momentum, so A + B numbers are kept of a matrix where AdamW keeps 2 A B.

torch.optim.Adafactor bounds the schedule by 1 ÷ √t, waits for the device twice for every parameter, and keeps what it
knows of a sharded matrix whole on every rank. Here every rank holds the means of its own rows and columns (DTensor, as
FSDP2 and tensor parallelism cut them), and ranks add up what a mean over the whole matrix takes: a few numbers for each
row and column, in three exchanges a step. The result is that of one process.

Anything of more than two dimensions is a stack of matrices, its last two dimensions, that share RMS U and RMS W.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial, Replicate

from tutti.sync.policy import local_part

_ROWS, _COLUMNS = -2, -1
#: ε₁ and ε₂ of the paper, and the exponent of its second-moment decay.
_TINY, _LEAST_RMS, _DECAY = 1e-30, 1e-3, -0.8


class Adafactor(torch.optim.Optimizer):
    """Adafactor for parameters of any shape, plain or DTensor.

    State: `step`; of a matrix `row` [A, 1] and `column` [1, B], of anything else `square`, cut as their parameter is.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        *,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        works = [
            _Work(parameter, local_part(parameter), local_part(parameter.grad), self._state(parameter), group)
            for group in self.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        for stage in (_Work.moments, _Work.means, _Work.sizes):
            _add_up([part for work in works for part in stage(work)])
        for work in works:
            work.update()
        return loss

    def _state(self, parameter: Tensor) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[parameter]
        if "step" not in state:
            state["step"] = torch.tensor(0.0)
            if parameter.ndim >= 2:
                state["row"] = _zeros_like(parameter, without=_COLUMNS)
                state["column"] = _zeros_like(parameter, without=_ROWS)
            else:
                state["square"] = _zeros_like(parameter)
        return state


@dataclass(frozen=True)
class _Part:
    """A rank's part of a sum over `dimension` (None: all of them) of `parameter`; to be made the whole sum in place."""

    parameter: Tensor
    sums: Tensor
    dimension: int | None = None


class _Work:
    """One parameter on its way through a step. `weight`, `gradient`: this rank's part of it."""

    def __init__(
        self,
        parameter: Tensor,
        weight: Tensor,
        gradient: Tensor,
        state: dict[str, Tensor],
        group: dict[str, Any],
    ) -> None:
        self._parameter, self._weight, self._gradient, self._group = parameter, weight, gradient, group
        self._factored = parameter.ndim >= 2
        self._state = {name: local_part(value) for name, value in state.items()}

    def moments(self) -> Iterator[_Part]:
        """Squares of the weights, and of the gradient by rows and columns."""
        self._weight_squares = _squares(self._weight)
        yield _Part(self._parameter, self._weight_squares)
        if self._factored:
            self._row = _squares(self._gradient, _COLUMNS)
            self._column = _squares(self._gradient, _ROWS)
            yield _Part(self._parameter, self._row, _COLUMNS)
            yield _Part(self._parameter, self._column, _ROWS)

    def means(self) -> Iterator[_Part]:
        """The moments move on; of a matrix the mean of R."""
        self._state["step"] += 1
        weight = float(self._state["step"]) ** _DECAY
        if not self._factored:
            wide = self._gradient.to(self._state["square"].dtype)
            self._state["square"].lerp_(wide.square().add_(_TINY), weight)
            return
        rows, columns = self._parameter.shape[_ROWS], self._parameter.shape[_COLUMNS]
        self._state["row"].lerp_(self._row.div_(columns).add_(_TINY), weight)
        self._state["column"].lerp_(self._column.div_(rows).add_(_TINY), weight)
        self._mean = self._state["row"].sum(_ROWS, keepdim=True).div_(rows)
        yield _Part(self._parameter, self._mean, _ROWS)

    def sizes(self) -> Iterator[_Part]:
        """Squares of U."""
        self._update_squares = _squares(self._direction())
        yield _Part(self._parameter, self._update_squares)

    def update(self) -> None:
        """The weights move."""
        numbers = self._parameter.numel()
        rate: float = self._group["lr"]
        size = (self._weight_squares / numbers).sqrt().clamp_min(_LEAST_RMS)
        too_large = (self._update_squares / numbers).sqrt().clamp_min(1.0)
        if self._group["weight_decay"]:
            self._weight.mul_(1 - rate * self._group["weight_decay"])
        self._weight.sub_(self._direction().mul_(rate * size / too_large))

    def _direction(self) -> Tensor:
        """U before it is bounded; made twice, so that there is never that of more than one parameter."""
        if not self._factored:
            return self._gradient * self._state["square"].rsqrt()
        by_rows = self._gradient * (self._state["row"] / self._mean).rsqrt()
        return by_rows.mul_(self._state["column"].rsqrt())


def _squares(tensor: Tensor, dimension: int | None = None) -> Tensor:
    """The sum of squares, over `dimension` or everything."""
    norm: Tensor = torch.linalg.vector_norm(
        tensor, dim=dimension, keepdim=dimension is not None, dtype=_wide(tensor)
    )
    return norm.square_()


def _wide(tensor: Tensor) -> torch.dtype:
    """In fp16 the smallest of the moments would be zero."""
    return torch.promote_types(tensor.dtype, torch.float32)


def _zeros_like(parameter: Tensor, without: int | None = None) -> Tensor:
    """Zeros of the shape of `parameter`, but for one number along `without`, cut as it is."""
    local = local_part(parameter)
    shape, local_shape = list(parameter.shape), list(local.shape)
    if without is not None:
        shape[without] = local_shape[without] = 1
    zeros = torch.zeros(local_shape, dtype=_wide(local), device=local.device)
    if not isinstance(parameter, DTensor):
        return zeros
    return DTensor.from_local(
        zeros,
        parameter.device_mesh,
        [
            Replicate() if without is not None and _cuts(placement, parameter, without) else placement
            for placement in parameter.placements
        ],
        shape=torch.Size(shape),
        stride=torch.empty(shape, device="meta").stride(),
    )


def _cuts(placement: Any, parameter: Tensor, dimension: int | None) -> bool:
    """Whether ranks that differ in `placement` hold pieces of `parameter` along `dimension` (None: along any)."""
    if isinstance(placement, Replicate | Partial):
        return False
    return dimension is None or placement.dim == dimension % parameter.ndim  # Shard, or FSDP's kind of it


def _add_up(parts: Sequence[_Part]) -> None:
    """Make the sums of all `parts` those over whole parameters, in one exchange for each group of ranks."""
    shared: dict[dist.ProcessGroup, list[Tensor]] = {}
    for part in parts:
        if isinstance(part.parameter, DTensor):
            mesh = part.parameter.device_mesh
            for number, placement in enumerate(part.parameter.placements):
                if _cuts(placement, part.parameter, part.dimension):
                    shared.setdefault(mesh.get_group(number), []).append(part.sums)
    for group, several in shared.items():  # a sum over two groups is made one after the other
        flat = torch.cat([sums.flatten() for sums in several])
        dist.all_reduce(flat, group=group)
        wholes = torch.split(flat, [sums.numel() for sums in several])
        for sums, whole in zip(several, wholes, strict=True):
            sums.copy_(whole.view_as(sums))
