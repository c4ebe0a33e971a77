"""Who hangs: judged with a made-up clock, and on a process that is really stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tutti.config import Config
from tutti.core.events import EventWriter
from tutti.core.live import LiveSign, clear_signs
from tutti.core.rundir import RunDirectory
from tutti.core.types import Batch
from tutti.evaluate import sum_losses
from tutti.observe.watch import StallDetector, Watchdog, read_signs
from tutti.supervise.beside import stall_check


class World:
    """Ranks that write signs once a second of a made-up clock, and a detector that looks each second."""

    def __init__(self, ranks: int, stall_seconds: float = 30) -> None:
        self.detector = StallDetector(stall_seconds)
        self.signs: dict[int, dict[str, Any]] = {
            rank: {"time": 0.0, "pid": 100 + rank, "rank": rank, "step": 0, "phase": "compute", "stack": []}
            for rank in range(ranks)
        }
        self.stopped: set[int] = set()
        self.now = 0.0

    def run(self, seconds: int, *, steps_each: int | None = 1, at_once: int = 1) -> list[int]:
        """Let time pass; a step takes `steps_each` seconds (None: nobody ends one). Returns who hangs."""
        found: list[int] = []
        for _ in range(seconds):
            self.now += at_once
            for rank, sign in self.signs.items():
                if rank not in self.stopped:
                    sign = self.signs[rank] = dict(sign) | {"time": self.now}
                    if steps_each and self.now % steps_each == 0:
                        sign["step"] += 1
            self.stalls = self.detector.observe(self.signs, self.now)
            found = [stall.rank for stall in self.stalls]
        return found

    def put(self, rank: int, **fields: Any) -> None:
        self.signs[rank] = self.signs[rank] | fields


def test_a_lively_world_is_left_alone() -> None:
    assert World(3).run(200) == []


def test_a_silent_rank_is_named_with_its_last_stack_and_not_those_who_wait_for_it() -> None:
    world = World(3)
    world.run(10)
    world.put(1, stack=["train/loop.py:10 run: batch = next(feed)"], phase="data")
    world.stopped.add(1)
    assert world.run(29, steps_each=None) == []
    assert world.run(5, steps_each=None) == [1]
    (stall,) = world.stalls
    assert stall.how == "silent" and stall.last_step == 10 and stall.phase == "data"
    assert "next(feed)" in stall.message and "rank 1" in stall.message
    assert world.run(100, steps_each=None) == [1]
    world.stopped.clear()
    assert world.run(1) == []


def test_among_stuck_ranks_the_one_outside_a_collective_is_named() -> None:
    world = World(3)
    world.run(10)
    world.put(0, phase="sync")
    world.put(2, stack=["torch/distributed/distributed_c10d.py:99 all_reduce: work.wait()"])
    world.put(1, phase="data", stack=["user.py:3 load: sock.recv(1)"])
    assert world.run(29, steps_each=None) == []
    assert world.run(5, steps_each=None) == [1]
    assert world.stalls[0].how == "stuck"


def test_among_stuck_ranks_the_furthest_behind_is_named() -> None:
    world = World(2)
    world.run(10)
    world.put(0, step=11)
    assert world.run(40, steps_each=None) == [1]


def test_slow_steps_are_no_stall() -> None:
    """Steps of 20 s: ten of them may pass before anybody is worried."""
    world = World(2)
    world.run(100, steps_each=20)
    assert world.run(190, steps_each=None) == []
    assert world.run(20, steps_each=None) == [0, 1]


def test_a_rank_that_saves_may_take_long_and_its_peers_may_wait_for_it() -> None:
    world = World(2)
    world.run(10)
    world.put(0, phase="saving")
    world.put(1, phase="sync")
    assert world.run(200, steps_each=None) == []
    assert world.run(110, steps_each=None) == [0]  # but not for ever


@pytest.mark.parametrize(
    ("phase", "limit"), [("compute", 300), ("evaluating", 3000), ("finishing", 3000), ("starting", 3000)]
)
def test_slow_phases_have_ten_times_the_patience_until_they_are_ended_as_well(
    phase: str, limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real watchdog over files of a made-up clock, that looks every ten seconds."""
    killed: list[int] = []
    clock = 0.0
    run = RunDirectory(tmp_path)
    run.live.mkdir()
    run.events.mkdir()
    monkeypatch.setattr("tutti.supervise.beside.Watchdog", partial(Watchdog, clock=lambda: clock))
    look = stall_check(run, Config(), EventWriter(run.events, -1), killed.append)
    while not killed and clock < 4000:
        sign = {"time": clock, "since": 0.0, "pid": 7, "rank": 0, "step": 3, "phase": phase, "stack": []}
        (run.live / "rank-0.json").write_text(json.dumps(sign))
        look()
        clock += 10
    assert killed == [7] and limit < clock <= limit + 30


def test_one_slow_phase_after_another_is_no_stall() -> None:
    world = World(1)
    for phase in ("starting", "building the model", "resuming", *(f"rehearsal: {n}" for n in range(5))):
        world.put(0, phase=phase)
        assert world.run(60, steps_each=None) == []


def test_who_says_in_a_slow_phase_that_he_gets_on_is_left_alone() -> None:
    world = World(1)
    world.put(0, phase="evaluating")
    for _ in range(20):
        world.put(0, since=world.now)
        assert world.run(60, steps_each=None) == []
    assert world.run(310, steps_each=None) == [0]
    world.put(0, phase="compute", since=world.now)
    for _ in range(2):
        world.put(0, since=world.now)  # of a step that is made again and again only its end counts
        found = world.run(20, steps_each=None)
    assert found == [0]


class _Samples:
    """A source whose samples are their numbers."""

    def samples_in_epoch(self, epoch: int) -> int:
        return 12

    def load(self, epoch: int, indices: Sequence[int]) -> Batch:
        return {"x": torch.tensor(list(indices))}


def test_validation_gets_on_with_every_micro_batch(tmp_path: Path) -> None:
    def since() -> float:
        return float(read_signs(tmp_path)[0]["since"])

    seen: list[float] = []

    def measure(given: Iterable[Batch]) -> tuple[float, int]:
        for _ in given:
            wait_until(lambda: since() > seen[-1])
            seen.append(since())
            time.sleep(0.01)
        return 0.0, 1

    where: Any = {"device": torch.device("cpu"), "target_bytes": None}
    with LiveSign(tmp_path / "live", 0, every_seconds=0.01) as sign, sign.phase("evaluating"):
        seen.append(time.time())
        time.sleep(0.01)
        source: Any = _Samples()
        sum_losses(measure, source, samples=12, part=0, parts=1, micro_batch=4, **where)
    assert len(seen) == 4


def test_replicas_that_wait_for_others_to_come_are_not_stuck() -> None:
    world = World(3)
    world.run(10)
    for rank in (0, 1, 2):
        world.put(rank, phase="sync", waits=True)
    assert world.run(1200, steps_each=None) == []
    for rank in (0, 1, 2):
        world.put(rank, phase="compute", waits=False)
    assert world.run(25, steps_each=None) == []  # that they waited is nothing to make up for
    for rank in (0, 1):
        world.put(rank, phase="sync", waits=True)
    assert world.run(100, steps_each=None) == [2]
    world.stopped.add(0)  # who gives no sign of life is not one who waits
    assert world.run(35, steps_each=None) == [0]


def test_a_stuck_replica_is_named_while_another_goes_on() -> None:
    world = World(2)
    world.run(10)
    world.put(1, phase="data")
    for _ in range(40):
        world.run(1)
        world.put(1, step=10)
    assert [s.rank for s in world.stalls] == [1] or world.run(1, steps_each=None) == [1]


def test_a_finished_rank_may_be_silent() -> None:
    world = World(2)
    world.run(10)
    world.put(1, phase="finished")
    world.stopped.add(1)
    assert world.run(100) == []


def test_time_in_which_the_watcher_itself_was_suspended_does_not_count() -> None:
    world = World(2)
    world.run(10)
    world.stopped.update({0, 1})
    assert world.run(1, at_once=3600) == []  # the laptop was closed
    world.stopped.clear()
    assert world.run(100) == []


def test_a_restarted_process_starts_afresh() -> None:
    world = World(1)
    world.run(10)
    world.run(25, steps_each=None)
    world.put(0, pid=999, step=3, phase="compute")
    assert world.run(25, steps_each=None) == []
    world.detector.forget()
    assert world.run(25, steps_each=None) == []


_WORKER = """
import sys, time
from pathlib import Path
from tutti.core.live import LiveSign

def waits_for_a_batch():
    while True:
        time.sleep(0.05)

with LiveSign(Path(sys.argv[1]), rank=1, every_seconds=0.1) as sign:
    sign.set(step=7, phase="compute")
    with sign.phase("data"):
        waits_for_a_batch()
"""


def test_a_process_that_is_really_stopped_is_named_with_its_stack(tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    script.write_text(_WORKER)
    events: list[dict[str, Any]] = []
    worker = subprocess.Popen([sys.executable, str(script), str(tmp_path / "live")])
    watchdog = Watchdog(tmp_path, 2.0, events.append, every_seconds=0.1)
    try:
        wait_until(lambda: read_signs(tmp_path).get(1, {}).get("phase") == "data")
        watchdog.start()
        time.sleep(0.5)
        assert events == []
        os.kill(worker.pid, signal.SIGSTOP)
        wait_until(lambda: len(events) == 1)
        stalled = events[0]
        assert stalled["kind"] == "stalled" and stalled["how"] == "silent"
        assert stalled["rank"] == 1 and stalled["last_step"] == 7 and stalled["phase"] == "data"
        assert stalled["pid"] == worker.pid
        assert any("waits_for_a_batch" in frame and "time.sleep" in frame for frame in stalled["stack"])
        assert 2 <= watchdog.stalls[1].seconds < 10
        os.kill(worker.pid, signal.SIGCONT)
        wait_until(lambda: len(events) == 2)
        assert events[1]["kind"] == "recovered" and events[1]["rank"] == 1
    finally:
        worker.kill()
        worker.wait()
        watchdog.stop()
    clear_signs(tmp_path / "live")
    assert read_signs(tmp_path) == {}


def test_the_sign_says_where_it_is_and_that_it_has_finished(tmp_path: Path) -> None:
    with LiveSign(tmp_path / "live", 0, every_seconds=0.05) as sign:
        assert read_signs(tmp_path)[0]["phase"] == "starting"
        with sign.phase("validation"):
            wait_until(lambda: read_signs(tmp_path)[0]["phase"] == "validation")
        sign.set(step=3, phase="compute")
        wait_until(lambda: read_signs(tmp_path)[0]["step"] == 3)
    last = read_signs(tmp_path)[0]
    assert last["phase"] == "finished" and last["pid"] == os.getpid() and len(last["stack"]) <= 15
    assert not list((tmp_path / "live").glob(".*"))


def test_who_cannot_say_where_he_is_still_says_that_he_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread's frames may be gone while they are read, which must not end the thread that says so."""

    def gone(_thread: object) -> list[str]:
        raise AttributeError("'dict' object has no attribute 'f_lineno'")

    with LiveSign(tmp_path / "live", 0, every_seconds=0.02):
        monkeypatch.setattr("tutti.core.live.stack_of", gone)
        time.sleep(0.2)
        (first,) = read_signs(tmp_path).values()
        time.sleep(0.2)
        (later,) = read_signs(tmp_path).values()
    assert first["stack"] == [] and later["time"] > first["time"]


def test_a_sign_that_cannot_be_written_does_not_end_the_run(tmp_path: Path) -> None:
    with LiveSign(tmp_path / "live", 0, every_seconds=0.01) as sign:
        (tmp_path / "live/rank-0.json").unlink()
        (tmp_path / "live").rmdir()
        time.sleep(0.05)
        sign.set(step=1)


def test_torn_signs_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "live").mkdir()
    (tmp_path / "live/rank-0.json").write_text('{"rank": 0, "st')
    (tmp_path / "live/rank-1.json").write_text('{"rank": 1}')
    assert list(read_signs(tmp_path)) == [1]


def wait_until(condition: Any, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            pytest.fail("waited in vain")
        time.sleep(0.02)
