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


class Enough(Exception):
    """Raised while a model computes, when nothing that comes after would be looked at."""


@torch.no_grad()
def observe_inputs(layers: Sequence[nn.Linear], run: Callable[[], Iterable[object]]) -> dict[int, Inputs]:
    """What goes into `layers` (by their id) while `run` has the model compute, batch by batch; it has to take `Enough`
    as the end of a batch."""
    found = {
        id(layer): Inputs(torch.zeros(layer.in_features, layer.in_features), torch.zeros(layer.in_features))
        for layer in layers
    }
    seen = dict.fromkeys(found, 0)
    with _hooked(layers, found, seen) as watch:
        for _ in run():
            # Layers that all compute once a batch are enough, whatever comes behind them.
            watch.stops = all(count == 1 for count in seen.values())
            seen.update(dict.fromkeys(seen, 0))
    return found


@dataclass
class _Watch:
    """`stops`: a batch, when all layers have computed."""

    stops: bool = False


@contextmanager
def _hooked(layers: Sequence[nn.Linear], found: dict[int, Inputs], seen: dict[int, int]) -> Iterator[_Watch]:
    watch = _Watch()

    def note(layer: nn.Module, given: tuple[Any, ...]) -> None:
        x = given[0].detach().flatten(0, -2).float()
        inputs = found[id(layer)]
        inputs.products.addmm_(x.T, x)
        inputs.sizes += x.abs().sum(0)
        inputs.count += len(x)
        seen[id(layer)] += 1
        if watch.stops and all(seen.values()):
            raise Enough

    handles = [layer.register_forward_pre_hook(note) for layer in layers]
    try:
        yield watch
    finally:
        for handle in handles:
            handle.remove()
