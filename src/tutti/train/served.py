"""A replica whose optimizer is at a server: what it tells the server of it, and what the server makes of that."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tutti.config import Config
from tutti.config.training import TrainConfig
from tutti.parallel import Split, World
from tutti.sync import Place, StaticTransport
from tutti.sync.codecs import PowerSGD, make_codec
from tutti.sync.policy import local_part, named_trainable
from tutti.sync.server import Link, ParameterServer, ServerAddress
from tutti.sync.server.centre import BETWEEN
from tutti.train.checkpoints.state import initialise
from tutti.train.optimizer import Group, Optimizers, make_optimizers, parameter_groups
from tutti.train.state import RunState


class KeptOptimizer:
    """A replica's own optimizers, which never step: their state is there only while it is saved or handed over."""

    def __init__(self, objective: nn.Module, optimizers: Optimizers, train: TrainConfig) -> None:
        self._optimizers = optimizers.optimizers
        self._names = {id(parameter): name for name, parameter in named_trainable(objective)}
        model = objective.model
        assert isinstance(model, nn.Module)
        self._groups = [
            {
                "kind": group.kind,
                "weight_decay": group.weight_decay,
                "scale": group.scale,
                "names": [self._names[id(parameter)] for parameter in group.parameters],
            }
            for group in parameter_groups(model, train)
        ]

    def groups(self) -> list[dict[str, Any]]:
        """By name: see `Group`."""
        return self._groups

    def state(self) -> dict[str, Tensor]:
        """Live local tensors by `parameter/value`, made if they are not there."""
        return _tensors_of(self._optimizers, self._names)

    def forget(self) -> None:
        """The server has it."""
        for optimizer in self._optimizers:
            optimizer.state.clear()


class ServerOptimizer:
    """The same optimizers on the server's tensors."""

    def __init__(self, optimizers: Optimizers, parameters: Mapping[str, nn.Parameter]) -> None:
        self._optimizers = optimizers
        self._names = {id(parameter): name for name, parameter in parameters.items()}

    def step(self, factor: float) -> None:
        """With `factor` times the peak learning rate."""
        self._optimizers.set_learning_rate(factor)
        self._optimizers.step()

    def state(self) -> dict[str, Tensor]:
        """Live tensors by `parameter/value`."""
        return _tensors_of(self._optimizers.optimizers, self._names)


def server_optimizer(
    train: TrainConfig, learning_rate: float
) -> Callable[[list[dict[str, Any]], Mapping[str, nn.Parameter]], ServerOptimizer]:
    """What makes the server's optimizer of the groups that replicas tell."""

    def make(groups: list[dict[str, Any]], parameters: Mapping[str, nn.Parameter]) -> ServerOptimizer:
        found = [
            Group(
                group["kind"],
                group["weight_decay"],
                [parameters[name] for name in group["names"]],
                group["scale"],
            )
            for group in groups
        ]
        return ServerOptimizer(make_optimizers(found, train, learning_rate), parameters)

    return make


def make_server_policy(
    config: Config,
    world: World,
    state: RunState,
    split: Split,
    optimizers: Optimizers,
    *,
    address: ServerAddress,
    incarnation: int,
    gives: bool = True,
    nominal_targets: int,
) -> ParameterServer:
    """The policy `server` for this rank. `incarnation`: how often its replica was started before;
    `gives`: the run may begin with what it has; `nominal_targets`: what the accumulator divides losses by."""
    sync = config.sync
    codec = make_codec(sync)
    assert not isinstance(codec, PowerSGD), "refused before a worker starts"
    policy = ParameterServer(
        Place(world.replica, world.replicas, world.part, world.parts),
        state.ledger,
        int(config.train.batch),
        link=Link(address, world.replica, incarnation, world.part),
        kept=KeptOptimizer(split.objective, optimizers, config.train),
        inside=StaticTransport(world.inside),
        codec=codec,
        feedback_decay=sync.feedback_decay,
        squeeze=sync.then == "zstd",
        returned=incarnation > 0,
        gives=gives,
    )
    policy.attach(split.objective)
    # FSDP averages over its ranks, and the accumulator divides by a constant; the server wants sums.
    shares = [split.share_in_norm(parameter) for _, parameter in named_trainable(split.objective)]
    policy.describe(shares, scale=float(nominal_targets * world.layout.data))
    return policy


def _tensors_of(optimizers: list[torch.optim.Optimizer], names: Mapping[int, str]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for optimizer in optimizers:
        initialise(optimizer)
        for parameter, values in optimizer.state.items():
            for key, value in values.items():
                found[f"{names[id(parameter)]}{BETWEEN}{key}"] = local_part(value)
    return found
