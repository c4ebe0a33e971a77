"""`tutti profile` names what was done to a run on purpose, each for real, and nothing where nothing was done."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from commands import Here, refused, write_config
from torch import nn

from runs import SlowItems
from tutti.core.rundir import RunDirectory
from tutti.data import TensorSource
from tutti.observe.profile import KINDS
from tutti.profiling import Profile, profile
from tutti.train.function import write_function_job

WIDTH = 512
TESTS = Path(__file__).parents[1]
ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def net(layers: int, width: int) -> nn.Module:
    torch.manual_seed(0)
    inside = [part for _ in range(layers) for part in (nn.Linear(width, width), nn.ReLU())]
    return nn.Sequential(nn.Linear(WIDTH, width), *inside, nn.Linear(width, 8))


def a_run(
    directory: Path, model: nn.Module, *, seconds: float = 0.0, workers: int = 1, **sections: dict[str, Any]
) -> Path:
    """A run as `tutti.fit` leaves it when its workers start; its items take `seconds` each."""
    run = RunDirectory(directory / "runs" / "r")
    run.create()
    write_function_job(run.path, model, nn.MSELoss(), TensorSource(SlowItems(seconds, WIDTH)), None)
    content: dict[str, Any] = {
        "name": "r",
        "runs": str(run.path.parent),
        "replicas": workers,
        "model": {"python": "Sequential"},
        "data": {"source": "here"},
        "train": {
            "steps": 1000,
            "batch": 256,
            "micro_batch": 256,
            "precision": "fp32",
            "learning_rate": 1e-4,
        },
        "evaluate": {"every": 1000, "samples": 8},
        "checkpoint": {"every": 1000},
    }
    for name, section in sections.items():
        content[name] = {**content.get(name, {}), **section}
    run.config.write_text(yaml.safe_dump(content))
    return run.path


def look(run: Path, steps: int = 8) -> Profile:
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    found = profile(run, steps=steps, console=False)
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before, "the run was touched"
    assert [path.name for path in found.directory.glob(".*")] == [], "something was left behind"
    return found


def kinds(found: Profile) -> list[str]:
    return [cause.kind for cause in (found.verdict.bottleneck, *found.verdict.others)]


def test_a_configuration_as_a_person_has_it(tutti_here: Here, tmp_path: Path) -> None:
    write_config(tmp_path, replicas=1)
    answer = tutti_here("profile", "c.yaml", "--steps", "4")
    assert answer.code == 0, answer.said
    assert "bottleneck: " in answer.out and "change " in answer.out and "where a step goes" in answer.out
    place = Path("runs/r-profile")
    assert sorted(path.name for path in Path("runs").iterdir()) == ["r-profile"], "a profile is no run"
    found = json.loads((place / "profile.json").read_text())
    assert found["bottleneck"] in KINDS and found["bottleneck"] in (place / "profile.md").read_text()
    assert found["ranks"][0]["steps"] == 4
    assert sum(found["parts"].values()) == pytest.approx(found["step_seconds"])
    assert found["flops"] > 0 and found["peak_flops"] > 0 and found["peak_memory_bytes"] > 0
    reached = found["flops"] / found["step_seconds"] / found["peak_flops"]
    # A busy machine may measure a peak that its own steps exceed; then there is no share of it.
    assert found["mfu"] == (pytest.approx(reached) if reached <= 1 else None)
    products = [row for row in found["operators"] if row["name"] in ("aten::mm", "aten::addmm")]
    assert products and all(row["shapes"] for row in products)
    with gzip.open(place / "traces" / found["ranks"][0]["trace"], "rt") as file:
        trace = json.load(file)["traceEvents"]
    steps = {event["name"] for event in trace if str(event.get("name", "")).startswith("ProfilerStep#")}
    assert len(steps) == 3
    refused(tutti_here("profile", "c.yaml", "--to", str(place)), "runs/r-profile", "another directory")


def test_what_cannot_be_profiled_is_refused_and_leaves_nothing(tutti_here: Here, tmp_path: Path) -> None:
    write_config(tmp_path)
    refused(tutti_here("profile", "nothing"), "there is no run at runs/nothing")
    refused(tutti_here("profile", "nothing.yaml"), "nothing.yaml")
    refused(tutti_here("profile", "c.yaml", "groups=2"), "groups: 2")
    refused(tutti_here("profile", "c.yaml", "model={python: Net}"), "tutti.fit")
    refused(tutti_here("profile", "c.yaml", "train.batch=-1"), "train.batch")
    assert not Path("runs").exists()


def test_items_that_take_long_to_make(tmp_path: Path) -> None:
    run = a_run(tmp_path, net(4, WIDTH), seconds=0.01, train={"batch": 32, "micro_batch": 32})
    found = look(run, steps=5)
    assert found.verdict.bottleneck.kind == "data", found.report
    assert found.figures.parts["data"] >= 32 * 0.01, "each of a batch's items slept"
    assert found.verdict.bottleneck.change.startswith("hand over tensors")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_nothing_but_computing(tmp_path: Path) -> None:
    found = look(a_run(tmp_path, net(6, 1024)))
    assert found.verdict.bottleneck.kind == "compute", found.report
    assert found.figures.flops == pytest.approx(6 * 256 * (6 * 1024**2 + 512 * 1024 + 1024 * 8), rel=0.1)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_operators_that_compute_next_to_nothing(tmp_path: Path) -> None:
    found = look(a_run(tmp_path, net(60, 16), train={"batch": 8, "micro_batch": 2}))
    assert found.verdict.bottleneck.kind == "host", found.report
    assert found.verdict.bottleneck.change == "train.micro_batch=8"


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.distributed
def test_two_workers_that_nothing_holds_up_and_one_that_is(tmp_path: Path) -> None:
    run = a_run(tmp_path, net(6, 1024), workers=2, train={"batch": 512})
    untouched = look(run)
    assert untouched.verdict.bottleneck.kind == "compute", untouched.report
    with held_up(tmp_path / "runs" / "r-profile-2", rank=1, share=0.7):
        found = look(run)
    assert found.verdict.bottleneck.kind == "straggler", found.report
    assert "rank 1" in found.verdict.bottleneck.change and "held up" in found.verdict.bottleneck.change


@contextlib.contextmanager
def held_up(place: Path, rank: int, share: float) -> Iterator[None]:
    """The worker `rank` of what is profiled at `place` stands still for so much of the time that it trains."""
    over = threading.Event()

    def stop_and_go() -> None:
        while not over.wait(0.2 * (1 - share)):
            for path in place.glob(f".run-*/live/rank-{rank}.json"):
                with contextlib.suppress(OSError, ValueError):  # it comes and goes
                    sign = json.loads(path.read_text())
                    if sign["phase"] in ("data", "compute", "sync"):
                        os.kill(sign["pid"], signal.SIGSTOP)
                        over.wait(0.2 * share)
                        os.kill(sign["pid"], signal.SIGCONT)

    thread = threading.Thread(target=stop_and_go)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def as_command(directory: Path, run: Path, before: str, *inside: str) -> dict[str, Any]:
    """`profile.json` of `run`, profiled by a shell (in what `inside` starts it) that does `before` first."""
    words = [*inside, "sh", "-c", f'{before} && exec "$@"', "sh", sys.executable, "-m", "tutti"]
    answer = subprocess.run(
        [*words, "profile", str(run), "--steps", "6", "--json"],
        capture_output=True,
        text=True,
        cwd=directory,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])},
    )
    assert answer.returncode == 0, answer.stderr
    found: dict[str, Any] = json.loads(answer.stdout)
    return found


@ROOT
@pytest.mark.skipif(not (shutil.which("unshare") and shutil.which("tc")), reason="needs unshare and tc")
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.distributed
def test_a_link_that_carries_little(tmp_path: Path) -> None:
    run = a_run(tmp_path, net(6, 1024), workers=2, train={"batch": 512})
    shaped = "ip link set lo up && tc qdisc add dev lo root tbf rate 400mbit burst 128kb latency 500ms"
    # A network of its own, whose loopback carries 50 MB/s.
    found = as_command(tmp_path, run, shaped, "unshare", "--net")
    assert found["bottleneck"] == "communication", found
    assert found["ways"]["link_bytes_per_second"] < 60e6
    assert found["verdict"]["change"].startswith("sync="), found["verdict"]
    assert found["verdict"]["expected_seconds"] < 0.8 * found["step_seconds"]


@pytest.fixture
def narrow() -> Iterator[Path]:
    """A control group whose processes may have 1.25 GB together."""
    of_memory = Path("/sys/fs/cgroup/memory")  # version 1, or else the only tree
    top, limit = (
        (of_memory, "memory.limit_in_bytes") if of_memory.is_dir() else (of_memory.parent, "memory.max")
    )
    group = top / f"tutti-profile-{os.getpid()}"
    try:
        group.mkdir()
        (group / limit).write_text(str(1_250_000_000))
    except OSError as error:
        with contextlib.suppress(OSError):
            group.rmdir()
        pytest.skip(f"no control group for memory: {error}")
    yield group
    for _ in range(50):  # its last process may still be ending
        with contextlib.suppress(OSError):
            group.rmdir()
            break
        time.sleep(0.1)


@ROOT
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.distributed
def test_files_for_which_there_is_no_memory(tmp_path: Path, narrow: Path) -> None:
    small = {"batch": 64, "micro_batch": 64}
    run = a_run(tmp_path, net(8, 2048), train=small, memory={"offload": "all", "recompute": "none"})
    found = as_command(tmp_path, run, f"echo $$ > {narrow}/cgroup.procs")
    assert found["memory_bytes"] < 1_300_000_000
    assert found["bottleneck"] == "memory", found
    assert found["ranks"][0]["major_faults"] >= 1
    assert "more memory" in found["verdict"]["change"]
