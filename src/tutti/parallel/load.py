"""Weights into a model that is cut: of every tensor each rank keeps its piece."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from tutti.parallel.offload import MappedFiles


def by_name(models: Iterable[nn.Module], tied: Mapping[str, str]) -> dict[str, list[Tensor]]:
    """Parameters and buffers of all `models` by their first names; stages of one rank share names of buffers."""
    found: dict[str, list[Tensor]] = {}
    for model in models:
        for name, tensor in named_tensors(model):
            found.setdefault(tied.get(name, name), []).append(tensor)
    return found


def named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers of `model` by name, tied ones under each of their names."""
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def tied_names(model: nn.Module) -> dict[str, str]:
    """Second name → first name of every parameter of `model` that has several."""
    first: dict[int, str] = {}
    found = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        known = first.setdefault(id(parameter), name)
        if known != name:
            found[name] = known
    return found


def make_room(module: nn.Module, device: torch.device, files: MappedFiles | None = None) -> None:
    """Give what `module` holds on the meta device memory on `device`; what is tied stays tied.

    `files`: where parameters lie instead, one after another, so that they never need memory all at once.
    """
    places: dict[int, list[tuple[nn.Module, str]]] = {}
    kept = []
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                kept.append(parameter)  # so that no other gets its id
                places.setdefault(id(parameter), []).append((part, name))
    if files is None:
        module.to_empty(device=device)
    else:
        for part in module.modules():
            part.to_empty(device=device, recurse=False)
            for parameter in part._parameters.values():
                if isinstance(parameter, DTensor):
                    parameter._local_tensor = files.empty_like(parameter._local_tensor)
                elif parameter is not None:
                    parameter.data = files.empty_like(parameter)
    for (part, name), *others in places.values():
        for other, other_name in others:
            other._parameters[other_name] = part._parameters[name]


@torch.no_grad()
def fill_pieces(
    own: Mapping[str, Sequence[Tensor]],
    weights: Iterable[tuple[str, Tensor]],
    packed: Mapping[str, tuple[int, int]],
    ways: int,
) -> set[str]:
    """Copy of each whole tensor of `weights` this rank's piece into its namesakes in `own`; returns their names.

    `packed`: (dimension, matrices) of weights that hold several matrices, each cut into `ways`.
    """
    filled = set()
    for name, whole in weights:
        if name in own:
            if name in packed:
                whole = _by_rank(whole, *packed[name], ways)
            for target in own[name]:
                if isinstance(target, DTensor):
                    target.to_local().copy_(_piece_of(whole, target))
                else:
                    target.copy_(whole)
            filled.add(name)
    return filled


def _by_rank(whole: Tensor, dimension: int, matrices: int, ways: int) -> Tensor:
    """The matrices in `whole` cut, and laid out so that each rank's pieces of them are neighbours."""
    shape = list(whole.shape)
    split = [*shape[:dimension], matrices, ways, -1, *shape[dimension + 1 :]]
    return whole.view(split).transpose(dimension, dimension + 1).reshape(shape)


def unpack_pieces(by_rank: Tensor, dimension: int, matrices: int, ways: int) -> Tensor:
    """The matrices in a weight as they were, from the order in which `ways` ranks hold pieces of them."""
    return _by_rank(by_rank, dimension, ways, matrices)


def _piece_of(whole: Tensor, like: DTensor) -> Tensor:
    shape, offset = compute_local_shape_and_global_offset(whole.shape, like.device_mesh, like.placements)
    piece: Any = whole
    for dimension, (start, length) in enumerate(zip(offset, shape, strict=True)):
        piece = piece.narrow(dimension, start if length else 0, length)
    taken: Tensor = piece
    return taken
