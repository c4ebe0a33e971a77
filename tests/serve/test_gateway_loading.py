"""A worker that hangs while it loads: told from one that is only slow, replaced, and given up after some tries."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from tutti.serve.gateway import worker as worker_module
from tutti.serve.gateway.order import Order
from tutti.serve.gateway.pool import Pool
from tutti.serve.gateway.worker import Progress, Worker
from tutti.serve.make import Settings


def test_who_computes_or_reads_gets_on() -> None:
    progress = Progress(100.0)
    assert progress.idle(101.0, 0.2, 0) == 0.0  # it has begun
    assert progress.idle(103.0, 0.205, 0) == 2.0  # to be asked is no work
    assert progress.idle(104.0, 0.205, 4096) == 0.0  # reads
    assert progress.idle(109.0, 0.205, 4096) == 5.0
    assert progress.idle(110.0, 1.0, 4096) == 0.0  # computes
    assert Progress(100.0).idle(107.0, 0.0, 0) == 0.0


@pytest.mark.skipif(sys.platform != "linux", reason="a stopped process is told by /proc")
def test_a_worker_that_hangs_is_replaced_and_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "_IDLE_SECONDS", 0.5)
    monkeypatch.setattr(worker_module, "_LOOK_SECONDS", 0.05)
    said: list[str] = []
    pids: list[int] = []

    async def freeze(worker: Worker) -> None:
        while worker._process is None:
            await asyncio.sleep(0.01)
        pids.append(worker._process.pid)
        os.kill(worker._process.pid, signal.SIGSTOP)

    async def live() -> str | None:
        freezing = set()

        def make() -> Worker:
            order = Order(tmp_path, None, Settings(), tmp_path / f"{len(said)}.sock")
            worker = Worker(f"w{len(said)}", order, 1, said.append)
            freezing.add(asyncio.ensure_future(freeze(worker)))
            return worker

        pool = Pool(1, make, 1, said.append)
        until = time.monotonic() + 60
        while pool.failure is None and time.monotonic() < until:
            pool.tick(time.monotonic())
            await asyncio.sleep(0.05)
        await pool.close(1.0)
        return pool.failure

    failure = asyncio.run(live())
    assert failure == "it has neither computed nor read for 0 s, and is not ready"
    assert len(pids) == 3 and sum("is replaced" in line for line in said) == 3
    for pid in pids:  # none is left behind
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
