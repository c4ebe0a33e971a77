"""One run on several hosts (network namespaces), by `tutti train --listen` and `tutti join` as a user types them."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median

from benchmarks.network.hosts import Hosts, address
from tutti.core import read_events

_PORT = 29400
_TUTTI = (sys.executable, "-m", "tutti")


def train(
    work: Path,
    hosts: Hosts,
    each: int,
    words: Sequence[str],
    *,
    until: int | None = None,
    seconds: float = 900,
) -> Path:
    """Train with `each` replicas on every host and the overrides `words`; the run's directory on the first host.

    `until`: stop there after so many steps. Texts stay prepared in `work`. Ends the program when a host fails, or all
    are too slow.
    """
    for host in range(hosts.count):
        shutil.rmtree(work / f"host-{host}", ignore_errors=True)
        (work / f"host-{host}").mkdir()
    (work / "host-0" / "c.yaml").write_text("{}\n")
    (work / "key").write_text(secrets.token_hex(32))
    listen, key = f"{address(0)}:{_PORT}", ("--key", "../key")
    begun = [
        _begin(
            hosts,
            0,
            work,
            [
                *(*_TUTTI, "train", "c.yaml", "name=r", f"replicas={each * hosts.count}"),
                *("data.cache=../cache-0", *words, "--listen", listen, "--here", str(each), *key),
            ],
        )
    ]
    for host in range(1, hosts.count):
        join = [*_TUTTI, "join", listen, "--replicas", str(each), "--cache", f"../cache-{host}", *key]
        begun.append(_begin(hosts, host, work, join))
    run = work / "host-0" / "runs" / "r"
    deadline = time.monotonic() + seconds
    try:
        while any(process.poll() is None for process in begun):
            time.sleep(0.2)
            if until is not None and _reached(run) >= until and begun[0].poll() is None:
                begun[0].send_signal(signal.SIGINT)
                until = None
            if time.monotonic() > deadline:
                sys.exit(f"it did not end within {seconds:.0f} s:\n{_said(work, 0)}")
        for host, process in enumerate(begun):
            if process.returncode not in (0, 130):
                sys.exit(f"host {host} ended with {process.returncode}:\n{_said(work, host)}")
    finally:
        for process in begun:
            process.kill()
    return run


def step_seconds(run: Path, first: int, last: int) -> float:
    """The median step of the first replica, from the end of step `first` to that of `last`."""
    return median(step_times(run, first, last))


def step_times(run: Path, first: int, last: int) -> list[float]:
    """Seconds of every step after `first`, to `last`."""
    steps = sorted((e["step"], e["time"]) for e in read_events(run, "step") if e["rank"] == 0)
    times = [time for step, time in steps if first <= step <= last]
    return [later - earlier for earlier, later in pairwise(times)]


def _reached(run: Path) -> int:
    """The first replica's last step."""
    return max((e["step"] for e in read_events(run, "step") if e["rank"] == 0), default=0)


def _said(work: Path, host: int) -> str:
    return (work / f"host-{host}" / "said").read_text(errors="replace")


def _begin(hosts: Hosts, host: int, work: Path, words: list[str]) -> subprocess.Popen[bytes]:
    place = work / f"host-{host}"
    with (place / "said").open("wb") as said:
        inside = ["ip", "netns", "exec", hosts.space(host), *words]
        return subprocess.Popen(inside, cwd=place, stdout=said, stderr=said, env=dict(os.environ))
