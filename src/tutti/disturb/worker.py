"""A worker that may be cut off: what it does before it is a worker like any other."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tutti.disturb.firewall import enter


@dataclass(frozen=True)
class Fragile:
    """What a worker that may be cut off is told: what any worker is, and the control groups of the replicas.

    `replica` None: all replicas are one world, and the rank says which one this is.
    """

    entry: Callable[[Any], None]
    assignment: Any
    replica: int | None
    parts: int
    groups: tuple[Path, ...]


def fragile_main(fragile: Fragile) -> None:
    """Be a worker as `fragile.entry` has it, in the control group of its replica."""
    replica = int(os.environ["RANK"]) // fragile.parts if fragile.replica is None else fragile.replica
    enter(fragile.groups[replica])
    fragile.entry(fragile.assignment)
