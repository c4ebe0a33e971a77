"""A worker that may be stopped or cut off: what it does before it is a worker like any other."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tutti.disturb.firewall import enter

_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Fragile:
    """What a fragile worker is told: what any worker is, and the control groups of the replicas if links are cut.

    `replica` None: all replicas are one world, and the rank says which one this is.
    """

    entry: Callable[[Any], None]
    assignment: Any
    replica: int | None
    parts: int
    groups: tuple[Path, ...] = ()


def fragile_main(fragile: Fragile) -> None:
    """Be a worker as `fragile.entry` has it, in the control group of its replica."""
    with contextlib.suppress(AttributeError, OSError):  # Linux only
        # A stopped process cannot notice that its launcher was killed, and would lie there for ever.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
    if fragile.groups:
        replica = int(os.environ["RANK"]) // fragile.parts if fragile.replica is None else fragile.replica
        enter(fragile.groups[replica])
    fragile.entry(fragile.assignment)
