"""What a container may use: Linux control groups, version 2 and version 1.

A limit may stand on any level between this process's group and the root, and the tightest one counts.
Every function takes the root of the file system, so that tests can bring their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Directories that may limit this process for version-1 `controller` or in version 2, innermost first."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if controllers == "":  # version 2: one tree for everything
            top = root / "sys/fs/cgroup"
        elif controller in controllers.split(","):
            top = root / "sys/fs/cgroup" / controller
        else:
            continue
        # Inside a container the path may be the host's; the limits are then visible at the top.
        place = top / group.strip().lstrip("/")
        while place != top and top in place.parents:
            yield place
            place = place.parent
        yield top


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []


def _number(path: Path) -> int | None:
    words = _words(path)
    return int(words[0]) if len(words) == 1 and words[0].lstrip("-").isdigit() else None


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Cores' worth of time that this process may use, or None when there is no limit."""
    quotas = []
    for group in _groups(root, "cpu"):
        words = _words(group / "cpu.max")  # "200000 100000" or "max 100000"
        if len(words) == 2 and words[0].isdigit() and words[1].isdigit():
            quotas.append(int(words[0]) / int(words[1]))
        quota, period = _number(group / "cpu.cfs_quota_us"), _number(group / "cpu.cfs_period_us")
        if quota is not None and quota > 0 and period:
            quotas.append(quota / period)
    return min(quotas, default=None)


def memory_limit(root: Path = Path("/")) -> tuple[int, int] | None:
    """(bytes this process's group may use, bytes of it in use that cannot be reclaimed), or None."""
    limits = []
    for group in _groups(root, "memory"):
        for limit_file, usage_file, cache_key in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            limit = _number(group / limit_file)
            if limit is None or limit >= 1 << 60:  # version 1 says "no limit" by a huge number
                continue
            used = _number(group / usage_file) or 0
            statistics = _words(group / "memory.stat")
            pairs = dict(zip(statistics[::2], statistics[1::2], strict=False))
            limits.append((limit, max(0, used - int(pairs.get(cache_key, 0)))))
    return min(limits, key=lambda pair: pair[0] - pair[1], default=None)
