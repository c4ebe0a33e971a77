"""Proof: over kills, resumes and changing numbers of workers, every step trains on the samples that a list
written by an independent NumPy function names - nothing lost, nothing twice."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from runs import Running, SlowNet, regression
from tutti.core import read_events
from tutti.train.checkpoints import newest_valid, read_manifest
from tutti.train.checkpoints.manifest import LATEST, write_manifest, write_pointer

SAMPLES, BATCH, STEPS, SEED = 97, 12, 46, 11


def numpy_order(seed: int, samples: int, count: int) -> list[tuple[int, int]]:
    """The first `count` samples of the global order as (epoch, sample), written from
    docs/explanation/global-order.md with Python integers and NumPy, and none of Tutti's code."""

    def scramble(x: int) -> int:
        wide = 2**64
        z = (x + 0x9E3779B97F4A7C15) % wide
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % wide
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % wide
        return z ^ (z >> 31)

    half = max(1, -(-(samples - 1).bit_length() // 2))
    listed: list[tuple[int, int]] = []
    for epoch in range(-(-count // samples)):
        key = scramble(scramble(seed) ^ epoch)
        table = np.empty(4**half, dtype=np.int64)
        for x in range(4**half):
            left, right = x >> half, x & (2**half - 1)
            for turn in range(8):
                left, right = right, left ^ (scramble(right ^ scramble(key + turn)) & (2**half - 1))
            table[x] = (left << half) | right
        for place in range(samples):
            image = table[place]
            while image >= samples:
                image = table[image]
            listed.append((epoch, int(image)))
    return listed[:count]


def trained_samples(run: Path) -> dict[int, list[tuple[int, int]]]:
    """Step → its samples in order of ranks, read from the events: of each attempt the steps that the next one
    did not do again. Where members come and go, an attempt is a launch: who comes back begins where the others are."""
    starts = sorted(read_events(run, "run_started"), key=lambda event: event["time"])
    if all(start["transport"] == "elastic" for start in starts if start["replicas"] > 1):
        begun = [start for start in starts if start["attempt"] == 0]
        starts = [begun[0], *(b for a, b in pairwise(begun) if b["resumed_from"] != a["resumed_from"])]
    steps = list(read_events(run, "step"))
    surviving: dict[int, list[tuple[int, int]]] = {}
    for number, start in enumerate(starts):
        last = starts[number + 1] if number + 1 < len(starts) else None
        mine = [
            e
            for e in steps
            if start["time"] <= e["time"]
            and (last is None or (e["time"] < last["time"] and e["step"] <= last["resumed_from"]))
        ]
        for event in sorted(mine, key=lambda event: (event["step"], event["rank"])):
            ids = [(epoch, sample) for epoch, samples in event["samples"] for sample in samples]
            surviving.setdefault(event["step"], []).extend(ids)
    return surviving


def expected_steps() -> dict[int, list[tuple[int, int]]]:
    order = numpy_order(SEED, SAMPLES, BATCH * STEPS)
    return {step: order[(step - 1) * BATCH : step * BATCH] for step in range(1, STEPS + 1)}


def disturbed_run(run: Path, membership: str) -> None:
    """1 → 4 → 3 → 2 workers; the last three each lose a worker to SIGKILL: all begin again from the last checkpoint
    (fixed membership), or the others go on until it is back (elastic)."""
    arguments: dict[str, Any] = {
        "model": SlowNet(0.03),
        "loss": nn.MSELoss(),
        "data": regression(SAMPLES),
        "steps": STEPS,
        "batch": BATCH,
        "train__seed": SEED,
        "checkpoint__every": 3,
        "sync__membership": membership,
    }
    running = Running(run, workers=1, **arguments)
    running.until_step(8)
    running.stop(1)
    assert running.end()["state"] == "interrupted"
    for workers, victim, kill_at, stop_at in ((4, 3, 14, 20), (3, 0, 26, 30), (2, 1, 38, None)):
        running = Running(run, workers=workers, resume=True, **arguments)
        running.until_step(kill_at)
        running.kill(victim)
        running.until(lambda e: e["kind"] == "restart", "a restart")
        if stop_at is not None:
            if membership == "fixed":
                running.until(
                    lambda e: e["kind"] == "run_started" and e["attempt"] == 1, "the second attempt"
                )
            running.until_step(stop_at)
            running.stop(workers)
            assert running.end()["state"] == "interrupted"
    report = running.end()
    assert report["state"] == "finished"
    # Who is asked to stop while it is started anew, not knowing anything yet, is started once more.
    assert report["restarts"] == 3 or (membership == "elastic" and report["restarts"] > 3)


@pytest.mark.slow
@pytest.mark.parametrize("membership", ["fixed", "elastic"])
def test_the_samples_of_a_disturbed_run_are_those_of_the_list(tmp_path: Path, membership: str) -> None:
    disturbed_run(tmp_path / "run", membership)
    trained, expected = trained_samples(tmp_path / "run"), expected_steps()
    assert sorted(trained) == list(range(1, STEPS + 1))
    # A worker may be killed when a step that others complete has its gradient, and before it has said so.
    unsaid = [step for step in expected if trained[step] != expected[step]]
    assert len(unsaid) <= (3 if membership == "elastic" else 0), unsaid
    for step in unsaid:
        told = [sample for sample in expected[step] if sample in trained[step]]
        assert trained[step] == told and len(told) >= len(expected[step]) // 2, f"step {step}"


def advance_cursor(checkpoints: Path) -> None:
    """Make the newest checkpoint claim that one sample more was trained on."""
    path = newest_valid(checkpoints)
    assert path is not None
    manifest = read_manifest(path)
    manifest.meta["ledger"]["cursor"] += 1
    write_pointer(checkpoints / LATEST, path, write_manifest(path, manifest))


@pytest.mark.parametrize("tampered", [False, True])
def test_a_resume_one_sample_too_far_is_noticed(tmp_path: Path, tampered: bool) -> None:
    """The proof can fail: the same comparison tells a resume at cursor + 1 from a right one."""
    run = tmp_path / "run"
    arguments: dict[str, Any] = {
        "model": SlowNet(0.02),
        "loss": nn.MSELoss(),
        "data": regression(SAMPLES),
        "workers": 1,
        "steps": STEPS,
        "batch": BATCH,
        "train__seed": SEED,
    }
    running = Running(run, **arguments)
    running.until_step(7)
    running.stop(1)
    assert running.end()["state"] == "interrupted"
    if tampered:
        advance_cursor(run / "checkpoints")
    assert Running(run, resume=True, **arguments).end()["state"] == "finished"
    assert (trained_samples(run) == expected_steps()) != tampered
