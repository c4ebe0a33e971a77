"""How much memory there is for us: the machine's, or the container's where that is less."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import psutil

from tutti.hardware.cgroup import memory_limit


@dataclass(frozen=True)
class Memory:
    """Bytes. `limit_bytes` is the container's limit, None where there is none."""

    total_bytes: int
    available_bytes: int
    limit_bytes: int | None
    shared_memory_bytes: int | None


def probe_memory(root: Path = Path("/")) -> Memory:
    """Total and available memory, and the free space of `/dev/shm`, through which workers share tensors."""
    machine = psutil.virtual_memory()
    total, available = int(machine.total), int(machine.available)
    limit = memory_limit(root)
    shared = root / "dev/shm"
    free = int(psutil.disk_usage(str(shared)).free) if shared.is_dir() else None
    if limit is None or limit[0] >= total:
        return Memory(total, available, None, free)
    return Memory(limit[0], min(available, max(0, limit[0] - limit[1])), limit[0], free)
