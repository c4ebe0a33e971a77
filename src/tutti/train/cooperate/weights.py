"""Exchange `weights`: each group keeps the newest copy of every other group's model and runs it on its own samples.

A copy is frozen, whole on every rank (fp32: 4 bytes a parameter), and costs a forward pass. The model may be of any
size and architecture that has the same vocabulary: its configuration comes with the weights.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from tutti.config.agreement import CooperateConfig
from tutti.core import Batch, ModelError
from tutti.models import Blueprint, fill
from tutti.models.architecture import config_from_json
from tutti.sync.board import Message
from tutti.sync.postbox import Postbox
from tutti.tasks import Added, Addend, CausalLanguageModelling, find_manner
from tutti.tasks.distillation import divergence, mean_over_teachers, soften
from tutti.train.checkpoints import gather_state
from tutti.train.cooperate.exchange import Exchange, targets_of

KIND = "weights"
_CONFIG = "config"


@dataclass
class _Teacher:
    """A group's model, and the own step in which its newest weights arrived."""

    objective: CausalLanguageModelling
    config: str
    arrived: int


class WeightsOfOthers(Exchange):
    """Puts up this group's weights every N steps, and learns from those of the others."""

    def __init__(
        self,
        settings: CooperateConfig,
        postbox: Postbox,
        device: torch.device,
        *,
        vocabulary: int,
        context: Callable[[], AbstractContextManager[None]],
        speaks: bool,
    ) -> None:
        """`context`: around a teacher's forward pass. `speaks`: the rank of a replica that tells the others."""
        super().__init__(settings, postbox, device)
        self._device = device
        self._vocabulary = vocabulary
        self._context = context
        self._speaks = speaks
        self._teachers: dict[int, _Teacher] = {}

    def _take(self, message: Message) -> None:
        if message.kind != KIND:
            return
        config, weights = read_weights(message.payload)
        teacher = self._teachers.get(message.group)
        if teacher is None or teacher.config != config:
            objective = build_teacher(config, self._device)
            if objective.model.config.get_text_config(decoder=True).vocab_size != self._vocabulary:  # type: ignore[union-attr, operator]
                raise ModelError(f"the model of group {message.group} has another vocabulary")
            teacher = self._teachers[message.group] = _Teacher(objective, config, self.step)
        own = gather_state(teacher.objective)["model"]
        if {name: w.shape for name, w in weights.items()} != {name: w.shape for name, w in own.items()}:
            raise ValueError("these weights are not those of the model that they are said to be of")
        teacher.arrived = self.step
        fill(teacher.objective.model, iter(weights.items()))

    def forget(self) -> None:
        old = [g for g, teacher in self._teachers.items() if self.step - teacher.arrived > self.max_age]
        for group in old:
            del self._teachers[group]

    def _addend(self, batch: Batch) -> Addend | None:
        if not self._learns:
            return None
        targets = int(targets_of(batch).sum())
        if not targets:
            return None
        self.count.targets += targets
        if not self._teachers:
            return None
        teachers = [teacher for _, teacher in sorted(self._teachers.items())]
        self.count.taught += targets
        self.count.age_steps += targets * max(self.step - teacher.arrived for teacher in teachers)
        with self._context():
            logits = [teacher.objective.predict(batch) for teacher in teachers]
        temperature, weight = self.settings.temperature, self.settings.weight

        def addend(places: Tensor, of: Tensor) -> Added:
            ours = soften(of, temperature)
            found = [divergence(ours, soften(theirs(places), temperature)) for theirs in logits]
            present = torch.ones(len(found), len(places), dtype=torch.bool, device=of.device)
            return mean_over_teachers(found, present, weight, temperature)

        return addend

    def say(self, objective: Any, *, leads: bool) -> None:
        every = self.settings.every
        if not leads or self.step % every or self.step + every <= self.settings.burn_in:
            return
        named = gather_state(objective)["model"]
        weights = {
            name: _whole(tensor) for name, tensor in named.items()
        }  # pieces are gathered by all their ranks
        if self._speaks:
            config = objective.model.config.to_json_string(use_diff=False)
            self._postbox.post(KIND, self.step, 1, lambda: write_weights(config, weights))


def _whole(tensor: Tensor) -> Tensor:
    """A copy as bf16 on the CPU."""
    whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    dtype = torch.bfloat16 if whole.is_floating_point() else whole.dtype
    return whole.detach().to("cpu", dtype, copy=True)


def write_weights(config: str, weights: dict[str, Tensor]) -> bytes:
    """Weights and the configuration (JSON) of their model as safetensors."""
    return safetensors.torch.save({name: w.contiguous() for name, w in weights.items()}, {_CONFIG: config})


def read_weights(payload: bytes) -> tuple[str, dict[str, Tensor]]:
    """What `write_weights` wrote.

    Raises:
        ValueError: it is torn, or not finite.
    """
    try:
        header = int.from_bytes(payload[:8], "little")
        config = str(json.loads(payload[8 : 8 + header])["__metadata__"][_CONFIG])
        weights = safetensors.torch.load(payload)
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"these are no weights: {error}") from error
    if not all(bool(w.isfinite().all()) for w in weights.values()):
        raise ValueError("these weights are not finite")
    return config, weights


def build_teacher(config: str, device: torch.device) -> CausalLanguageModelling:
    """A frozen model as `config` describes it, its weights still to be filled in.

    Raises:
        ModelError: there is no such model.
    """
    blueprint = Blueprint(config_from_json(config), seed=0, end_token=0)
    manner = find_manner(blueprint.twin())
    objective = CausalLanguageModelling(blueprint.build(), manner).to(device).eval()
    return objective.requires_grad_(False)
