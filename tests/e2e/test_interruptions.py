"""Runs that are stopped, killed or frozen in mid-run: they save, say what to type, heal, and end as they should."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest
from commands import (
    Answer,
    Here,
    at_step,
    events_of,
    is_alive,
    losses_of,
    refused,
    started,
    wait_for_step,
    worker_pid,
    write_config,
)

from tutti.config import load_config
from tutti.core import RunError
from tutti.core.rundir import RunDirectory
from tutti.starting import check_run

pytestmark = pytest.mark.distributed
RUN = Path("runs") / "r"


def resume_command(said: str) -> list[str]:
    """The words of the command that the screen says to resume with."""
    lines = said.splitlines()
    return lines[lines.index("resume with:") + 1].split()


def steps_of(run: Path, rank: int = 0) -> list[int]:
    return [event["step"] for event in events_of(run, "step") if event["rank"] == rank]


def test_ctrl_c_saves_and_the_printed_command_goes_on(tutti_here: Here, tmp_path: Path) -> None:
    """Ctrl-C reaches every process of the terminal; no step is lost or done twice."""
    write_config(tmp_path)
    with started(tmp_path, "train", "c.yaml", "train.steps=100") as command:
        command.until_step(10)
        workers = command.worker_pids()
        command.signal_group(signal.SIGINT)
        answer = command.end()
        assert not any(is_alive(pid) for pid in workers)
    assert (answer.code, answer.err) == (130, "")
    assert answer.out.count("interrupted after step") == 1
    words = resume_command(answer.out)
    assert words[-1] == "--resume" and "train" in words
    done = tutti_here(*words[words.index("train") :])
    assert (done.code, done.err) == (0, "")
    for rank in (0, 1):
        assert steps_of(RUN, rank) == list(range(1, 101))
    assert "finished" in done.out


def test_sigterm_saves_and_json_says_so(tutti_here: Here, tmp_path: Path) -> None:
    write_config(tmp_path)
    with at_step(RUN, 10, lambda: os.kill(os.getpid(), signal.SIGTERM)):
        answer = tutti_here("train", "c.yaml", "--json")
    assert (answer.code, answer.json["state"]) == (130, "interrupted")
    saved = answer.json["checkpoints"][-1]["step"]
    assert saved == answer.json["steps"] >= 10
    again = tutti_here("train", "c.yaml", "train.steps=40", "--resume", "--json")
    assert (again.code, again.json["state"], again.json["steps"]) == (0, "finished", max(40, saved))
    assert steps_of(RUN) == list(range(1, max(40, saved) + 1))


def test_a_second_ctrl_c_says_what_is_lost(tutti_here: Here, tmp_path: Path) -> None:
    write_config(tmp_path, checkpoint={"every": 1000}, replicas=1)

    def stop_at_once() -> None:
        os.kill(worker_pid(RUN, 0), signal.SIGSTOP)  # it does not come to save
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.6)
        os.kill(os.getpid(), signal.SIGINT)

    with at_step(RUN, 10, stop_at_once):
        answer = tutti_here("train", "c.yaml", "train.steps=5000")
    assert answer.code == 130, answer.said
    assert "stopped at once; what came after the last checkpoint is done again" in answer.out
    assert "nothing was lost" not in answer.out and "everything is saved" not in answer.out
    (said,) = events_of(RUN, "interrupted")
    assert said["trained"] and said["killed"]


def test_a_stop_that_cannot_save_is_a_failure(tutti_here: Here, tmp_path: Path) -> None:
    write_config(tmp_path, checkpoint={"every": 1000}, replicas=1)

    def stop_without_a_place() -> None:
        (RUN / "checkpoints").rmdir()
        (RUN / "checkpoints").write_text("")
        os.kill(os.getpid(), signal.SIGTERM)

    with at_step(RUN, 10, stop_without_a_place):
        answer = tutti_here("train", "c.yaml", "train.steps=5000")
    refused(answer, "checkpoints")
    assert "nothing was lost" not in answer.said and "everything is saved" not in answer.said


def test_a_stop_before_the_first_step_can_be_resumed(tutti_here: Here, tmp_path: Path) -> None:
    write_config(tmp_path)

    def stop() -> None:
        while not (RUN / "events" / "rank--1.jsonl").exists():
            time.sleep(0.01)
        time.sleep(0.1)  # the workers are being started: none of them can be told yet
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop, daemon=True)
    thread.start()
    answer = tutti_here("train", "c.yaml", "train.steps=20")
    thread.join()
    assert answer.code == 130, answer.said
    assert "nothing was lost" in answer.out or "everything is saved" in answer.out
    done = tutti_here("train", "c.yaml", "train.steps=20", "--resume", "--json")
    assert (done.code, done.json["steps"]) == (0, 20), done.said


@pytest.mark.slow
def test_a_launcher_that_is_killed_leaves_no_workers_and_can_be_resumed(
    tutti_here: Here, tmp_path: Path
) -> None:
    write_config(tmp_path)
    with started(tmp_path, "train", "c.yaml", "train.steps=5000") as command:
        command.until_step(45)
        workers = command.worker_pids()
        os.kill(command.process.pid, signal.SIGKILL)
        command.process.wait()
        deadline = time.monotonic() + 10
        while any(is_alive(pid) for pid in workers) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not any(is_alive(pid) for pid in workers)
    reached = max(steps_of(RUN))
    newest = reached // 20 * 20
    said = max(event["step"] for event in events_of(RUN, "checkpoint"))
    assert said >= newest - 20  # only the save that was under way may be lost
    began = time.time()
    done = tutti_here("train", "c.yaml", f"train.steps={reached + 10}", "--resume", "--json")
    assert (done.code, done.json["state"], done.json["steps"]) == (0, "finished", reached + 10), done.said
    resumed = events_of(RUN, "resumed", began)
    assert len(resumed) == 1 and resumed[0]["step"] in {said, newest}
    first = next(event["step"] for event in events_of(RUN, "step", began) if event["rank"] == 0)
    assert first == resumed[0]["step"] + 1


def test_a_killed_worker_is_replaced_while_the_other_goes_on(tutti_here: Here, tmp_path: Path) -> None:
    write_config(tmp_path)

    def disturb() -> None:
        with pytest.raises(RunError, match="another process is training there"):
            check_run(RunDirectory(RUN), load_config(RUN / "config.yaml"), resume=True)
        os.kill(worker_pid(RUN, 1), signal.SIGKILL)

    with at_step(RUN, 45, disturb):
        answer = tutti_here("train", "c.yaml", "train.steps=300")
    assert (answer.code, answer.err) == (0, ""), answer.said
    assert answer.out.count("started again") == 1 and "worker 0 was killed by SIGKILL" in answer.out
    assert "replicas 0 train together" in answer.out and "replica 1 was healed by its peers" in answer.out
    assert "went on from the checkpoint" not in answer.out
    assert sorted(losses_of(RUN)) == list(range(1, 301))
    assert [event["attempt"] for event in events_of(RUN, "run_started") if event["replica"] == 0] == [0]


def test_with_fixed_members_a_killed_worker_restarts_all(tutti_here: Here, tmp_path: Path) -> None:
    write_config(tmp_path)
    with at_step(RUN, 45, lambda: os.kill(worker_pid(RUN, 1), signal.SIGKILL)):
        answer = tutti_here("train", "c.yaml", "train.steps=80", "sync.membership=fixed")
    assert (answer.code, answer.err) == (0, ""), answer.said
    assert answer.out.count("started again") == 1
    assert "worker 1 was killed by SIGKILL" in answer.out
    assert answer.out.count("went on from the checkpoint of step 40") == 1
    assert "Traceback" not in answer.said and answer.said.lower().count("error") == 0
    assert sorted(losses_of(RUN)) == list(range(1, 81))
    assert "Restarts" in answer.out


@pytest.mark.parametrize("members", ["sync.membership=fixed", "sync.min_replicas=2"])
def test_a_worker_that_dies_again_and_again_is_given_up(
    members: str, tutti_here: Here, tmp_path: Path
) -> None:
    write_config(tmp_path)
    answer: list[Answer] = []

    def kill_twice() -> None:
        os.kill(worker_pid(RUN, 0), signal.SIGKILL)
        events = len(events_of(RUN, "run_started"))
        while len(events_of(RUN, "run_started")) == events:
            time.sleep(0.05)
        wait_for_step(RUN, 1, events_of(RUN, "run_started")[-1]["time"])
        os.kill(worker_pid(RUN, 0), signal.SIGKILL)

    with at_step(RUN, 5, kill_twice):
        answer.append(tutti_here("train", "c.yaml", "train.steps=5000", "watch.max_restarts=1", members))
    refused(answer[0], "SIGKILL", "--resume")


def test_a_frozen_worker_is_named_with_its_stack_and_replaced(tutti_here: Here, tmp_path: Path) -> None:
    write_config(tmp_path)
    watch = "watch={stall_seconds: 3, kill_after_seconds: 6}"
    with at_step(RUN, 25, lambda: os.kill(worker_pid(RUN, 1), signal.SIGSTOP)):
        answer = tutti_here("train", "c.yaml", "train.steps=60", watch)
    assert answer.code == 0, answer.said
    stalled = events_of(RUN, "stalled")
    assert [event["of_rank"] for event in stalled] == [1], stalled
    assert stalled[0]["silent_seconds"] < 60
    assert stalled[0]["stack"] and any(":" in frame for frame in stalled[0]["stack"])
    assert answer.out.count("rank 1 has given no sign of life") == 1
    assert answer.out.count("started again") == 1
    assert sorted(losses_of(RUN)) == list(range(1, 61))
