"""How many cores this process may really use: affinity and container quota, not what the machine has."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

import psutil

from tutti.hardware.cgroup import cpu_quota


@dataclass(frozen=True)
class Cores:
    """Cores of this machine; `usable` is what workers and threads are counted by."""

    usable: int
    logical: int
    physical: int | None
    allowed: int
    quota: float | None
    name: str


def probe_cores(root: Path = Path("/")) -> Cores:
    """Look at affinity, container quota and the processor's name."""
    logical = os.cpu_count() or 1
    # macOS and Windows know no affinity.
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else logical
    quota = cpu_quota(root)
    usable = allowed if quota is None else max(1, min(allowed, int(quota)))
    return Cores(usable, logical, psutil.cpu_count(logical=False), allowed, quota, _name(root))


def usable_cores() -> int:
    """Cores that this process may use: at least 1."""
    return probe_cores().usable


def _name(root: Path) -> str:
    try:
        for line in (root / "proc/cpuinfo").read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip().lower() in ("model name", "hardware"):
                return value.strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
