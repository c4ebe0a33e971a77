"""What this process has used so far, as the system counts it: processor time, pages, disk, and waiting for memory."""

from __future__ import annotations

import resource
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True)
class Counters:
    """So far. `delayed_seconds`: in which the main thread could have run, and others had the processor. `minor_faults`:
    pages that the system only had to hand over; `major_faults`: that it had to read from a disk. `read_bytes`,
    `written_bytes`: of disks. Of the whole machine: `swapped_bytes`, in and out, and `stalled_seconds`, in which
    somebody stood still for want of memory (Linux's pressure stall information). None: this system does not say."""

    user_seconds: float
    system_seconds: float
    delayed_seconds: float | None
    minor_faults: int
    major_faults: int
    read_bytes: int | None
    written_bytes: int | None
    swapped_bytes: int | None
    stalled_seconds: float | None


def read_counters(root: Path = Path("/")) -> Counters:
    """The counters of this process now."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    disk, swap = _disk(), _swap()
    return Counters(
        user_seconds=usage.ru_utime,
        system_seconds=usage.ru_stime,
        delayed_seconds=processor_delay(root),
        minor_faults=usage.ru_minflt,
        major_faults=usage.ru_majflt,
        read_bytes=disk[0],
        written_bytes=disk[1],
        swapped_bytes=swap,
        stalled_seconds=memory_stall(root),
    )


def memory_stall(root: Path = Path("/")) -> float | None:
    """Seconds since the start in which some process of the machine waited for memory; None: the system does not say."""
    try:
        lines = (root / "proc/pressure/memory").read_text().splitlines()
    except OSError:
        return None
    for line in lines:  # "some avg10=0.00 avg60=0.00 avg300=0.00 total=1234", in microseconds
        kind, *pairs = line.split()
        if kind == "some":
            found = dict(pair.partition("=")[::2] for pair in pairs)
            return int(found["total"]) / 1e6 if found.get("total", "").isdigit() else None
    return None


def processor_delay(root: Path = Path("/")) -> float | None:
    """Seconds in which this process's main thread waited for a processor; None: the system does not say."""
    try:
        words = (
            (root / "proc/self/schedstat").read_text().split()
        )  # nanoseconds run, nanoseconds waited, turns
    except OSError:
        return None
    return int(words[1]) / 1e9 if len(words) == 3 and words[1].isdigit() else None


def _disk() -> tuple[int | None, int | None]:
    try:
        counted = psutil.Process().io_counters()
    except (AttributeError, psutil.Error, OSError):  # macOS has none, and containers may refuse
        return None, None
    return int(counted.read_bytes), int(counted.write_bytes)


def _swap() -> int | None:
    try:
        swap = psutil.swap_memory()
    except (psutil.Error, OSError, RuntimeError):
        return None
    return int(swap.sin + swap.sout)
