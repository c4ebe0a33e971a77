"""Runs that are broken on purpose: what was done to them stands in their events, and the report says what it cost."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from commands import Here, events_of, is_alive, refused, started, write_config

from tutti.core.errors import LaunchError
from tutti.disturb.firewall import Firewall, _own_group
from tutti.sync import count, merge

pytestmark = pytest.mark.distributed
RUN = Path("runs") / "r"


def write_chaos_config(directory: Path, policy: str, steps: int) -> None:
    write_config(
        directory,
        replicas=3,
        sync={"policy": policy} | ({"every": 5} if policy != "allreduce" else {}),
        train={"steps": steps, "batch": 9, "precision": "fp32", "learning_rate": 0.003},
        evaluate={"every": steps, "samples": 8},
    )


def disturbances(run: Path, state: str) -> dict[str, dict[str, Any]]:
    return {event["what"]: event for event in events_of(run, "disturbance") if event["state"] == state}


def spans(event: dict[str, Any], key: str) -> list[tuple[int, int]]:
    return [(start, stop) for start, stop in event[key]]


def first_step_that_counts(run: Path, rank: int, since: float) -> float:
    """End of the first step of `rank` after `since` that lies in a range that its replica's last process committed."""
    commits = [spans(e, "ranges") for e in events_of(run, "commit") if e["member"] == f"replica-{rank}.1"]
    for step in events_of(run, "step", since):
        here = spans(step, "cursor")
        if step["rank"] == rank and any(merge([*lent, *here]) == merge(lent) for lent in commits):
            return float(step["time"])
    raise AssertionError("it never made one")


@pytest.mark.slow
def test_diloco_under_a_kill_and_a_stop(tutti_here: Here, tmp_path: Path) -> None:
    write_chaos_config(tmp_path, "diloco", 250)
    answer = tutti_here("chaos", "c.yaml", "--kill", "300ms@1", "--stop", "1500ms+1s@2", "--json")
    assert answer.code == 0, answer.said
    report = answer.json
    kill, stop = (disturbances(RUN, "began")[what] for what in ("kill", "stop"))
    assert (kill["of_replica"], stop["of_replica"]) == (1, 2)
    # The killed one was started again, healed, and what it did afterwards counts.
    (restart,) = events_of(RUN, "restart")
    assert restart["of_replica"] == 1 and restart["time"] >= kill["time"]
    back = first_step_that_counts(RUN, 1, restart["time"])
    # The stopped one did nothing meanwhile.
    ended = disturbances(RUN, "ended")["stop"]["time"]
    assert ended - stop["time"] >= 1
    steps = events_of(RUN, "step")
    assert not [s for s in steps if s["rank"] == 2 and stop["time"] + 0.1 < s["time"] < ended]
    # The report says the same.
    by_kind = {hit["what"]: hit for hit in report["disturbances"]}
    assert by_kind["kill"]["recovery_seconds"] == pytest.approx(back - kill["time"])
    assert by_kind["stop"]["recovery_seconds"] >= 1
    assert set(by_kind["kill"]["stall_seconds"]) == {"0", "2"}
    assert set(by_kind["stop"]["stall_seconds"]) == {"0", "1"}
    committed = {
        (event["round"], event["member"]): spans(event, "ranges") for event in events_of(RUN, "commit")
    }
    ranges = [span for of_member in committed.values() for span in of_member]
    assert report["samples_committed"] == count(merge(ranges)) == count(ranges)
    assert (report["samples_lost"], report["samples_trained_twice"]) == (0, 0)
    assert report["tokens_committed"] == 32 * report["samples_committed"]
    assert (report["state"], report["steps"], report["not_recovered"]) == ("finished", 250, 0)
    # It is made anew from the events alone.
    assert json.loads((RUN / "chaos.json").read_text()) == report
    assert tutti_here("chaos", "--report", "r", "--json").json == report
    assert "chaos: replica 1 is killed" in (RUN / "report.md").read_text()


@pytest.mark.slow
def test_allreduce_compared_with_an_undisturbed_run(tutti_here: Here, tmp_path: Path) -> None:
    """All go back to the last checkpoint, or the survivors go on: no sample is lost, and the loss is the same."""
    write_chaos_config(tmp_path, "allreduce", 150)
    answer = tutti_here("chaos", "c.yaml", "--kill", "1s@1", "--slow", "8s+1s:50%@2", "--compare", "--json")
    assert answer.code == 0, answer.said
    report = answer.json
    assert (report["samples_committed"], report["samples_lost"], report["samples_trained_twice"]) == (
        150 * 9,
        0,
        0,
    )
    pair = report["undisturbed"]
    assert (pair["run"], pair["steps"], pair["state"]) == ("r-undisturbed", 150, "finished")
    assert 0 < pair["goodput_ratio"] < 1
    assert abs(pair["validation_loss_difference"]) < 1e-3
    assert not events_of(Path("runs/r-undisturbed"), "disturbance")
    assert report["disturbances"][0]["what"] == "kill" and report["disturbances"][0]["recovery_seconds"] > 0


def may_cut() -> bool:
    try:
        Firewall(1).close()
    except LaunchError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.skipif(not may_cut(), reason="cutting needs root, cgroup v2 and BPF")
def test_a_replica_that_is_cut_off_comes_back(tutti_here: Here, tmp_path: Path) -> None:
    """The others meet without it, and it with them again when the cut is over; its process is the same."""
    write_chaos_config(tmp_path, "diloco", 300)
    answer = tutti_here("chaos", "c.yaml", "--cut", "500ms+2s@1", "--json")
    assert answer.code == 0, answer.said
    report = answer.json
    began, ended = (disturbances(RUN, state)["cut"]["time"] for state in ("began", "ended"))
    during = [e for e in events_of(RUN, "membership", began) if e["time"] < ended and e["rank"] != 1]
    assert during and during[-1]["replicas"] == [0, 2]
    after = [e for e in events_of(RUN, "membership", ended) if e["replicas"] == [0, 1, 2]]
    assert {e["rank"] for e in after} == {0, 1, 2}
    assert not events_of(RUN, "restart")
    assert (report["samples_lost"], report["samples_trained_twice"], report["not_recovered"]) == (0, 0, 0)
    assert not _own_group().joinpath(f"tutti-chaos-{os.getpid()}").exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_the_end_of_the_launcher_leaves_no_stopped_process(number: signal.Signals, tmp_path: Path) -> None:
    """Ctrl-C continues it, so that it can save; if the launcher is killed, it notices that itself."""
    write_chaos_config(tmp_path, "diloco", 5000)
    with started(tmp_path, "chaos", "c.yaml", "--stop", "100ms+10m@1") as command:
        command.until_step(1)
        deadline = time.monotonic() + 60
        while not events_of(command.run, "disturbance") and time.monotonic() < deadline:
            time.sleep(0.05)
        workers = command.worker_pids()
        time.sleep(0.5)
        if number == signal.SIGINT:
            command.signal_group(number)
            answer = command.end()
            assert answer.code == 130, answer.said
            assert events_of(command.run, "interrupted")
            assert disturbances(command.run, "ended")["stop"]["of_replica"] == 1
        else:
            command.process.kill()
            command.process.wait()
        deadline = time.monotonic() + 20
        while any(is_alive(pid) for pid in workers) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert len(workers) == 3 and not any(is_alive(pid) for pid in workers)


def test_what_cannot_be_done_is_refused_before_anything_starts(tutti_here: Here, tmp_path: Path) -> None:
    write_chaos_config(tmp_path, "diloco", 20)
    for words, parts in (
        (["c.yaml"], ["nothing is to be disturbed"]),
        (["c.yaml", "--kill", "30s@3"], ["no replica 3", "replicas 0 to 2"]),
        (["c.yaml", "--kill", "-1s"], ["never below 0"]),
        (["c.yaml", "--kill", "1s", "--against", "r9"], ["no run at"]),
        (["c.yaml", "--kill", "1s", "--against", "r9", "--compare"], ["only one"]),
        (["c.yaml", "--schedule", "none.yaml"], ["none.yaml cannot be read"]),
        (["--kill", "1s"], ["there is no configuration"]),
        (["--report", "r9"], ["no run at"]),
        (["c.yaml", "--report", "r9"], ["--report trains nothing"]),
    ):
        refused(tutti_here("chaos", *words), *parts)
    assert not Path("runs").exists() or not any(Path("runs").iterdir())
