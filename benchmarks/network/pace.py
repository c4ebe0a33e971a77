"""Compute at a stated pace: there are more replicas than cores, so a step takes as long as is decreed.

The pace is spread over the layers, as real computing is, because policies send what a layer's backward pass has found
while the next layer's goes on: of the seconds of a step forward takes a third and backward two thirds, each in equal
slots for every block of the model and its head. Nothing of a layer's gradient is known before its slot has ended.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from tutti.sync import Policy, Totals
from tutti.sync.ledger import Range


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


def at_pace(policy: Policy, seconds: Callable[[int], float]) -> Policy:
    """`policy`, between whose `zero_gradients` and `before_step` the objective takes `seconds` of the samples that
    this replica has in the step."""
    pace = Pace(0.0)
    attach, samples = policy.attach, policy.samples
    zero_gradients, before_step = policy.zero_gradients, policy.before_step

    def attached(objective: nn.Module) -> nn.Module:
        pace.slow_down(objective)
        return attach(objective)

    def taken(step: int) -> list[Range]:
        ranges = samples(step)
        pace.seconds = seconds(sum(stop - start for start, stop in ranges))
        return ranges

    def begin(objective: nn.Module) -> None:
        zero_gradients(objective)
        pace.begin()

    def end(totals: Totals) -> Totals:
        pace.end()
        return before_step(totals)

    policy.attach, policy.samples = attached, taken  # type: ignore[method-assign]
    policy.zero_gradients, policy.before_step = begin, end  # type: ignore[method-assign]
    return policy


def wait_until(moment: float) -> None:
    """Sleep until `time.perf_counter()` shows `moment`."""
    time.sleep(max(0.0, moment - time.perf_counter()))
