"""What counts of a run with a parameter server: every push, but those that died with the server."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from tutti.core import EventWriter
from tutti.observe.history import read_history


def test_every_push_counts_but_those_that_were_not_saved(tmp_path: Path) -> None:
    writers = {rank: EventWriter(tmp_path / "events", rank, replica=max(rank, -1)) for rank in (-2, 0, 1)}

    def push(rank: int, step: int, number: int, **more: Any) -> None:
        usual = {"loss": 2.0, "tokens": 10, "seconds": 1.0, "wait_data_seconds": 0.0, "sync_seconds": 0.25}
        writers[rank].write("step", step=step, push=number, **usual | more)

    for rank in (0, 1):
        writers[rank].write("run_started", attempt=0, policy="server", steps=3, peak_flops=1e9)
    writers[-2].write("serving", push=0, step=0, restored=False)
    push(0, 1, 1)
    push(0, 1, 2, loss=1.0)  # fast: two of the three gradients of the first step
    push(1, 1, 3, seconds=1.5)
    push(0, 2, 4, cursor=[[0, 8]])
    push(1, 2, 5)
    time.sleep(0.002)  # events tell 0.1 ms apart
    writers[-2].write("serving", push=3, step=1, restored=True)
    time.sleep(0.002)
    push(1, 2, 4, loss=3.0, cursor=[[0, 8]])
    push(0, 2, 4, loss=4.0, cursor=[[8, 16]])
    push(0, 2, 4, loss=4.0, cursor=[[16, 24]])  # of a step with a share that a dead replica left
    writers[1].write("run_started", attempt=1, policy="server", steps=3, peak_flops=1e9, resumed_from=0)
    writers[1].write("healed", step=2)
    push(1, 2, 5, loss=5.0)
    history = read_history(tmp_path)
    assert [(s.step, s.tokens, s.loss) for s in history.steps] == [(1, 30, 5 / 3), (2, 40, 4.0)]
    assert history.steps[0].seconds == 2.0 and history.steps[0].sync_seconds == 0.5
    assert history.lost_steps == 1 and history.lost_seconds == 1.0
