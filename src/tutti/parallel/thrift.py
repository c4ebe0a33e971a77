"""Ways to need less memory, and the cheapest that stays below a budget."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch

from tutti.config.layout import LayoutConfig
from tutti.core import ConfigError
from tutti.parallel.memory import MemoryModel, Thrift

#: Time of a step relative to keeping everything, as benchmarks/memory finds it; for what lies elsewhere more than that,
#: because there it lay in the system's cache: where memory is really short, a disk or a bus decides.
_COST = {"none": 1.0, "selective": 1.2, "full": 1.3}
_OFFLOAD_COST = {"none": 1.0, "activations": 1.4, "optimizer": 1.5, "all": 3.0}
_SMALLER_BATCH_COST = 1.03


def choose_thrift(model: MemoryModel, budget_bytes: int, allowed: list[Thrift]) -> tuple[Thrift, str]:
    """The cheapest of `allowed` that fits, and why.

    Raises:
        ConfigError: none fits; says by how much, and what would.
    """
    needs = [(thrift, model.need(thrift)) for thrift in allowed]
    largest = max(thrift.micro_batch for thrift in allowed)

    def price(thrift: Thrift) -> float:
        halvings = (largest // thrift.micro_batch).bit_length() - 1
        return float(_COST[thrift.recompute] * _OFFLOAD_COST[thrift.offload] * _SMALLER_BATCH_COST**halvings)

    fitting = [(price(thrift), thrift, need) for thrift, need in needs if need.total <= budget_bytes]
    if not fitting:
        thrift, need = min(needs, key=lambda entry: entry[1].total)
        raise ConfigError(
            f"memory.budget {_megabytes(budget_bytes)} is too small: even with recompute {thrift.recompute}, offload "
            f"{thrift.offload} and {thrift.micro_batch} sample at once a rank needs {_megabytes(need.total)}, "
            f"{_megabytes(need.total - budget_bytes)} more",
            f"set memory.budget to {math.ceil(need.total / 1e6)}MB, or split the model further with layout",
        )
    _, thrift, need = min(fitting, key=lambda entry: entry[0])
    freely = max(needs, key=lambda entry: entry[1].total)[1]
    return thrift, (
        f"a rank needs about {_megabytes(need.total)} of {_megabytes(budget_bytes)} "
        f"(nothing spared, it would be {_megabytes(freely.total)})"
    )


def possible_offloads(device: torch.device, layout: LayoutConfig, optimizer: str = "adamw") -> list[str]:
    """What `device` can keep elsewhere: an accelerator's state goes to the host by way of FSDP alone; Adafactor's is
    nothing to speak of."""
    sharded = device.type == "cpu" or layout.data > 1
    possible = [name for name in _OFFLOAD_COST if sharded or name in ("none", "activations")]
    return [name for name in possible if name != "optimizer" or optimizer != "adafactor"]


def check_offload(offload: str, device: torch.device, layout: LayoutConfig, optimizer: str = "adamw") -> None:
    """Raise ConfigError where `offload` would have no effect."""
    if offload == "optimizer" and optimizer == "adafactor":
        raise ConfigError(
            "memory.offload: optimizer has nothing to keep elsewhere: adafactor has a number for each row and column",
            "set memory.offload to all, which takes parameters and gradients as well, or to none",
        )
    if offload != "auto" and offload not in possible_offloads(device, layout):
        raise ConfigError(
            f"memory.offload: {offload} needs a sharded model on {device.type}",
            "set layout.shard to 2 or more, or memory.offload to activations",
        )


def ways(
    recompute: str,
    offload: str,
    micro_batch: int,
    *,
    smaller: bool,
    offloads: Sequence[str] = tuple(_OFFLOAD_COST),
) -> list[Thrift]:
    """Every combination that `auto`s leave open; `smaller`: micro-batches may be halved; `offloads`: possible ones."""
    recomputes = list(_COST) if recompute == "auto" else [recompute]
    offloads = offloads if offload == "auto" else [offload]
    sizes = [micro_batch]
    while smaller and sizes[-1] > 1:
        sizes.append(sizes[-1] // 2)
    return [Thrift(*combination) for combination in itertools.product(recomputes, offloads, sizes)]


def _megabytes(count: float) -> str:
    if count >= 1e9:
        return f"{count / 1e9:.2f} GB"
    return f"{count / 1e6:.1f} MB" if count < 1e8 else f"{count / 1e6:.0f} MB"
