"""One replica of one of Tutti's arms: the worker that `tutti train` starts, on a host of its own.

Nothing of it is changed but two things: compute may take a stated time (`pace.py`), and bytes are written down after
every step (`counted.py`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.network.counted import Counting
from benchmarks.network.pace import at_pace, wait_until
from tutti.sync import Policy
from tutti.train import server, worker
from tutti.train.loop import Loop
from tutti.train.optimizer import Optimizers
from tutti.train.rank import Assignment
from tutti.train.replicas import Elastic


def main(task: dict[str, Any]) -> None:
    """Train as `fleet.train` says in `task`."""
    count(link=task["link"])
    if task["compute_seconds"]:
        for name in ("make_policy", "make_server_policy"):
            setattr(worker, name, _paced(getattr(worker, name), task["compute_seconds"]))
        pace_optimizer(task["optimizer_seconds"])
    elastic = None
    if (servers := task["servers"]) is not None:
        elastic = Elastic(
            task["replica"],
            f"http://{servers['host']}:{servers['lighthouse']}",
            (servers["host"], servers["store"]),
            bytes.fromhex(task["secret"]),
            host=task["host"],
            server=task["parameter_server"],
        )
    worker.main(
        Assignment(
            run=Path(task["run"]),
            prepared=Path(task["prepared"]),
            threads=1,
            resume=True,
            elastic=elastic,
            launcher_pid=task["launcher_pid"],
        )
    )


def serve(task: dict[str, Any]) -> None:
    """Be the parameter server of these replicas."""
    if task["optimizer_seconds"]:
        pace_optimizer(task["optimizer_seconds"])
    server.main(server.ServerAssignment(Path(task["run"]), task["parameter_server"], 1, task["launcher_pid"]))


def _paced(make_policy: Callable[..., Policy], seconds: float) -> Callable[..., Policy]:
    return lambda *positional, **named: at_pace(make_policy(*positional, **named), lambda _: seconds)


def count(*, link: bool) -> None:
    """Have every step of the loop written down."""
    note_step = Loop._note_step
    counting: list[Counting] = []

    def note(self: Loop, step: int, *rest: Any) -> None:
        note_step(self, step, *rest)
        if not counting:
            if self.policy.late:
                self.policy.settle()  # nothing is to be under way while signs of life are counted
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
