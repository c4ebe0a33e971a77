"""From positions of the global order to micro-batches on the device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from tutti.core.types import Batch, SampleSource
from tutti.data.evened import evened
from tutti.data.order import GlobalOrder
from tutti.data.rotation import Rotation
from tutti.sync import Range


@dataclass(frozen=True)
class Portion:
    """What one rank computes in one step: `ids` as [epoch, [sample numbers]] pairs, in order."""

    micro_batches: list[Batch]
    ids: list[tuple[int, list[int]]]


class Feed:
    """Loads the samples that a rank was given. Ranks never own data: anybody can load anything.

    `rotation`: the order of this group, where several take the same samples one after another. `batch`: samples of a
    step, among which those of a source that knows `sizes` are put in an order in which halves are alike.
    """

    def __init__(
        self,
        source: SampleSource,
        seed: int,
        device: torch.device,
        rotation: Rotation | None = None,
        *,
        batch: int | None = None,
    ) -> None:
        self._source = source
        self._order = GlobalOrder(seed, source.samples_in_epoch)
        self._device = device
        self._rotation = rotation
        self._sizes = getattr(source, "sizes", None) if rotation is None else None
        self._same = getattr(source, "same_every_epoch", False)
        self._batch = batch
        self._step: tuple[int, list[tuple[int, np.ndarray]]] = (-1, [])

    def load(self, ranges: Sequence[Range], micro_batch: int, slots: int) -> Portion:
        """The samples at `ranges` in micro-batches of at most `micro_batch`, alike in size, then empty ones up to
        `slots` of them."""
        ids = self._locate(ranges)
        batches = [
            self._to_device(self._source.load(epoch, some))
            for epoch, indices in self._together(ids)
            for some in np.array_split(indices, -(-len(indices) // micro_batch))
        ]
        batches += [self._to_device(self._source.empty()) for _ in range(slots - len(batches))]
        return Portion(batches, [(epoch, indices.tolist()) for epoch, indices in ids])

    def count(self, ranges: Sequence[Range], micro_batch: int) -> int:
        """How many micro-batches `load` makes of `ranges`; an epoch's end in them may cost one more."""
        return sum(-(-len(indices) // micro_batch) for _, indices in self._together(self._locate(ranges)))

    def _together(self, ids: list[tuple[int, np.ndarray]]) -> list[tuple[int, np.ndarray]]:
        """`ids` as they may be loaded: where a sample is the same in every epoch, those of several in one."""
        if not self._same or len(ids) < 2:
            return ids
        return [(ids[0][0], np.concatenate([indices for _, indices in ids]))]

    def _locate(self, ranges: Sequence[Range]) -> list[tuple[int, np.ndarray]]:
        """The samples at `ranges`; neighbours of the same epoch as one, for fewer, fuller micro-batches."""
        joined: list[tuple[int, np.ndarray]] = []
        for start, stop in ranges if self._rotation is None else self._rotation.pieces(ranges):
            for epoch, indices in self._pieces(start, stop):
                if joined and joined[-1][0] == epoch:
                    joined[-1] = (epoch, np.concatenate([joined[-1][1], indices]))
                else:
                    joined.append((epoch, indices))
        return joined

    def _pieces(self, start: int, stop: int) -> Iterator[tuple[int, np.ndarray]]:
        """Epoch and samples at the positions [start, stop), in order."""
        if self._batch is None or self._sizes is None:
            yield from self._order.locate(start, stop)
            return
        for step in range(start // self._batch, -(-stop // self._batch)):
            first = step * self._batch
            for epoch, indices in self._evened(step):
                own = indices[max(0, start - first) : max(0, stop - first)]
                if len(own):
                    yield epoch, own
                first += len(indices)

    def _evened(self, step: int) -> list[tuple[int, np.ndarray]]:
        """All samples of a step, counted from 0."""
        assert self._batch is not None and self._sizes is not None
        if self._step[0] != step:
            found = self._order.locate(step * self._batch, (step + 1) * self._batch)
            pieces = [(epoch, indices, self._sizes(indices)) for epoch, indices in found]
            self._step = (
                step,
                [(e, some if sizes is None else some[evened(sizes)]) for e, some, sizes in pieces],
            )
        return self._step[1]

    def _to_device(self, batch: Batch) -> Batch:
        return {name: tensor.to(self._device, non_blocking=True) for name, tensor in batch.items()}
