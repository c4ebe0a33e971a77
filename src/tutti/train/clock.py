"""Moments of a device, which gets later to what it was asked for than it was asked."""

from __future__ import annotations

import time

import torch

#: A moment: of this process's clock, or of an accelerator's.
Mark = float | torch.Event


class Clock:
    """Marks moments at which `device` gets to what was asked of it, which an accelerator does later."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def mark(self) -> Mark:
        """Now."""
        if self._device.type == "cpu":
            return time.perf_counter()
        event = torch.Event(self._device, enable_timing=True)
        event.record()
        return event

    def seconds(self, start: Mark, end: Mark) -> float:
        """From `start` to `end`; waits for the latter."""
        if isinstance(start, torch.Event) and isinstance(end, torch.Event):
            end.synchronize()
            return float(start.elapsed_time(end)) / 1000
        assert isinstance(start, float) and isinstance(end, float)
        return end - start
