"""The whole machine in one look: what it has, how fast it is, what is missing and how to get it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from tutti.hardware.cores import Cores, probe_cores
from tutti.hardware.devices import Device, probe_devices
from tutti.hardware.disk import Disk, probe_disk
from tutti.hardware.matmul import DTYPES, WORTHWHILE, measure_matmul
from tutti.hardware.memory import Memory, probe_memory
from tutti.hardware.network import Network, probe_network

_PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "torchft")

#: Packages that only some things need: module → (package, what needs it).
_OPTIONAL = {
    "torchft": ("torchft", "replicas that come and go (sync.policy: local_sgd, diloco, gossip)"),
    "tensorboard": ("tensorboard", "curves in TensorBoard"),
    "matplotlib": ("matplotlib", "the loss curve as a picture"),
    "s3fs": ("s3fs", "text at s3:// URLs"),
    "gcsfs": ("gcsfs", "text at gs:// URLs"),
    "aiohttp": ("aiohttp", "text at http:// and https:// URLs"),
}
_LITTLE_DISK_BYTES = 5_000_000_000
_LITTLE_SHARED_BYTES = 256_000_000


@dataclass(frozen=True)
class Missing:
    """Something that is missing or slow here (`what`), and how to get it or what follows (`how`)."""

    what: str
    how: str


@dataclass(frozen=True)
class Machine:
    """One machine. `matmul_flops`: FLOP/s by device (`cpu`, `cuda:0`) and number format (0: refused)."""

    system: str
    python: str
    cores: Cores
    memory: Memory
    disk: Disk
    network: Network
    devices: tuple[Device, ...]
    matmul_flops: dict[str, dict[str, float]]
    versions: dict[str, str]
    missing: tuple[Missing, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        plain: dict[str, Any] = _plain(asdict(self))
        return plain


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def probe(directory: Path | None = None) -> Machine:
    """Measure this machine in some three seconds; runs would be written to `directory` (default: here)."""
    cores, memory, devices = probe_cores(), probe_memory(), probe_devices()
    disk = probe_disk(directory or Path.cwd())
    rates = {"cpu": {name: measure_matmul(name, threads=cores.usable, seconds=0.2) for name in DTYPES}}
    for device in devices:
        place = f"{device.kind}:{device.index}"
        rates[place] = {name: measure_matmul(name, device=place, seconds=0.2) for name in DTYPES}
    versions = {name: found for name in _PACKAGES if (found := _version(name)) is not None}
    return Machine(
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        cores=cores,
        memory=memory,
        disk=disk,
        network=probe_network(),
        devices=devices,
        matmul_flops=rates,
        versions=versions,
        missing=tuple(find_missing(cores, memory, disk, devices, rates["cpu"])),
    )


def find_missing(
    cores: Cores, memory: Memory, disk: Disk, devices: tuple[Device, ...], cpu: dict[str, float]
) -> list[Missing]:
    """What a user of this machine should know, the more serious first."""
    found = []
    if disk.problem is not None:
        found.append(
            Missing(
                f"{disk.path} cannot be written: {disk.problem}", "choose a directory that you may write to"
            )
        )
    if disk.free_bytes < _LITTLE_DISK_BYTES:
        found.append(
            Missing(
                f"only {disk.free_bytes / 1e9:.1f} GB free on the disk of {disk.path}",
                "free some, or put `runs` and `data.cache` elsewhere; checkpoints take 12 bytes a parameter",
            )
        )
    if memory.shared_memory_bytes is not None and memory.shared_memory_bytes < _LITTLE_SHARED_BYTES:
        found.append(
            Missing(
                f"/dev/shm has only {memory.shared_memory_bytes / 1e6:.0f} MB free; workers share it",
                "in Docker: `docker run --shm-size=1g …`; elsewhere: `mount -o remount,size=1g /dev/shm`",
            )
        )
    if all(shutil.which(compiler) is None for compiler in ("g++", "clang++", "c++")):
        found.append(
            Missing(
                "no C++ compiler: train.compile will fall back to eager mode",
                "Debian: `apt install g++`; Fedora: `dnf install gcc-c++`; macOS: `xcode-select --install`",
            )
        )
    if cores.quota is not None and cores.quota < cores.allowed:
        found.append(
            Missing(
                f"this container may use {cores.quota:g} of {cores.allowed} cores",
                f"Tutti counts on {cores.usable} of them; raise the container's CPU limit for more",
            )
        )
    bf16, fp32 = cpu["bf16"], cpu["fp32"]
    if not devices and bf16 < WORTHWHILE * fp32:
        found.append(
            Missing(
                f"bf16 brings nothing on this CPU: {bf16 / 1e9:.3g} GFLOP/s, fp32 {fp32 / 1e9:.3g}",
                "precision: auto takes fp32 here; CPUs with AVX512-BF16 or AMX run bf16 several times faster",
            )
        )
    if not devices and _has_nvidia_driver() and torch.version.cuda is None:
        found.append(
            Missing(
                "there is an NVIDIA driver, but this torch is built for CPUs only",
                "install the CUDA build of torch: https://pytorch.org/get-started/locally says which one",
            )
        )
    for module, (package, purpose) in _OPTIONAL.items():
        if importlib.util.find_spec(module) is None:
            found.append(Missing(f"{package} is not installed: {purpose}", f"`pip install {package}`"))
    return found


def _has_nvidia_driver() -> bool:
    return shutil.which("nvidia-smi") is not None or Path("/proc/driver/nvidia/version").exists()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
