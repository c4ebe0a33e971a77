"""What both exchanges have in common: a term of the loss that hears from other groups and has something to say."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tutti.config.agreement import CooperateConfig
from tutti.core import Batch
from tutti.sync.board import Message
from tutti.sync.postbox import Postbox
from tutti.tasks import IGNORED, Added, Addend, LossTerm


@dataclass
class Count:
    """Of some steps, on this rank: what could have been learnt from others, and what was.

    targets: after the burn-in. taught: those with a prediction of somebody else. age_steps: own steps since it
    arrived, summed over taught targets. unusable: messages that did not fit.
    """

    targets: int = 0
    taught: int = 0
    age_steps: int = 0
    unusable: int = 0


class Exchange(LossTerm, ABC):
    """`hear` and `say` are called between steps by the thread that trains, and never wait.

    `heard`: of every group the newest of its steps that something came from.
    """

    def __init__(self, settings: CooperateConfig, postbox: Postbox, device: torch.device) -> None:
        assert isinstance(settings.max_age, int), "group_configs resolves it"
        self.settings = settings
        self.max_age: int = settings.max_age
        self.step = 0
        self.count = Count()
        self.heard: dict[int, int] = {}
        self._postbox = postbox
        self._divergence = torch.zeros((), dtype=torch.float64, device=device)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def of(self, batch: Batch) -> Addend | None:
        if self.step == 0:  # a rehearsal
            return None
        addend = self._addend(batch)
        return None if addend is None else self._noted(addend)

    def hear(self, message: Message) -> None:
        """Take in what another group put up."""
        try:
            self._take(message)
        except ValueError:  # of another vocabulary, or numbers that are not finite: learn nothing from it
            self.count.unusable += 1
        else:
            self.heard[message.group] = max(message.number, self.heard.get(message.group, 0))

    @abstractmethod
    def forget(self) -> None:
        """Drop what has become too old by the beginning of `step`."""

    @abstractmethod
    def say(self, objective: Any, *, leads: bool) -> None:
        """Put up what the others may learn from `step`, which has just been made. `leads`: this rank's replica speaks
        for the group; all ranks of a replica call this together."""

    @abstractmethod
    def _take(self, message: Message) -> None:
        """As `hear`; raises ValueError when nothing can be learnt from it."""

    @abstractmethod
    def _addend(self, batch: Batch) -> Addend | None:
        """As `of`, in a step."""

    @property
    def _learns(self) -> bool:
        return self.step > self.settings.burn_in

    def collect(self) -> dict[str, Any]:
        """What happened since this was last asked, for the events."""
        count, self.count = self.count, Count()
        divergence = float(self._divergence) / max(count.taught, 1)
        self._divergence.zero_()
        return {
            "targets": count.targets,
            "taught": count.taught,
            "age_steps": count.age_steps / max(count.taught, 1),
            "divergence": divergence,
            "unusable": count.unusable,
            "heard": {str(group): number for group, number in sorted(self.heard.items())},
        }

    def _noted(self, addend: Addend) -> Addend:
        scale = 1 / (self.settings.weight * self.settings.temperature**2)

        def noted(places: Tensor, logits: Tensor) -> Added | None:
            added = addend(places, logits)
            if added is not None:
                self._divergence += added.total.double() * scale
            return added

        return noted


def targets_of(batch: Batch) -> Tensor:
    """Targets in each row of `batch`, [B] on the CPU."""
    return (batch["labels"] != IGNORED).sum(1).cpu()
