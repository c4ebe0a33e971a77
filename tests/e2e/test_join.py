"""Replicas of another machine: `tutti train --listen` and `tutti join`, as processes that share nothing but a port."""

from __future__ import annotations

import secrets
import signal
import socket
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import (
    Command,
    Here,
    events_of,
    is_alive,
    refused,
    started,
    worker_pid,
    write_config,
)

from tutti.core import read_events

pytestmark = pytest.mark.distributed
BATCH = 8
RUN = Path("runs") / "r"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Machines:
    """Two directories as two machines, a key that both have, and the words that each types."""

    def __init__(self, path: Path, host: str = "127.0.0.1") -> None:
        self.first, self.other = path / "first", path / "other"
        for place in (self.first, self.other):
            place.mkdir()
        (path / "key").write_text(secrets.token_hex(32))
        write_config(self.first)
        address = f"{host}:{free_port()}"
        self.train = ("train", "c.yaml", "--listen", address, "--here", "1", "--key", "../key")
        self.join = ("join", address, "--key", "../key", "--cache", "cache")


def until_members(first: Command, members: list[int], since: float) -> float:
    """Wait until these train together; when that was."""
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        met = [e for e in read_events(first.run, "membership") if e["rank"] == 0 and e["time"] > since]
        if met and met[-1]["replicas"] == members:
            return float(met[-1]["time"])
        assert first.process.poll() is None, first.out + first.err
        time.sleep(0.05)
    raise AssertionError(f"{members} never met: {first.out}{first.err}")


def samples_of(*runs: Path) -> Counter[tuple[int, int]]:
    return Counter(
        (epoch, sample)
        for run in runs
        for event in read_events(run, "step")
        for epoch, samples in event["samples"]
        for sample in samples
    )


@pytest.mark.parametrize("host", ["127.0.0.1", pytest.param("[::1]", marks=pytest.mark.slow)])
def test_a_machine_joins_and_both_end(tmp_path: Path, host: str) -> None:
    machines = Machines(tmp_path, host)
    words = (*machines.train, "train.steps=60")
    with started(machines.first, *words) as first, started(machines.other, *machines.join) as other:
        answers = first.end(120), other.end()
    assert [(a.code, a.err) for a in answers] == [(0, ""), (0, "")], answers
    assert "model and report are on the machine that started it" in answers[1].out
    assert [e["replicas"] for e in events_of(first.run, "membership") if e["rank"] == 0][-1] == [0, 1]
    counted = samples_of(first.run, other.run)
    assert sorted(counted.values()) == [1] * (60 * BATCH)
    assert samples_of(other.run), "the guest has done its part"


@pytest.mark.slow
def test_a_machine_joins_leaves_and_joins_again(tmp_path: Path) -> None:
    machines = Machines(tmp_path)
    with started(machines.first, *machines.train, "train.steps=20000") as first:
        with started(machines.other, *machines.join) as other:
            joined = until_members(first, [0, 1], first.began)
            time.sleep(1)
            worker = worker_pid(other.run, 1)
            other.signal_group(signal.SIGINT)
            answer = other.end()
            assert (answer.code, answer.err) == (130, ""), answer.said
            assert "the others go on" in answer.out
            assert not is_alive(worker)
        alone = until_members(first, [0], joined)
        with started(machines.other, *machines.join) as other:
            until_members(first, [0, 1], alone)
            deadline = time.monotonic() + 60
            while not events_of(other.run, "healed", other.began) and time.monotonic() < deadline:
                time.sleep(0.05)
            first.signal_group(signal.SIGINT)  # stops the run on all machines
            answers = first.end(), other.end()
            assert [(a.code, a.err) for a in answers] == [(130, ""), (0, "")], answers
    assert "model and report are on the machine that started it" in answers[1].out
    steps = events_of(first.run, "interrupted")[-1]["step"]
    came = [event["kind"] for event in events_of(first.run, "joined") + events_of(first.run, "left")]
    assert Counter(came) == {"joined": 2, "left": 1}
    assert events_of(other.run, "healed", other.began)
    # No sample is lost or trained twice; who is killed may have had no time to write its last step down.
    counted = samples_of(first.run, other.run)
    assert max(counted.values()) == 1
    assert (steps - 1) * BATCH <= len(counted) <= steps * BATCH
    assert not list(other.run.glob("checkpoints/step-*"))  # who leads saves, on its own disk


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_machines_measure_together_before_a_run_with_sync_auto(tmp_path: Path) -> None:
    machines = Machines(tmp_path)
    words = (*machines.train, "sync=auto", "train.steps=40")
    with started(machines.first, *words) as first, started(machines.other, *machines.join) as other:
        answers = first.end(200), other.end()
    assert [(a.code, a.err) for a in answers] == [(0, ""), (0, "")], answers
    assert "chosen: sync = " in answers[0].out and "measuring" in answers[1].out
    chosen = yaml.safe_load((first.run / "config.yaml").read_text())["sync"]
    assert chosen == yaml.safe_load((other.run / "config.yaml").read_text())["sync"]
    assert chosen["policy"] in ("allreduce", "diloco") and chosen["codec"] != "auto"
    assert [e["replica"] for e in events_of(first.run, "sync_measured")] == [0, 1]


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_guests_end_when_the_first_machine_is_gone_and_join_when_it_is_back(tmp_path: Path) -> None:
    machines = Machines(tmp_path)
    words = (*machines.train, "train.steps=5000")
    with started(machines.first, *words) as first, started(machines.other, *machines.join) as other:
        until_members(first, [0, 1], first.began)
        first.until_step(25)
        first.signal_group(signal.SIGKILL)
        first.process.wait()
        answer = other.end(90)
        assert answer.code == 2 and "was silent" in answer.err, answer.said
        assert "join it again" in answer.err
    again = (*machines.train, "train.steps=400", "--resume")
    with started(machines.first, *again) as first, started(machines.other, *machines.join) as other:
        until_members(first, [0, 1], first.began)
        assert (first.end(120).code, other.end().code) == (0, 0)
    assert events_of(first.run, "resumed", first.began)[0]["step"] >= 20
    assert events_of(first.run, "finished", first.began)[0]["step"] == 400


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("--here", "1"), ["belong to --listen"]),
        (("--listen", "127.0.0.1", "--here", "1"), ["127.0.0.1 is no address with a port"]),
        (("--listen", "127.0.0.1:1"), ["--listen needs --here"]),
        (("--listen", "0.0.0.0:1", "--here", "1"), ["is not how others find this machine"]),
        (("--listen", "127.0.0.1:1", "--here", "2"), ["--here 2 leaves no place", "replicas = 2"]),
        (("--listen", "127.0.0.1:1", "--here", "1", "replicas=auto"), ["needs a number of replicas"]),
        (("--listen", "127.0.0.1:1", "--here", "1", "sync.membership=fixed"), ["fixed"]),
        (("--listen", "10.99.99.99:29400", "--here", "1"), ["10.99.99.99", "an address of this machine"]),
        (("--listen", "127.0.0.1:29400", "--here", "1", "--key", "text.txt"), ["text.txt is no key"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_cannot_be_is_said_before_anything_starts(
    tutti_here: Here, tmp_path: Path, words: tuple[str, ...], parts: list[str]
) -> None:
    write_config(tmp_path)
    refused(tutti_here("train", "c.yaml", *words), *parts)
    assert not RUN.exists()


def test_a_port_that_is_taken_is_named(tutti_here: Here, tmp_path: Path) -> None:
    write_config(tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        refused(
            tutti_here("train", "c.yaml", "--listen", address, "--here", "1"),
            address,
            "Address already in use",
        )
    assert not RUN.exists()


def test_nobody_there_is_said(tutti_here: Here, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("tutti.supervise.first_machine._FIRST_ANSWER_SECONDS", 0.5)
    (tmp_path / "join.key").write_text(secrets.token_hex(32))
    refused(tutti_here("join", f"127.0.0.1:{free_port()}"), "nobody at 127.0.0.1:")
    refused(tutti_here("join", "127.0.0.1:1", "--key", "other"), "other", "copy join.key")
    assert not RUN.exists()
