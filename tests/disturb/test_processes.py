"""Only workers of this run are touched, and whoever was stopped goes on."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

from tutti.disturb.disturber import _Slow, own_workers
from tutti.disturb.guard import Guard


@contextmanager
def sleeping() -> Iterator[psutil.Process]:
    process = subprocess.Popen([sys.executable, "-I", "-S", "-c", "import time; time.sleep(600)"])
    try:
        yield psutil.Process(process.pid)
    finally:
        process.kill()
        process.wait()


def until(process: psutil.Process, *, stopped: bool) -> None:
    """The kernel takes a moment to do as it is told."""
    deadline = time.monotonic() + 10
    while (process.status() == psutil.STATUS_STOPPED) != stopped:
        assert time.monotonic() < deadline, process.status()
        time.sleep(0.005)


def test_strangers_are_not_touched() -> None:
    with sleeping() as stranger:  # a child of this process, but not of its server
        assert own_workers([1, os.getpid(), os.getppid(), stranger.pid, 2**22 - 1]) == []


def test_workers_of_the_server_are_found_until_they_end() -> None:
    worker = multiprocessing.get_context("forkserver").Process(target=time.sleep, args=(600,))
    worker.start()
    assert worker.pid is not None
    assert [process.pid for process in own_workers([worker.pid])] == [worker.pid]
    worker.kill()
    worker.join()
    assert own_workers([worker.pid]) == []


def test_a_slowed_process_runs_its_part_of_every_fifth_of_a_second() -> None:
    guard = Guard()
    with sleeping() as process:
        slow = _Slow(lambda: [process], 0.25, guard)
        for elapsed, stopped in (
            (0.0, False),
            (0.04, False),
            (0.06, True),
            (0.19, True),
            (0.21, False),
            (5.19, True),
        ):
            slow.tick(elapsed)
            until(process, stopped=stopped)
        slow.end()
        until(process, stopped=False)
    guard.close()


def test_the_guard_continues_what_its_owner_left_stopped() -> None:
    code = (
        "import os, sys, psutil; from tutti.disturb.guard import Guard\n"
        "g = Guard()\n"
        "for pid in map(int, sys.argv[1:]): g.note(pid, stopped=True); psutil.Process(pid).suspend()\n"
        "psutil.Process(int(sys.argv[2])).resume(); g.note(int(sys.argv[2]), stopped=False)\n"
        "psutil.Process(int(sys.argv[2])).suspend()  # by somebody else, whom it does not concern\n"
        "os.kill(os.getpid(), 9)"
    )
    with sleeping() as left, sleeping() as other:
        subprocess.run([sys.executable, "-c", code, str(left.pid), str(other.pid)], check=False)
        until(left, stopped=False)
        until(other, stopped=True)
