"""Tutti's own training step on a model that is split over the ranks of the process group: what benchmarks time and
weigh. Everything a worker does between two batches, and nothing of what it does between two steps."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import PretrainedConfig

from tutti.config import Config, LayoutConfig, TrainConfig
from tutti.config.agreement import SyncConfig
from tutti.core import Batch
from tutti.models import Blueprint
from tutti.parallel import (
    Arithmetic,
    MappedFiles,
    World,
    apply_language_layout,
    arrange,
    keep_optimizer_state,
)
from tutti.sync import Policy
from tutti.sync.server import ServerAddress
from tutti.tasks import find_manner
from tutti.train.optimizer import build_optimizers
from tutti.train.precision import LossScale
from tutti.train.replicas import make_policy
from tutti.train.served import make_server_policy
from tutti.train.state import RunState
from tutti.train.step import Accumulator


class SplitStep:
    """A step of the model of `architecture`, on as many replicas as the ranks allow. Made by all ranks at once."""

    def __init__(
        self,
        architecture: PretrainedConfig,
        layout: LayoutConfig,
        *,
        micro_batch: int,
        sequence: int,
        samples: int,
        recompute: str = "none",
        offload: str = "none",
        files: MappedFiles | None = None,
        dtype: torch.dtype | None = None,
        bucket_bytes: int = 8_000_000,
        sync: SyncConfig | None = None,
        learning_rate: float = 1e-3,
        optimizer: Literal["adamw", "adafactor", "muon"] = "adamw",
        server: ServerAddress | None = None,
    ) -> None:
        """`samples`: of a step, over all ranks; `micro_batch`: of them, those that a rank computes at once. `server`:
        where policy `server` has its own."""
        blueprint = Blueprint(architecture, seed=0, end_token=0)
        ranks = dist.get_world_size() if dist.is_initialized() else 1
        rank = dist.get_rank() if dist.is_initialized() else 0
        cpu = torch.device("cpu")
        self.world: World = arrange(layout, cpu, rank // layout.ranks, ranks // layout.ranks)
        self.split = apply_language_layout(
            blueprint,
            find_manner(blueprint.twin()),
            self.world,
            Arithmetic(dtype=dtype, recompute=recompute, offload=offload, files=files),
            micro_batch=micro_batch,
            sequence=sequence,
        )
        config = Config(
            train=TrainConfig(batch=samples, optimizer=optimizer),
            replicas=self.world.replicas,
            layout=layout,
            sync=(sync or SyncConfig()).model_copy(update={"bucket_mb": bucket_bytes / 1e6}),
        )
        self._optimizers = build_optimizers(self.split.objective.model, config.train, learning_rate)
        if server is None:
            self.policy: Policy = make_policy(
                config, self.world, RunState(), None, 0, give=lambda: None, take=lambda _: None, say=print
            )
        else:
            self.policy = make_server_policy(
                config, self.world, RunState(), self.split, self._optimizers,
                address=server, incarnation=0, nominal_targets=samples * sequence,
            )  # fmt: skip
        self._accumulator = Accumulator(
            self.split,
            self.policy,
            nominal_targets=samples * sequence,
            clip=1.0,
            context=nullcontext() if dtype is None or layout.data > 1 else torch.autocast("cpu", dtype),
            loss_scale=LossScale("fp32"),
            seed=0,
        )
        if offload in ("optimizer", "all"):
            assert files is not None
            keep_optimizer_state(self._optimizers.optimizers, files)

    def __call__(self, batches: Sequence[Batch]) -> float:
        """One step on this rank's micro-batches; the loss of all."""
        gradient = self._accumulator.run(batches, tokens=0, key=0, stop=False)
        if gradient.made is None:
            self._optimizers.step()
        self.totals = gradient.totals
        return gradient.loss

    def state(self) -> list[Tensor]:
        """Every tensor that stays from one step to the next."""
        objective = self.split.objective
        found: list[Tensor] = [*objective.parameters(), *objective.buffers()]
        found += [p.grad for p in objective.parameters() if p.grad is not None]
        for optimizer in self._optimizers.optimizers:
            found += [
                v for state in optimizer.state.values() for v in state.values() if isinstance(v, Tensor)
            ]
        return found
