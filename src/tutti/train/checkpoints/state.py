"""The state of a model and its optimizers as one nested dict whose names do not depend on how they are run.

    {"model": {parameter or buffer: tensor}, "optimizer": {parameter: {"exp_avg": tensor, "step": tensor, …}}}

Names are those of the bare model, whatever wraps it (DDP, FSDP2, torch.compile), and the optimizer's state
goes by parameter, not by position. So a checkpoint fits any layout, any grouping of parameters and any
division between optimizers, as long as each parameter keeps its kind of optimizer. Learning rate, weight
decay and the like are not in it: they belong to the configuration and the schedule, and a resume must obey
what the user writes there.

Tensors are live: `load` fills them in place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from tutti.core import CheckpointError, Objective

#: What wrappers of submodules add to names (torch.compile, activation checkpointing).
_ADDED = ("_orig_mod.", "_checkpoint_wrapped_module.")

#: Optimizers that keep no state at all (plain SGD): trying once is enough.
_STATELESS: WeakSet[Optimizer] = WeakSet()


def gather_state(model: nn.Module, optimizers: Optimizer | Iterable[Optimizer] = ()) -> dict[str, Any]:
    """The live state of `model` (an Objective, or any wrapping of it, counts as its bare model) and
    `optimizers`.

    Works before the first step too: state that an optimizer would make in its first step is made now, as it
    would be then. Collective where the optimizer's step is (FSDP). Weights that are tied are in it once,
    under the first name.
    """
    bare = bare_model(model)
    weights = _weights(bare)
    aliases = _aliases(weights)
    name_of = _names(bare)
    names: dict[Tensor, str] = {parameter: name_of(name) for name, parameter in bare.named_parameters()}
    kept: dict[str, dict[str, Any]] = {}
    for optimizer in _several(optimizers):
        initialise(optimizer)
        for parameter, values in optimizer.state.items():
            if values:
                kept[names[parameter]] = values
    ordered = {name: kept[name] for name in names.values() if name in kept}  # the same on every layout
    return {"model": {n: v for n, v in weights.items() if n not in aliases}, "optimizer": ordered}


def apply_state(
    model: nn.Module, optimizers: Optimizer | Iterable[Optimizer], state: Mapping[str, Mapping[str, Any]]
) -> None:
    """Make `state` (of the form and names of `gather_state`, in the same layout) that of `model` and
    `optimizers`.

    Raises:
        CheckpointError: names or shapes differ.
    """
    live = gather_state(model, optimizers)
    try:
        _fill(live["model"], state["model"], "model")
        _fill(live["optimizer"], state["optimizer"], "optimizer")
    except (RuntimeError, KeyError) as error:
        raise CheckpointError(
            f"this state is of another model or optimizer: {error}",
            "resume with the configuration that the run was started with (its config.yaml)",
        ) from error


def bare_model(model: nn.Module) -> nn.Module:
    """`model` without what wraps it as a whole."""
    while True:
        if isinstance(model, DistributedDataParallel):
            model = model.module
        elif isinstance(model, Objective):
            model = model.model
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


@torch.no_grad()
def initialise(optimizer: Optimizer) -> None:
    """Let `optimizer` make the state of those parameters that have none yet, and change nothing else.

    Optimizers make it lazily in their first step, so one step is taken with zero gradients and learning rate
    0 for these parameters. (torch's own helper does so too, but leaves `step` at 1, which shifts Adam's bias
    correction, drops gradients, and leaves out parameters of an optimizer that has state for some.)
    """
    everything = [p for group in optimizer.param_groups for p in group["params"]]
    missing = [p for p in everything if p.requires_grad and not optimizer.state.get(p)]
    if not missing or optimizer in _STATELESS:
        return
    gradients = [p.grad for p in everything]
    rates = [group.get("lr") for group in optimizer.param_groups]
    fresh = {id(p) for p in missing}
    try:
        for parameter in everything:
            parameter.grad = torch.zeros_like(parameter) if id(parameter) in fresh else None
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            if rate is not None:
                group["lr"] = torch.zeros_like(rate) if isinstance(rate, Tensor) else 0.0
        optimizer.step()
    finally:
        for parameter, gradient in zip(everything, gradients, strict=True):
            parameter.grad = gradient
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            if rate is not None:
                group["lr"] = rate
    for parameter in missing:
        values = optimizer.state.get(parameter, {})
        if isinstance(count := values.get("step"), Tensor):
            count.zero_()
        elif count is not None:
            values["step"] = 0
    if not any(optimizer.state.get(p) for p in everything):
        _STATELESS.add(optimizer)


def _several(optimizers: Optimizer | Iterable[Optimizer]) -> Iterable[Optimizer]:
    return [optimizers] if isinstance(optimizers, Optimizer) else optimizers


def _weights(bare: nn.Module) -> dict[str, Any]:
    # In the order of the bare model: the first of two tied names must be the same one everywhere.
    name_of = _names(bare)
    return {name_of(name): value for name, value in bare.state_dict().items()}


def _names(bare: nn.Module) -> Callable[[str], str]:
    """From a name in `bare` to the name in the whole, unwrapped model."""
    canonical: Callable[[str], str] = getattr(bare, "canonical_name", lambda name: name)

    def name_of(name: str) -> str:
        for added in _ADDED:
            name = name.replace(added, "")
        return canonical(name)

    return name_of


def _aliases(weights: Mapping[str, Any]) -> dict[str, str]:
    """Names of `weights` that are the same memory as an earlier one, which is given."""
    first: dict[tuple[object, ...], str] = {}
    found: dict[str, str] = {}
    for name, value in weights.items():
        tensor = value.to_local() if isinstance(value, DTensor) else value
        if not isinstance(tensor, Tensor) or tensor.numel() == 0:
            continue
        key = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device)
        if key in first:
            found[name] = first[key]
        else:
            first[key] = name
    return found


@torch.no_grad()
def _fill(live: dict[str, Any], given: Mapping[str, Any], path: str) -> None:
    if live.keys() != given.keys():
        odd = sorted(map(str, live.keys() ^ given.keys()))
        raise KeyError(f"{path} has other entries: {', '.join(odd[:5])}")
    for key, value in given.items():
        if isinstance(live[key], Tensor):
            if live[key] is not value:
                live[key].copy_(value)
        elif isinstance(live[key], dict):
            _fill(live[key], value, f"{path}.{key}")
        else:
            live[key] = value
