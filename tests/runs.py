"""Runs that are disturbed on purpose: started in a thread, watched through their events, killed by process id."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

import tutti
from tutti.core import read_events


class SlowNet(nn.Module):
    """A small net that takes `seconds` for each forward pass, so that there is time to kill it in mid-run."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
        self.seconds = seconds

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            time.sleep(self.seconds)
        return self.layers(x).squeeze(-1)


class SlowItems(Dataset[Any]):
    """Pairs that take `seconds` each to make."""

    def __init__(self, seconds: float, width: int, samples: int = 2048) -> None:
        self.inputs = torch.randn(samples, width, generator=torch.Generator().manual_seed(0))
        self.seconds = seconds

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        if self.seconds:
            time.sleep(self.seconds)
        return self.inputs[number], self.inputs[number, :8]


def regression(samples: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(samples, 4, generator=generator)
    return x, x.sum(1) + 0.1 * torch.randn(samples, generator=generator)


class Running:
    """`tutti.fit(…)` in a thread of this process."""

    def __init__(self, run: Path, **arguments: Any) -> None:
        self.run = run
        self.began = time.time()
        self.result: tutti.FitResult | None = None
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._fit, kwargs=arguments, daemon=True)
        self._thread.start()

    def _fit(self, **arguments: Any) -> None:
        try:
            self.result = tutti.fit(name=self.run.name, runs=str(self.run.parent), console=False, **arguments)
        except BaseException as error:
            self.error = error

    def until(
        self, condition: Callable[[dict[str, Any]], bool], what: str, seconds: float = 60
    ) -> dict[str, Any]:
        """The first event of this attempt that meets `condition`."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if (self.run / "events").is_dir():
                for event in read_events(self.run):
                    if event["time"] >= self.began and condition(event):
                        return event
            if self.error is not None:
                raise AssertionError(f"the run failed before {what}") from self.error
            time.sleep(0.02)
        raise AssertionError(f"{what} did not happen within {seconds} s")

    def until_step(self, step: int, rank: int | None = None, seconds: float = 60) -> None:
        self.until(
            lambda e: e["kind"] == "step" and e["step"] >= step and rank in (None, e["rank"]),
            f"step {step}",
            seconds,
        )

    def kill(self, rank: int, number: signal.Signals = signal.SIGKILL) -> int:
        pid = int(json.loads((self.run / "live" / f"rank-{rank}.json").read_text())["pid"])
        os.kill(pid, number)
        return pid

    def stop(self, ranks: int) -> None:
        """Ask all workers to save and stop."""
        for rank in range(ranks):
            self.kill(rank, signal.SIGTERM)

    def end(self, seconds: float = 60) -> dict[str, Any]:
        """The report, once the run has ended."""
        self._thread.join(seconds)
        assert not self._thread.is_alive(), "the run hangs"
        if self.error is not None:
            raise self.error
        assert self.result is not None
        return self.result.report
