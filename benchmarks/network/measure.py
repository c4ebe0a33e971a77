"""The three things that are measured of an arm: what it learns, what a step takes at a rate, and a whole run there."""

from __future__ import annotations

import math
import os
import shutil
import time
from itertools import pairwise
from pathlib import Path

from benchmarks.common import describe_machine
from benchmarks.network import fleet
from benchmarks.network.arms import BASELINE, Arm, chosen
from benchmarks.network.formula import bytes_a_step
from benchmarks.network.hosts import Hosts
from benchmarks.network.origin import Origin
from benchmarks.network.results import Result
from benchmarks.network.setting import Setting
from tutti.core import read_events

#: Steps that come before those that count: connections, first rounds of a codec's memory.
_WARMUP_STEPS = 2


def convergence(origin: Origin, arm: Arm, factor: float, work: Path, longer: float = 1.0) -> Result:
    """Validation losses of `arm` at `factor` times the learning rate, which falls at the end of `longer` times the
    steps: replicas side by side, no pace, no network."""
    run = work / "run"
    steps = round(longer * origin.setting.steps)
    origin.branch(run, arm, steps=steps, factor=factor, validate=True)
    seconds = _train(origin, arm, run, hosts=None, paced=False, seconds=3600 + 60 * steps)
    result = {"curve": _curve(origin, run), "seconds": seconds} | _circumstances(run)
    shutil.rmtree(run)
    return result


def step_time(origin: Origin, arm: Arm, hosts: Hosts, rate: float, work: Path) -> Result:
    """Seconds and bytes of a step at `rate` Mbit/s (0: unshaped), of whole rounds, by the slowest replica."""
    run, setting = work / "run", origin.setting
    count, warmup = timed_steps(setting, origin, arm, rate), max(_WARMUP_STEPS, arm.every)
    hosts.shape(rate or None)
    # One step more: how replicas part at the end is no part of a step's time.
    origin.branch(run, arm, steps=warmup + count + 1, factor=1.0, validate=False)
    foreseen = (warmup + count) * foreseen_seconds(setting, origin, arm, rate)
    seconds = _train(origin, arm, run, hosts=hosts, paced=True, seconds=600 + 5 * foreseen)
    first = setting.origin_steps + warmup
    result = (
        _between(run, setting.replicas, first, first + count) | {"seconds": seconds} | _circumstances(run)
    )
    shutil.rmtree(run)
    return result


def full_run(origin: Origin, arm: Arm, factor: float, hosts: Hosts, rate: float, work: Path) -> Result:
    """The whole training over the network, at the pace, as a user would have it: the wall time of all its steps
    but the first two, and what of it the leading replica took to validate."""
    run, setting = work / "run", origin.setting
    hosts.shape(rate or None)
    origin.branch(run, arm, steps=setting.steps, factor=factor, validate=True)
    foreseen = setting.steps * foreseen_seconds(setting, origin, arm, rate)
    seconds = _train(origin, arm, run, hosts=hosts, paced=True, seconds=1800 + 5 * foreseen)
    begin = setting.origin_steps
    # After its first step every replica is quiet for a while (`counted.py`): the second one is the first that counts.
    found = _between(run, setting.replicas, begin + 2, begin + setting.steps)
    within = range(begin + 2, begin + setting.steps)  # after the end of these steps, before that of the last
    validating = sum(e["seconds"] for e in read_events(run, "validation") if e["step"] in within)
    result = (
        found
        | {
            "validating_seconds": validating,
            "curve": _curve(origin, run),
            "seconds": seconds,
            "factor": factor,
        }
        | _circumstances(run)
    )
    shutil.rmtree(run)
    return result


def foreseen_seconds(setting: Setting, origin: Origin, arm: Arm, rate: float) -> float:
    """What a step would take if nothing of the exchange were hidden behind computing."""
    sent = bytes_a_step(arm, origin.shapes, setting.replicas)
    if sent is None:
        sent = bytes_a_step(chosen([BASELINE])[0], origin.shapes, setting.replicas)
    assert sent is not None
    return setting.pace_seconds + (sent * 8 / (rate * 1e6) if rate else 0)


def timed_steps(setting: Setting, origin: Origin, arm: Arm, rate: float) -> int:
    """How many steps are timed: whole rounds."""
    affordable = int(setting.timed_seconds / foreseen_seconds(setting, origin, arm, rate))
    wanted = max(setting.least_timed_steps, min(setting.timed_steps, affordable))
    return math.ceil(wanted / arm.every) * arm.every


def _train(origin: Origin, arm: Arm, run: Path, *, hosts: Hosts | None, paced: bool, seconds: float) -> float:
    began = time.perf_counter()
    fleet.train(origin, arm, run, hosts=hosts, paced=paced, seconds=seconds)
    return time.perf_counter() - began


def _curve(origin: Origin, run: Path) -> list[tuple[int, float]]:
    """[steps since the origin, loss], the origin's own loss first."""
    first = [e for e in read_events(origin.run, "validation") if e["step"] == origin.setting.origin_steps]
    return [
        (event["step"] - origin.setting.origin_steps, event["loss"])
        for event in [*first[-1:], *sorted(read_events(run, "validation"), key=lambda e: e["step"])]
    ]


def _between(run: Path, replicas: int, first: int, last: int) -> Result:
    """From the end of step `first` to the end of step `last`: seconds of every step, bytes a step and replica."""
    counted = {(e["replica"], e["step"]): e for e in read_events(run, "counted")}
    ends = [max(counted[r, s]["time"] for r in range(replicas)) for s in range(first, last + 1)]
    idle = list(read_events(run, "idle"))
    result: Result = {
        "steps": last - first,
        "step_seconds": (ends[-1] - ends[0]) / (last - first),
        "each_seconds": [round(b - a, 4) for a, b in pairwise(ends)],
    }
    for name in ("metered", "sent", "received"):
        total = sum(counted[r, last][name] - counted[r, first][name] for r in range(replicas))
        result[name] = total / replicas / (last - first)
    for name in ("sent", "received"):
        result[f"idle_{name}_per_second"] = sum(e[name] / e["seconds"] for e in idle) / max(1, len(idle))
    return result


def _circumstances(run: Path) -> Result:
    """What a reader has to know beside the numbers: members lost on the way, the commit, how busy the machine was."""
    members = {tuple(e["replicas"]) for e in read_events(run, "membership")}
    return {
        "changes_of_members": max(0, len(members) - 1),
        "commit": describe_machine()["commit"],
        "load_average": round(os.getloadavg()[0], 2),
    }
