"""Accelerators that this torch can see, through `torch.accelerator` (CUDA, ROCm, XPU, MPS, …)."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Device:
    """One accelerator; `memory_bytes` is None where the backend does not say."""

    kind: str
    index: int
    name: str
    memory_bytes: int | None
    free_bytes: int | None


def probe_devices() -> tuple[Device, ...]:
    """Every accelerator; empty on a machine that has only its CPU."""
    if not torch.accelerator.is_available():
        return ()
    accelerator = torch.accelerator.current_accelerator()
    kind = accelerator.type if accelerator is not None else "unknown"
    return tuple(_device(kind, index) for index in range(torch.accelerator.device_count()))


def _device(kind: str, index: int) -> Device:
    if kind == "cuda":
        free, total = torch.cuda.mem_get_info(index)
        return Device(kind, index, torch.cuda.get_device_name(index), total, free)
    backend = getattr(torch, kind, None)
    name = getattr(backend, "get_device_name", None)
    properties = getattr(backend, "get_device_properties", None)
    memory = getattr(properties(index), "total_memory", None) if callable(properties) else None
    return Device(kind, index, str(name(index)) if callable(name) else kind, memory, None)
