"""One dial: about so many parameters; depth, width, heads and the rest follow.

The architecture is Llama's (RMSNorm, rotary positions, SwiGLU, no biases): every tool opens it. What the
dial chooses:

- *width and depth* together, so that width ÷ depth is near a curve between the shapes that are used:
  32 at a million parameters (nanoGPT's 128 × 4) to 128 at billions (Llama's 4096 × 32).
- *heads* of 64 (32 in a model narrower than 256, 128 from 2048 on, where four query heads share a key).
- *feed-forward* 8/3 of the width, as SwiGLU has three matrices where others have two.
- *embedding* and head tied where a second table would take more than a tenth of the parameters.

Shapes: D model width, F feed-forward width, L layers, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tutti.core import ModelError

_UNITS = {"K": 10**3, "M": 10**6, "B": 10**9}
_TOLERANCE = 0.15


@dataclass(frozen=True)
class Preset:
    """A shape: `width` D, `layers` L, `heads`, `key_heads`, `feed_forward` F, `tied` head, `vocabulary` V."""

    width: int
    layers: int
    heads: int
    key_heads: int
    feed_forward: int
    tied: bool
    vocabulary: int

    @property
    def embedding(self) -> int:
        """Parameters of the embedding and, unless tied, the head."""
        return self.vocabulary * self.width * (1 if self.tied else 2)

    @property
    def parameters(self) -> int:
        """All parameters."""
        key_width = self.width // self.heads * self.key_heads
        attention = 2 * self.width * (self.width + key_width)
        block = attention + 3 * self.width * self.feed_forward + 2 * self.width
        return self.embedding + self.layers * block + self.width

    def settings(self, sequence: int) -> dict[str, Any]:
        """Arguments of transformers' `LlamaConfig`, but for the vocabulary's."""
        return {
            "hidden_size": self.width,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.key_heads,
            "intermediate_size": self.feed_forward,
            "tie_word_embeddings": self.tied,
            "max_position_embeddings": sequence,
        }

    def sentence(self, dial: str) -> str:
        """What was chosen and why."""
        share = 100 * self.embedding / self.parameters
        shared = "" if self.key_heads == self.heads else f" ({self.key_heads} for keys)"
        return (
            f"model.size = {dial}: a Llama of {readable(self.parameters)} parameters: {self.layers} layers, width "
            f"{self.width}, {self.heads} heads{shared}, feed-forward {self.feed_forward}; the vocabulary of "
            f"{self.vocabulary} takes {share:.0f} % "
            f"({'head tied to the embedding' if self.tied else 'head of its own'})"
        )


def parse_size(dial: str) -> int:
    """`800K`, `15M`, `1.5B` as a number of parameters."""
    return round(float(dial[:-1]) * _UNITS[dial[-1]])


def readable(parameters: int) -> str:
    """A number of parameters as `12.3M`."""
    for unit, size in reversed(_UNITS.items()):
        if parameters >= size:
            number = parameters / size
            return f"{round(number, 2 if number < 10 else 1 if number < 100 else 0):g}{unit}"
    return str(parameters)


def choose_preset(dial: str, vocabulary: int) -> Preset:
    """The shape for `dial` (e.g. `15M`), within 15 % of it.

    Raises:
        ModelError: no model so small has this vocabulary; names the smallest dial that would do.
    """
    size = max(1, parse_size(dial))
    shapes = list(_shapes(vocabulary, size))
    fitting = [shape for shape in shapes if abs(shape.parameters - size) <= _TOLERANCE * size]
    if fitting:
        return min(fitting, key=lambda shape: _distance(shape, size))
    nearest = readable(min(shapes, key=lambda shape: abs(math.log(shape.parameters / size))).parameters)
    raise ModelError(
        f"there is no model of about {dial} parameters with a vocabulary of {vocabulary} (the embedding alone, at "
        f"the smallest width of 32, has {readable(32 * vocabulary)})",
        f"take model.size: {nearest}, which is the nearest possible, or another data.vocabulary",
    )


def _distance(shape: Preset, size: int) -> float:
    """How far a shape is from the dial and from a good proportion."""
    proportion = shape.width / shape.layers / _aspect(size)
    return abs(math.log(shape.parameters / size)) + 0.5 * abs(math.log(proportion))


def _aspect(size: int) -> float:
    """Width ÷ depth to aim at: 32 at 1M parameters, 64 at 30M, 128 at 1B."""
    return float(min(128.0, max(24.0, 32.0 * (size / 1e6) ** 0.2)))


def _shapes(vocabulary: int, size: int) -> Iterator[Preset]:
    # Coarser where models are wider: kernels like round numbers, and heads should divide among devices.
    widths = [*range(32, 256, 32), *range(256, 512, 64), *range(512, 1024, 128), *range(1024, 2048, 256)]
    for width in [*widths, *range(2048, 16385, 512)]:
        tied = vocabulary * width > size / 10
        one, two = (_shape(width, layers, vocabulary, tied).parameters for layers in (1, 2))
        # Parameters grow in a straight line with depth: only the depths around the dial matter.
        exact = min(max(1.0, (size - one) / (two - one) + 1), 256.0)
        for layers in {math.floor(exact), math.ceil(exact)}:
            yield _shape(width, layers, vocabulary, tied)


def _shape(width: int, layers: int, vocabulary: int, tied: bool) -> Preset:
    heads = width // (32 if width < 256 else 64 if width < 2048 else 128)
    step = 32 if width < 256 else 64
    feed_forward = max(step, round(width * 8 / 3 / step) * step)
    return Preset(
        width, layers, heads, heads // 4 if width >= 2048 else heads, feed_forward, tied, vocabulary
    )
