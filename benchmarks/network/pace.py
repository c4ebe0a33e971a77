"""Compute at a stated pace: there are more replicas than cores, so a step takes as long as is decreed.

The pace is spread over the layers, as real computing is, because policies send what a layer's backward pass has found
while the next layer's goes on: of the seconds of a step forward takes a third and backward two thirds, each in equal
slots for every block of the model and its head. Nothing of a layer's gradient is known before its slot has ended.
"""

from __future__ import annotations

import time
from typing import Any

from torch import Tensor, nn


class Pace:
    """Holds up forward and backward of a Hugging Face model between `begin` and `end`."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._began: float | None = None

    def slow_down(self, model: nn.Module) -> None:
        """Take charge of `model`."""
        blocks = next(module for name, module in model.named_modules() if name.endswith("layers"))
        assert isinstance(blocks, nn.ModuleList)
        slots = len(blocks) + 1
        for place, block in enumerate(blocks):
            forward = (place + 1) / slots / 3
            backward = 1 / 3 + 2 / 3 * (slots - place) / slots
            block.register_forward_hook(self._hook(forward, backward))

    def begin(self) -> None:
        """A step's forward begins."""
        self._began = time.perf_counter()

    def end(self) -> None:
        """Its backward has ended, and with it the time that it takes."""
        self._wait(1)
        self._began = None

    def _hook(self, forward: float, backward: float) -> Any:
        def computed(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if self._began is None:
                return
            hidden: Tensor = output[0] if isinstance(output, tuple) else output
            self._wait(forward)
            hidden.register_hook(lambda _: self._wait(backward))  # type: ignore[no-untyped-call]

        return computed

    def _wait(self, share: float) -> None:
        if self._began is not None:
            wait_until(self._began + share * self.seconds)


def wait_until(moment: float) -> None:
    """Sleep until `time.perf_counter()` shows `moment`."""
    time.sleep(max(0.0, moment - time.perf_counter()))
