"""Tensor parallelism for models with a head, which are asked about rows of unlike length: encoders, mostly.

Such a model is small enough to be whole on every rank for a moment, so it is cut where it is, with all that was put on
it. Every rank has all tokens; see `tensor`.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from tutti.core import ModelError
from tutti.parallel.local import piece_of_matrices
from tutti.parallel.tensor import CutMatrices, TensorPlan, candidates, cut_matrices, cut_vocabulary
from tutti.sync.policy import local_part


def cut_with_head(model: Any, twin: Any, mesh: DeviceMesh) -> tuple[CutMatrices, list[str]]:
    """Cut `model`, whole in memory, in place over the ranks of `mesh`; also what the user should know. `twin`: a small
    model of the kind, the same on all ranks, on which the way to do it is tried.

    Raises:
        ModelError: there is no way in which the parts compute what the whole does.
    """
    cut = cut_matrices(model, _find_plan(twin, mesh), mesh, pieces=False)
    table = model.get_input_embeddings()
    if _is_shared(model, table.weight):
        return cut, ["the embedding is the head as well, so layout.tensor leaves both whole"]
    if not cut_vocabulary(model, mesh, embedding=True, head=None):
        return cut, [
            f"the vocabulary is not divisible by layout.tensor = {mesh.size()}: the embedding stays whole"
        ]
    return cut, []


def _is_shared(model: nn.Module, weight: Tensor) -> bool:
    """Whether `weight` is something else as well, as of a model whose head is its embedding."""
    return sum(other is weight for _, other in model.named_parameters(remove_duplicate=False)) > 1


def _find_plan(twin: Any, mesh: DeviceMesh) -> TensorPlan:
    """The first candidate with which the split `twin` computes, and learns, what the whole one does."""
    twin.eval()
    words = twin.get_input_embeddings().weight.shape[0]
    ids = (torch.arange(14) * 7919 + 11).remainder(words).view(2, 7)
    mask = torch.ones_like(ids)
    mask[0, 5:] = 0
    expected = _run(twin, ids, mask)
    for plan in candidates(twin):
        agreed = torch.tensor(float(_learns_the_same(twin, plan, mesh, ids, mask, expected)))
        dist.all_reduce(agreed, dist.ReduceOp.MIN, group=mesh.get_group())
        if agreed:
            return plan
    raise ModelError(
        f"{twin.config.model_type} cannot be split by layout.tensor: no way was found in which the parts of a "
        "block compute what the whole block does",
        "use layout.shard instead",
    )


def _run(model: Any, ids: Tensor, mask: Tensor) -> Tensor:
    """The output where there are tokens; its squares leave gradients (each its own: of what was normalised, the sum of
    squares is always the same)."""
    model.zero_grad()
    output: Tensor = model(input_ids=ids, attention_mask=mask)[0]
    output = output[mask.bool()] if output.shape[:2] == mask.shape else output
    unlike = torch.linspace(0.1, 1.0, output.shape[-1])
    (output.square() * unlike).sum().backward()  # type: ignore[no-untyped-call]
    return output.detach()


def _learns_the_same(
    twin: Any, plan: TensorPlan, mesh: DeviceMesh, ids: Tensor, mask: Tensor, expected: Tensor
) -> bool:
    split = copy.deepcopy(twin)
    try:
        cut = cut_matrices(split, plan, mesh, pieces=False)
        found = _run(split, ids, mask)
        own = dict(split.named_parameters())
        for name in cut.summed:
            gradient = own[name].grad
            if gradient is not None:
                dist.all_reduce(gradient, group=mesh.get_group())
    except (RuntimeError, ValueError):  # shapes that do not fit together, on all ranks alike
        return False
    pairs = []
    for name, parameter in twin.named_parameters():
        if parameter.grad is not None:
            gradient = own[name].grad
            if gradient is None:
                return False
            pairs.append((local_part(gradient), _own_piece(parameter.grad, own[name], cut, name, mesh)))
    # Some gradients are zero but for rounding (of biases of keys): no error is relative to those.
    least = 1e-3 * max(float(other.abs().max()) for _, other in pairs)
    return _same(found, expected, 0.0) and all(_same(one, other, least) for one, other in pairs)


def _same(found: Tensor, expected: Tensor, least: float) -> bool:
    scale = max(float(expected.abs().max()), least)
    return found.shape == expected.shape and bool((found - expected).abs().max() <= 1e-4 * scale)


def _own_piece(whole: Tensor, like: Tensor, cut: CutMatrices, name: str, mesh: DeviceMesh) -> Tensor:
    if not isinstance(like, DTensor):
        return whole
    (placement,) = like.placements
    assert isinstance(placement, Shard)
    _, matrices = cut.packed.get(name, (placement.dim, 1))
    return piece_of_matrices(whole, placement.dim, matrices, mesh.size(), mesh.get_local_rank())
