"""What goes into linear layers: their second moments, and how large each number is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass
class Inputs:
    """Of one layer: `products` Σ x xᵀ [in, in], `sizes` Σ |x| [in], `count` of tokens."""

    products: Tensor
    sizes: Tensor
    count: int = 0

    @property
    def mean_size(self) -> Tensor:
        """Mean |x| [in]."""
        return self.sizes / max(1, self.count)

    @property
    def norm(self) -> Tensor:
        """√Σ x² [in]."""
        return self.products.diagonal().sqrt()


@torch.no_grad()
def observe_inputs(layers: Sequence[nn.Linear], run: Callable[[], Iterable[object]]) -> dict[int, Inputs]:
    """What goes into `layers` (by their id) while `run` has the model compute."""
    found = {
        id(layer): Inputs(torch.zeros(layer.in_features, layer.in_features), torch.zeros(layer.in_features))
        for layer in layers
    }
    with _hooked(layers, found):
        for _ in run():
            pass
    return found


@contextmanager
def _hooked(layers: Sequence[nn.Linear], found: dict[int, Inputs]) -> Iterator[None]:
    def note(layer: nn.Module, given: tuple[Any, ...]) -> None:
        x = given[0].detach().flatten(0, -2).float()
        inputs = found[id(layer)]
        inputs.products.addmm_(x.T, x)
        inputs.sizes += x.abs().sum(0)
        inputs.count += len(x)

    handles = [layer.register_forward_pre_hook(note) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
