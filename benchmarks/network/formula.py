"""Bytes that a member sends in a step (and gets back, where there is a server), written down from what a codec is,
not from how Tutti carries it out.

Σ over n members: a ring all-reduce sends 2 (n − 1)/n of its numbers (Patarasuk and Yuan 2009), and so do members that
swap pieces and gather their sums; payloads that only make sense whole go to each of the n − 1 others.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from benchmarks.network.arms import Arm

Shape = tuple[int, ...]


def bytes_a_step(arm: Arm, shapes: Sequence[Shape], members: int) -> float | None:
    """Mean bytes that one of `members` sends in a step of a model with parameters of `shapes`; None: not known."""
    numbers = sum(prod(shape) for shape in shapes)
    ring, others = 2 * (members - 1) / members, members - 1
    if arm.peer is not None:
        of_peer = {
            "ddp_bf16": 2 * numbers * ring,
            "ddp_powersgd": _thin(shapes, arm.sync.get("matrix_rank", 1)) * ring,
            "torchft_diloco": 4 * numbers * ring / arm.every,
        }
        return of_peer.get(arm.peer)
    if arm.served:
        return 2 * payload_bytes(arm.sync, shapes)  # a gradient up, how the weights changed down
    if arm.sync.get("policy", "allreduce") not in ("allreduce", "local_sgd", "diloco"):
        return None
    payload = payload_bytes(arm.sync, shapes)
    once = payload * (others if arm.sync["codec"] == "topk" else ring)
    return once / arm.every


def payload_bytes(sync: dict[str, Any], shapes: Sequence[Shape]) -> float:
    """All parameters as the codec of `sync` writes them."""
    numbers = sum(prod(shape) for shape in shapes)
    codec = sync["codec"]
    if codec == "powersgd":
        return _thin(shapes, sync["matrix_rank"])
    if codec == "topk":
        kept, blocks = round(4096 * sync["density"]), numbers / 4096
        value = {16: kept * 2, 2: kept * 0.25 + 4}[sync.get("value_bits", 16)]
        return blocks * (kept * 1.5 + value)
    a_number = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1 + 2 / 256, "int4": 0.5 + 2 / 64}[codec]
    return numbers * a_number


def _thin(shapes: Sequence[Shape], rank: int) -> float:
    """PowerSGD (Vogels et al. 2019): r columns and r rows of every matrix, vectors as they are, fp32."""
    return 4.0 * sum(
        rank * (shape[0] + prod(shape[1:])) if len(shape) > 1 else prod(shape) for shape in shapes
    )
