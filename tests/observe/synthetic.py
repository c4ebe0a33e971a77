"""Runs that never ran: their events have chosen clocks, so that every figure is known beforehand."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

START = 1_700_000_000.0


class Recorder:
    """Writes events of several ranks at chosen times, in the format of `core.EventWriter`."""

    def __init__(
        self,
        run: Path,
        config: str = "name: demo\ndata:\n  source: python-stdlib\nevaluate:\n  prompts: ['def read_csv(']\n",
    ) -> None:
        self.run = run
        for directory in ("events", "logs", "live", "checkpoints"):
            (run / directory).mkdir(parents=True, exist_ok=True)
        (run / "config.yaml").write_text(config)

    def at(self, seconds: float, kind: str, rank: int = 0, /, **fields: Any) -> None:
        event = {"time": START + seconds, "kind": kind, "rank": rank, "replica": max(0, rank)} | fields
        with (self.run / f"events/rank-{rank}.jsonl").open("a") as file:
            file.write(json.dumps(event) + "\n")

    def tear(self, rank: int = 0) -> None:
        """A SIGKILL in the middle of a line; the next process ends the line before it writes."""
        with (self.run / f"events/rank-{rank}.jsonl").open("a") as file:
            file.write('{"time": 1700000001.0, "kind": "step", "ste\n')

    def started(self, seconds: float, /, **fields: Any) -> None:
        facts = {
            "attempt": 0,
            "world_size": 2,
            "replicas": 2,
            "layout": {"shard": 1},
            "steps": 100,
            "policy": "allreduce",
            "transport": "gloo",
            "precision": "fp32",
            "peak_flops": 100e9,
            "flops_per_token": 30e6,
            "parameters": 5_000_000,
            "tokens_per_step": 1000,
            "resumed_from": None,
            "choices": ["train.learning_rate = 0.001: 5M parameters, 1,000 tokens a step"],
        }
        self.at(seconds, "run_started", **(facts | fields))

    def steps(
        self, begin: float, numbers: Iterable[int], *, seconds: float = 1.0, sent: int = 1000, **fields: Any
    ) -> float:
        """One step a second on two ranks; loss of step n is 5/√n; each rank sends `sent` bytes a step."""
        now = begin
        for index, step in enumerate(numbers, 1):
            now += seconds
            common = {"step": step, "samples": [[0, [1, 2, 3]]], "cursor": [0, 1], "targets": 500}
            leader = {
                "loss": 5 / math.sqrt(step),
                "learning_rate": 0.001,
                "gradient_norm": 1.0,
                "tokens": 1000,
                "seconds": seconds,
                "wait_data_seconds": 0.1 * seconds,
                "sync_seconds": 0.2 * seconds,
                "bytes_sent": sent * index,
            }
            self.at(now, "step", 0, **(common | leader | fields))
            self.at(now, "step", 1, **(common | {"bytes_sent": sent * index} | fields))
        return now


def lively_run(path: Path) -> Path:
    """A long noisy run with a SIGKILL, a stall and samples: what a page and a picture should show."""
    noise = random.Random(0)
    r = Recorder(path)
    for i, what in enumerate(("write 180 MB", "one evaluation batch", "one save and load", "one export")):
        r.at(0.5 + i * 0.1, "rehearsal", what=what, seconds=0.1)
    choices = [
        "train.precision = fp32: nothing smaller is 1.3× as fast (fp32 240 GFLOP/s, bf16 51.3 GFLOP/s)",
        "train.learning_rate = 0.0021: 5M parameters and 8,192 tokens a step (square-root scaling)",
        "replicas = 2: one for each usable core",
    ]
    r.started(1.0, steps=1000, choices=choices, flops_per_token=5e6, tokens_per_step=8192, peak_flops=240e9)
    now = 1.0

    def step(number: int, attempt: int) -> None:
        nonlocal now
        now += 0.4
        loss = 1.6 + 7 * math.exp(-number / 30) + 1.8 * math.exp(-number / 300) + noise.gauss(0, 0.09)
        if number == 430:
            loss = 9.7
        r.at(
            *(now, "step", 0),
            step=number,
            loss=loss,
            tokens=8192,
            seconds=0.35,
            targets=4096,
            wait_data_seconds=0.002,
            sync_seconds=0.05,
            bytes_sent=20_000_000 * number,
        )
        if number % 100 == 0:
            fields = {
                "loss": loss + 0.15,
                "bits_per_byte": (loss + 0.15) / 2.4,
                "targets": 65536,
                "seconds": 1.3,
            }
            now += 1.3
            r.at(now, "validation", 0, step=number, **fields)
            fields = {"bytes": 180_000_000, "blocked_seconds": 0.03, "write_seconds": 0.9, "best": True}
            r.at(now + 0.5, "checkpoint", 0, step=number, path=f"checkpoints/step-{number}", **fields)

    for number in range(1, 640):
        step(number, 0)
    r.at(now + 2, "restart", -1, attempt=1, reason="rank 1 was ended by SIGKILL")
    now += 12
    r.started(
        now,
        attempt=1,
        steps=1000,
        resumed_from=600,
        tokens_per_step=8192,
        choices=choices,
        flops_per_token=5e6,
        peak_flops=240e9,
    )
    r.at(now, "resumed", step=600, path="checkpoints/step-600")
    for number in range(601, 1001):
        step(number, 1)
        if number == 800:
            stack = ["tutti/train/loop.py:120 run: batch = next(feed)"]
            r.at(
                *(now, "stalled", -1),
                last_step=800,
                phase="data",
                silent_seconds=31.0,
                stack=stack,
                message="rank 1 has given no sign of life for 31.0 s (last step 800, phase data)",
            )
            r.at(now + 4, "recovered", -1, message="rank 1 goes on after 35.0 s")
    r.at(
        now,
        "sample_text",
        step=1000,
        prompt="def read_csv(",
        text='path, sep=","):\n    """Read a table."""\n',
    )
    r.at(now, "sample_text", step=1000, prompt="import ", text="os\nimport sys\n```\n")
    for rank in (0, 1):
        r.at(now + 1, "memory", rank, peak_memory_bytes=700_000_000 + rank)
    r.at(now + 1, "finished", step=1000, state="finished")
    return path
