"""Exchange `predictions`: groups tell each other what they predicted of the samples that they computed anyway.

Groups take samples in rotated order (`data.rotation`), so most samples that come up have been computed by somebody
else not long ago. Nothing is computed twice; what is sent is k ids and probabilities for each target.

Shapes: B samples, S tokens, k likeliest tokens, V vocabulary, n targets of a chunk, M groups that teach.
"""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tutti.config.agreement import CooperateConfig
from tutti.core import Batch
from tutti.sync.board import Message
from tutti.sync.postbox import Postbox
from tutti.tasks import Added, Addend
from tutti.tasks.distillation import likeliest, mean_over_teachers, soften, sparse_divergence
from tutti.train.cooperate.exchange import Exchange, targets_of
from tutti.train.cooperate.letters import keys_of, read_letter, write_letter

KIND = "predictions"


class _Known(NamedTuple):
    """What a group predicted of a sample (ids and chances [S, k]), and the step in which that arrived."""

    ids: NDArray[np.integer]
    chances: NDArray[np.float16]
    arrived: int


class _Made(NamedTuple):
    """What this rank predicted of a micro-batch: keys, and ids and chances [B, S, k]; `rows` of it have targets."""

    keys: list[int]
    rows: Tensor
    ids: Tensor
    chances: Tensor


class PredictionsOfOthers(Exchange):
    """Keeps what others predicted until it is too old; notes what this rank predicts, and puts it up every step."""

    def __init__(
        self,
        settings: CooperateConfig,
        postbox: Postbox,
        device: torch.device,
        *,
        groups: int,
        vocabulary: int,
        speaks: bool,
    ) -> None:
        """`speaks`: of ranks that compute the same samples, the one that tells the others."""
        super().__init__(settings, postbox, device)
        self._device = device
        self._vocabulary = vocabulary
        self._top = min(settings.top, vocabulary)
        self._block = groups * settings.every
        self._speaks = speaks
        self._known: dict[int, dict[int, _Known]] = {}
        self._arrivals: deque[tuple[int, int, list[int]]] = deque()  # step, group, keys
        self._made: list[_Made] = []

    # Others ----------------------------------------------------------------------------------------------------

    def _take(self, message: Message) -> None:
        if message.kind != KIND:
            return
        letter = read_letter(message.payload, self._vocabulary)
        if letter.ids.shape[2] != self._top:
            raise ValueError("this letter tells of another number of tokens")
        known = self._known.setdefault(message.group, {})
        for key, ids, chances in letter.rows():
            known[key] = _Known(ids, chances, self.step)
        self._arrivals.append((self.step, message.group, letter.keys.tolist()))

    def forget(self) -> None:
        while self._arrivals and self.step - self._arrivals[0][0] > self.max_age:
            _, group, keys = self._arrivals.popleft()
            known = self._known[group]
            for key in keys:
                if key in known and self.step - known[key].arrived > self.max_age:
                    del known[key]

    def _addend(self, batch: Batch) -> Addend | None:
        says = self._speaks and self.step > self.settings.burn_in - self._block
        if not (says or self._learns):
            return None
        targets = targets_of(batch)
        if not targets.any():
            return None
        keys, shape = keys_of(batch), batch["input_ids"].shape
        lessons = self._lessons(keys, targets, shape[1]) if self._learns else []
        note = self._note(keys, shape, targets) if says else None
        temperature, weight = self.settings.temperature, self.settings.weight

        def addend(places: Tensor, logits: Tensor) -> Added | None:
            ours = soften(logits, temperature)
            if note is not None:
                ids, chances = likeliest(ours, self._top)
                note[0][places] = ids
                note[1][places] = chances.half()
            if not lessons:
                return None
            found = [sparse_divergence(ours, ids[places], chances[places]) for ids, chances, _ in lessons]
            present = torch.stack([there[places] for _, _, there in lessons])
            return mean_over_teachers(found, present, weight, temperature)

        return addend

    def _lessons(self, keys: list[int], targets: Tensor, tokens: int) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Of each group that knows any of the samples: ids [B·S, k], chances [B·S, k], and where there are some."""
        lessons = []
        ages = torch.full((len(keys),), -1)
        for _, known in sorted(self._known.items()):
            entries = [known.get(key) for key in keys]
            there = [e is not None and e.ids.shape[0] == tokens for e in entries]
            if not any(there):
                continue
            ids = np.tile(np.arange(self._top), (len(keys), tokens, 1))
            chances = np.zeros(ids.shape, dtype=np.float16)
            for row, entry in enumerate(entries):
                if entry is not None and there[row]:
                    ids[row], chances[row] = entry.ids, entry.chances
                    ages[row] = max(int(ages[row]), self.step - entry.arrived)
            lessons.append(
                (
                    torch.from_numpy(ids).flatten(0, 1).to(self._device),
                    torch.from_numpy(chances).flatten(0, 1).to(self._device),
                    torch.tensor(there).repeat_interleave(tokens).to(self._device),
                )
            )
        self.count.targets += int(targets.sum())
        self.count.taught += int(targets[ages >= 0].sum())
        self.count.age_steps += int((targets * ages.clamp_min(0)).sum())
        return lessons

    # Own -------------------------------------------------------------------------------------------------------

    def _note(self, keys: list[int], shape: torch.Size, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Where predictions of a micro-batch will be written: ids and chances [B·S, k]."""
        ids = torch.zeros(shape.numel(), self._top, dtype=torch.int64, device=self._device)
        chances = torch.zeros(shape.numel(), self._top, dtype=torch.float16, device=self._device)
        rows = (targets > 0).nonzero().squeeze(1)
        told = [keys[row] for row in rows.tolist()]
        self._made.append(_Made(told, rows, ids.view(*shape, -1), chances.view(*shape, -1)))
        return ids, chances

    def say(self, objective: Any, *, leads: bool) -> None:
        if not self._made:
            return
        keys = [key for made in self._made for key in made.keys]
        ids = torch.cat([made.ids.cpu()[made.rows] for made in self._made])
        chances = torch.cat([made.chances.cpu()[made.rows] for made in self._made])
        self._made.clear()
        self._postbox.post(
            KIND, self.step, self._block, lambda: write_letter(keys, ids, chances, self._vocabulary)
        )
