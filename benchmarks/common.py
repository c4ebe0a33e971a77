"""What every benchmark says and how: the machine it ran on, medians with their spread, dated result files."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch

from tutti.hardware import probe_cores

ROOT = Path(__file__).resolve().parent.parent

#: Instruction sets that decide how fast a CPU multiplies matrices.
_MATRIX_FLAGS = (
    "avx2",
    "fma",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "amx_tile",
    "amx_bf16",
    "asimd",
    "sve",
)
_PACKAGES = ("torch", "transformers", "accelerate", "numpy", "tutti")
#: Settings that change how torch computes or allocates.
_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "LD_PRELOAD", "MALLOC_ARENA_MAX", "GLIBC_TUNABLES")


def describe_machine() -> dict[str, Any]:
    """Processor, memory, kernel and versions, and how busy the machine was; JSON values."""
    cores = probe_cores()
    return {
        "processor": cores.name,
        "cores": cores.usable,
        "logical_cores": cores.logical,
        "instruction_sets": _instruction_sets(),
        "torch_capability": torch.backends.cpu.get_cpu_capability(),
        "memory_bytes": psutil.virtual_memory().total,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "packages": {name: found for name in _PACKAGES if (found := _version(name))},
        "variables": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "commit": _commit(),
    }


def machine_line(machine: dict[str, Any]) -> str:
    """One sentence about the machine, for the head of a report."""
    packages = ", ".join(f"{name} {number}" for name, number in machine["packages"].items())
    sets = " ".join(machine["instruction_sets"])
    return (
        f"{machine['processor']} ({sets}), {machine['cores']} cores, "
        f"{machine['memory_bytes'] / 2**30:.0f} GiB, {machine['system']}, Python {machine['python']}; {packages}; "
        f"load average before the run {machine['load_average']}"
    )


def median_and_spread(values: Sequence[float]) -> dict[str, Any]:
    """Median, smallest, largest and all values."""
    return {
        "median": statistics.median(values),
        "least": min(values),
        "most": max(values),
        "values": [round(value, 6) for value in values],
    }


def ratios(some: Sequence[float], others: Sequence[float]) -> dict[str, Any]:
    """`some` ÷ `others`, round by round (both were measured in the same round), as median and spread."""
    return median_and_spread([a / b for a, b in zip(some, others, strict=False)])


def say_ratio(ratio: dict[str, Any]) -> str:
    """`1.31 (1.28 to 1.34)`."""
    return f"{ratio['median']:.3f} ({ratio['least']:.3f} to {ratio['most']:.3f})"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write_result(directory: Path, name: str, data: dict[str, Any], page: str) -> Path:
    """Write `directory/DATE-name.json` and `.md`; called again as a run goes on, it replaces what it wrote."""
    directory.mkdir(parents=True, exist_ok=True)
    stem = directory / f"{date.today().isoformat()}-{name}"
    stem.with_suffix(".json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    stem.with_suffix(".md").write_text(page.rstrip() + "\n", encoding="utf-8")
    return stem.with_suffix(".md")


def pin(cores: str) -> None:
    """Keep this process and all its children on `cores`, e.g. `0,1` (nothing where the system cannot)."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {int(core) for core in cores.split(",")})
    else:
        print("this system cannot pin processes to cores", file=sys.stderr)


def first_cores(count: int) -> str:
    """The first `count` cores that this process may use, as `pin` takes them."""
    allowed = (
        sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    )
    return ",".join(str(core) for core in list(allowed)[:count])


def _instruction_sets() -> list[str]:
    try:
        text = Path("/proc/cpuinfo").read_text(errors="replace").lower()
    except OSError:
        return []
    flags = {
        word for line in text.splitlines() if line.startswith(("flags", "features")) for word in line.split()
    }
    return [name for name in _MATRIX_FLAGS if name in flags]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit that was measured, with `+` when files differ from it."""
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip()
        changed = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no", "src"],
            cwd=ROOT,
            capture_output=True,
            text=True,
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+" if changed.strip() else "")
