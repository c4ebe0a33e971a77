"""One replica of one of Tutti's arms: the worker that `tutti train` starts, on a host of its own.

Nothing of it is changed but two things: compute may take a stated time (`pace.py`), and bytes are written down after
every step (`counted.py`).
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from benchmarks.network.counted import Counting
from benchmarks.network.pace import at_pace, wait_until
from tutti.train import worker
from tutti.train.loop import Loop
from tutti.train.optimizer import Optimizers
from tutti.train.replicas import Elastic


def main(task: dict[str, Any]) -> None:
    """Train as `fleet.train` says in `task`."""
    count(link=task["link"])
    if task["compute_seconds"]:
        make_policy = worker.make_policy
        worker.make_policy = lambda *a, **k: at_pace(make_policy(*a, **k), lambda _: task["compute_seconds"])  # type: ignore[attr-defined]
        pace_optimizer(task["optimizer_seconds"])
    elastic = None
    if (servers := task["servers"]) is not None:
        elastic = Elastic(
            task["replica"],
            f"http://{servers['host']}:{servers['lighthouse']}",
            (servers["host"], servers["store"]),
            bytes.fromhex(task["secret"]),
            host=task["host"],
        )
    worker.main(
        worker.Assignment(
            run=Path(task["run"]),
            prepared=Path(task["prepared"]),
            threads=1,
            resume=True,
            elastic=elastic,
            launcher_pid=task["launcher_pid"],
        )
    )


def count(*, link: bool) -> None:
    """Have every step of the loop written down."""
    note_step = Loop._note_step
    counting: list[Counting] = []

    def note(self: Loop, step: int, *rest: Any) -> None:
        note_step(self, step, *rest)
        if not counting:
            counting.append(Counting(self.events, link=link))
        counting[0].step(step, self.policy.sent_bytes())

    Loop._note_step = note  # type: ignore[method-assign]


def pace_optimizer(seconds: float) -> None:
    """Let every step of the optimizer take `seconds`."""
    step = Optimizers.step

    def paced(self: Optimizers) -> None:
        began = time.perf_counter()
        step(self)
        wait_until(began + seconds)

    Optimizers.step = paced  # type: ignore[method-assign]
