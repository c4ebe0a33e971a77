"""The arithmetic of a step: which dtype matrix products take, and the loss scale that fp16 needs.

Master weights stay fp32 always; autocast makes the low-precision copies. A sharded model gets its dtype from
FSDP instead (room `parallel`), which then also gathers the smaller copies.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

_GROWTH_INTERVAL_STEPS = 2000


def compute_context(precision: str, device: torch.device, *, sharded: bool) -> AbstractContextManager[None]:
    """Around the forward pass of a model in `precision` (`fp32`, `bf16`, `fp16`)."""
    if precision == "fp32" or sharded:
        return nullcontext()
    return torch.autocast(device.type, dtype=DTYPES[precision])


class LossScale:
    """Keeps fp16 gradients in range: halved when one overflows, doubled after 2000 steps without (Micikevicius
    et al. 2018). 1 and constant for other dtypes."""

    def __init__(self, precision: str) -> None:
        self._dynamic = precision == "fp16"
        self.value = 2.0**16 if self._dynamic else 1.0
        self._good_steps = 0

    def state(self) -> tuple[float, int]:
        """What `load_state` goes on from."""
        return self.value, self._good_steps

    def load_state(self, state: Sequence[float]) -> None:
        """Go on from what `state` gave; of a run whose precision is another now, from nothing."""
        if self._dynamic and state[0] != 1.0:
            self.value, self._good_steps = float(state[0]), int(state[1])

    def accepts(self, gradient_norm: float) -> bool:
        """Whether a step with this norm may be made; adapts the scale. Only fp16 forgives an overflow."""
        if not self._dynamic:
            return True
        if not math.isfinite(gradient_norm) and self.value > 1.0:
            self.value /= 2
            self._good_steps = 0
            return False
        self._good_steps += 1
        if self._good_steps == _GROWTH_INTERVAL_STEPS:
            self.value *= 2
            self._good_steps = 0
        return True
