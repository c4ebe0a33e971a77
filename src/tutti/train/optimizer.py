"""Which optimizer takes which parameter, and the learning rate when the user leaves it to us.

AdamW or Adafactor takes everything; with `muon`, AdamW takes what Muon is not made for: embeddings, the head, norms,
biases and kernels of convolutions. Weight decay falls on matrices, embeddings and kernels, never on norms and biases.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from tutti.config.training import TrainConfig
from tutti.models import find_blocks
from tutti.models.head_parts import head_parameters
from tutti.train.adafactor import Adafactor
from tutti.train.muon import Muon

#: Calibrated by sweeps (docs/explanation/recipes.md) at 1M parameters and 4096 tokens a step.
_BASE = {"adamw": 4e-3, "muon": 1.5e-2}
_MOST = {"adamw": 1e-2, "muon": 3e-2}
_LEAST = 1e-5
#: Steps of Adafactor are relative to the weights: what AdamW's rate is multiplied by (docs/explanation/recipes.md).
_RELATIVE = 10


class Optimizers:
    """One or two torch optimizers that step as one. `optimizers`: what a checkpoint has to save."""

    def __init__(self, optimizers: list[torch.optim.Optimizer]) -> None:
        self.optimizers = optimizers
        self._peaks = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]

    def step(self) -> None:
        """Update every parameter that has a gradient."""
        for optimizer in self.optimizers:
            optimizer.step()

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)

    def set_learning_rate(self, factor: float) -> None:
        """Let the coming steps use `factor` (see `learning_rate_factor`) times the peak learning rate."""
        for optimizer, peaks in zip(self.optimizers, self._peaks, strict=True):
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = factor * peak


@dataclass(frozen=True)
class Group:
    """Parameters that one kind of optimizer (`adamw`, `adafactor`, `muon`) treats alike, at `scale` times the rate."""

    kind: str
    weight_decay: float
    parameters: list[nn.Parameter]
    scale: float = 1.0


def build_optimizers(model: nn.Module, train: TrainConfig, learning_rate: float) -> Optimizers:
    """Optimizers for the trainable parameters of `model` (sharded already, when it is to be) at their peak
    `learning_rate`. The first of `betas` is Muon's momentum as well.
    """
    return make_optimizers(parameter_groups(model, train), train, learning_rate)


def parameter_groups(model: nn.Module, train: TrainConfig) -> list[Group]:
    """Which optimizer takes which trainable parameter of `model`."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    hidden = hidden_matrices(model) if train.optimizer == "muon" else []
    theirs = {id(parameter) for parameter in hidden}
    groups = [Group("muon", train.weight_decay, hidden)] if hidden else []
    scales = depth_scales(model, train.layer_decay)
    head_rate = 1.0 if train.head_rate == "auto" else train.head_rate
    head = {id(parameter) for parameter in head_parameters(model)} if head_rate != 1 else set()
    # One kernel updates many parameters only if all are placed alike.
    alike: dict[Any, list[nn.Parameter]] = {}
    for parameter in parameters:
        if id(parameter) not in theirs:
            mesh = parameter.device_mesh if isinstance(parameter, DTensor) else None
            scale = scales.get(id(parameter), 1.0)
            if id(parameter) in head:
                scale *= head_rate
            alike.setdefault((parameter.ndim >= 2, mesh, scale), []).append(parameter)
    rest = "adafactor" if train.optimizer == "adafactor" else "adamw"
    for (is_matrix, _, scale), group in alike.items():
        groups.append(Group(rest, train.weight_decay if is_matrix else 0.0, group, scale))
    return groups


def depth_scales(model: nn.Module, decay: float) -> dict[int, float]:
    """Share of the learning rate of each parameter of `model`, by id: of L blocks number i (from 0) takes
    decay^(L − i), what comes before them decay^(L + 1), and everything behind them all of it (Howard and Ruder 2018,
    arXiv 1801.06146)."""
    blocks = find_blocks(model)
    if decay == 1.0 or not blocks:
        return {}
    depth = {id(p): len(blocks) - number for number, block in enumerate(blocks) for p in block.parameters()}
    scales, before = {}, True
    for parameter in model.parameters():
        if id(parameter) in depth:
            before = False
        scales[id(parameter)] = decay ** depth.get(id(parameter), len(blocks) + 1 if before else 0)
    return scales


def make_optimizers(groups: Iterable[Group], train: TrainConfig, learning_rate: float) -> Optimizers:
    """The optimizers of `groups`, at their peak `learning_rate`."""
    optimizers: list[torch.optim.Optimizer] = []
    others: dict[str, list[dict[str, Any]]] = {}
    for group in groups:
        if group.kind == "muon":
            optimizers.append(
                Muon(
                    group.parameters,
                    lr=learning_rate,
                    momentum=train.betas[0],
                    weight_decay=group.weight_decay,
                )
            )
        else:
            others.setdefault(group.kind, []).append(
                {
                    "params": group.parameters,
                    "weight_decay": group.weight_decay,
                    "lr": learning_rate * group.scale,
                }
            )
    for kind, some in others.items():
        make = Adafactor(some, learning_rate) if kind == "adafactor" else _adamw(some, train, learning_rate)
        optimizers.append(make)
    return Optimizers(optimizers)


def hidden_matrices(model: nn.Module) -> list[nn.Parameter]:
    """Matrices that map hidden states to hidden states: all 2-D parameters but embeddings and the head.

    The head is what a Hugging Face model says it is, or what stands on its body; elsewhere, the last `nn.Linear`.
    """
    others = {
        id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding | nn.EmbeddingBag)
    }
    others |= {id(parameter) for parameter in _head(model)}
    return [p for p in model.parameters() if p.requires_grad and p.ndim == 2 and id(p) not in others]


def _head(model: nn.Module) -> Iterable[nn.Parameter]:
    theirs: list[Any] = [module for module in model.modules() if isinstance(module, PreTrainedModel)]
    heads = [head for one in theirs if isinstance(head := one.get_output_embeddings(), nn.Module)]
    if heads:
        return [parameter for head in heads for parameter in head.parameters()]
    if theirs:
        return head_parameters(theirs[0])
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    return linear[-1].parameters() if linear else ()


def _adamw(groups: list[dict[str, Any]], train: TrainConfig, learning_rate: float) -> torch.optim.AdamW:
    try:
        return torch.optim.AdamW(groups, lr=learning_rate, betas=train.betas, fused=True)
    except RuntimeError:  # this device, or dtype, has no fused kernel
        return torch.optim.AdamW(groups, lr=learning_rate, betas=train.betas)


def auto_learning_rate(parameters: int, tokens_per_step: int, optimizer: str) -> tuple[float, str]:
    """Peak learning rate for a model of so many `parameters` and steps of `tokens_per_step`, and the reason.

    rate = base · (parameters / 1M)^−0.4 · √(tokens_per_step / 4096), within bounds (Adafactor: `relative_rate`).
    """
    kind = "adamw" if optimizer == "adafactor" else optimizer
    rate = _BASE[kind] * (parameters / 1e6) ** -0.4 * math.sqrt(tokens_per_step / 4096)
    rate = float(f"{min(max(rate, _LEAST), _MOST[kind]):.2g}")
    reason = f"{parameters / 1e6:.2g}M parameters and {tokens_per_step} tokens a step, {optimizer}"
    return relative_rate(rate) if optimizer == "adafactor" else rate, reason


def relative_rate(rate: float) -> float:
    """What `rate` of AdamW is for Adafactor, whose steps are relative to the weights."""
    return float(f"{_RELATIVE * rate:.2g}")
