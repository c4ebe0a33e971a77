"""The weights and the optimizer of a run, at the server: one piece for each part of a replica's layout.

    g  =  Σ g_r ÷ Σ n_r                          synchronous: sums over the replicas' targets
    g  =  g_r ÷ n_r                              asynchronous: one replica's
    g  ←  g + λ g ⊙ g ⊙ (w − w_r)                delay compensation; w_r: the weights that g was computed at
    g  ←  g · min(1, clip ÷ ‖g‖)                 the norm of the whole gradient, over all parts
    w  ←  optimizer(w, g)

Delay compensation is DC-ASGD (Zheng et al. 2017, arXiv 1609.08326), whose g ⊙ g stands for the diagonal of the Hessian.
What parts share out by elements can be stepped piece by piece; an optimizer that needs whole matrices cannot.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

#: What an optimizer's state is called: the parameter's name, this, the name of the value.
BETWEEN = "/"


class Stepper(Protocol):
    """An optimizer, as the server uses it."""

    def step(self, factor: float) -> None:
        """Update the parameters by their gradients, with `factor` times the peak learning rate."""

    def state(self) -> dict[str, Tensor]:
        """Live tensors by `parameter/value`."""


#: From the groups of `Spec` and the parameters by name.
MakeStepper = Callable[[list[dict[str, Any]], Mapping[str, nn.Parameter]], Stepper]


@dataclass
class Spec:
    """What one part holds: its parameters in order, and the groups of its optimizer.

    shares: of each parameter, how much this part's copy counts in the norm (1 ÷ those who hold the same).
    scale: what a pushed gradient has to be multiplied by to be a sum over targets.
    """

    names: list[str]
    shapes: list[list[int]]
    shares: list[float]
    groups: list[dict[str, Any]]
    scale: float

    @property
    def sizes(self) -> list[int]:
        """Numbers of each parameter."""
        return [math.prod(shape) for shape in self.shapes]

    def json(self) -> dict[str, Any]:
        """As it is sent."""
        return asdict(self)


class Piece:
    """One part's weights as a flat vector, and the optimizer on them."""

    def __init__(self, spec: Spec, make_stepper: MakeStepper) -> None:
        self.spec = spec
        self.flat = torch.zeros(sum(spec.sizes))
        self.parameters = {
            name: nn.Parameter(view.view(shape))
            for name, view, shape in zip(
                spec.names, torch.split(self.flat, spec.sizes), spec.shapes, strict=True
            )
        }
        self.stepper = make_stepper(spec.groups, self.parameters)

    def squares(self, gradient: Tensor) -> float:
        """What `gradient` [as flat] adds to the square of the norm."""
        views = torch.split(gradient, self.spec.sizes)
        norms = torch.stack(torch._foreach_norm(list(views))).double()
        return float((norms.square() * torch.tensor(self.spec.shares, dtype=torch.float64)).sum())

    def step(self, gradient: Tensor, factor: float) -> None:
        """Update by `gradient`."""
        views = torch.split(gradient, self.spec.sizes)
        for parameter, view in zip(self.parameters.values(), views, strict=True):
            parameter.grad = view.view_as(parameter)
        self.stepper.step(factor)
        for parameter in self.parameters.values():
            parameter.grad = None

    def state(self) -> dict[str, Tensor]:
        """Everything, live: `weights`, and the optimizer's values after `optimizer/`."""
        optimizer = {f"optimizer{BETWEEN}{name}": value for name, value in self.stepper.state().items()}
        return {"weights": self.flat} | optimizer

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state` has; an optimizer that is not in it begins anew."""
        for name, tensor in self.state().items():
            if name in state:
                tensor.copy_(state[name])


class Centre:
    """All parts. `clip`: largest norm of the gradient, or None; `compensation`: λ."""

    def __init__(
        self,
        specs: Sequence[Spec],
        make_stepper: MakeStepper,
        *,
        clip: float | None,
        compensation: float,
    ) -> None:
        self.pieces = [Piece(spec, make_stepper) for spec in specs]
        self._clip = clip
        self._compensation = compensation

    @torch.no_grad()
    def step(
        self, gradients: Sequence[Tensor], targets: int, factor: float, computed_at: Sequence[Tensor] | None
    ) -> float:
        """Update all parts by `gradients` (which are used up), summed over `targets`; returns the norm before clipping.

        `factor`: of the peak learning rate. `computed_at`: the weights that the gradients belong to, where these are
        to be compensated for. A norm that is not finite leaves everything as it was.
        """
        for piece, gradient in zip(self.pieces, gradients, strict=True):
            gradient.mul_(piece.spec.scale / max(targets, 1))
        if computed_at is not None and self._compensation > 0:
            for piece, gradient, old in zip(self.pieces, gradients, computed_at, strict=True):
                gradient.addcmul_(gradient.square(), piece.flat - old, value=self._compensation)
        norm = math.sqrt(sum(p.squares(g) for p, g in zip(self.pieces, gradients, strict=True)))
        if not math.isfinite(norm):
            return math.nan
        if self._clip is not None and norm > self._clip:
            for gradient in gradients:
                gradient.mul_(self._clip / (norm + 1e-6))
        for piece, gradient in zip(self.pieces, gradients, strict=True):
            piece.step(gradient, factor)
        return norm

    def state(self) -> dict[str, Tensor]:
        """Every tensor, live, by `part/name`."""
        return {
            f"{part}{BETWEEN}{name}": tensor
            for part, piece in enumerate(self.pieces)
            for name, tensor in piece.state().items()
        }

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state()` gave."""
        for part, piece in enumerate(self.pieces):
            prefix = f"{part}{BETWEEN}"
            piece.load({n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)})
