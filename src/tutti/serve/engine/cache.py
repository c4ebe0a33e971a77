"""Keys and values of many texts, each in a slot; and what a pass through the model does with which of them.

Shapes: T tokens of a turn, R slots, H heads of queries, K of keys, C tokens of a slot, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tutti.serve.engine.attention import read, write


@dataclass(frozen=True)
class Part:
    """Of one turn: `count` tokens of the text in `slot`, from position `start` on."""

    slot: int
    start: int
    count: int


@dataclass
class Turn:
    """One pass through the model: first the texts that write, by slot, a token each; then pieces that are read."""

    writing: list[Part]
    reading: list[Part]

    def __post_init__(self) -> None:
        self.slots = torch.tensor([part.slot for part in self.writing], dtype=torch.long)
        self.places = torch.tensor([part.start for part in self.writing], dtype=torch.long)

    @property
    def positions(self) -> Tensor:
        """[T]."""
        parts = [torch.arange(part.start, part.start + part.count) for part in self.reading]
        return torch.cat([self.places, *parts])


class KeyValueSlots:
    """Keys and values of every layer, [R, K, C, D]. `dtype`: None: as the model computes them."""

    def __init__(self, slots: int, capacity: int, dtype: torch.dtype | None = None) -> None:
        self.slots, self.capacity, self.dtype = slots, capacity, dtype
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    def attend(
        self, layer: int, turn: Turn, query: Tensor, key: Tensor, value: Tensor, scale: float
    ) -> Tensor:
        """query [T, H, D], key, value [T, K, D] of a turn → [T, H, D]; keys and values stay in their slots."""
        keys, values = self._of(layer, key, value)
        outputs, count = [], len(turn.writing)
        if count:
            outputs.append(
                write(query[:count], key[:count], value[:count], keys, values, turn.slots, turn.places, scale)
            )
        for part in turn.reading:
            start, stop = count, count + part.count
            end = part.start + part.count
            keys[part.slot, :, part.start : end] = key[start:stop].transpose(0, 1)
            values[part.slot, :, part.start : end] = value[start:stop].transpose(0, 1)
            known_keys, known_values = keys[part.slot, :, :end], values[part.slot, :, :end]
            outputs.append(read(query[start:stop].transpose(0, 1), known_keys, known_values, scale))
            count = stop
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    @torch.inference_mode()
    def copy(self, source: int, to: int, count: int) -> None:
        """The first `count` tokens of one slot become those of another."""
        for both in self._layers.values():
            for tensor in both:
                tensor[to, :, :count] = tensor[source, :, :count]

    def _of(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Of `layer`, made when it is first asked for; `key`, `value` [T, K, D] say of what kind."""
        if layer not in self._layers:
            # Zeros, not just memory: what no text has reached is multiplied by a probability of 0.
            made = [
                part.new_zeros(
                    self.slots, part.shape[1], self.capacity, part.shape[2], dtype=self.dtype or part.dtype
                )
                for part in (key, value)
            ]
            self._layers[layer] = (made[0], made[1])
        return self._layers[layer]
