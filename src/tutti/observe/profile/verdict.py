"""What holds a training up: of all that a step spends beside computing, what costs most.

A step has to compute. Whatever else takes a fifth of it stands in the way and is the bottleneck, the dearest first;
where nothing does, it is computing itself. What costs a twentieth or more is named after it.
"""

from __future__ import annotations

from dataclasses import dataclass

from tutti.observe.profile.agreeing import communication, straggler
from tutti.observe.profile.cause import Cause
from tutti.observe.profile.computing import compute, host
from tutti.observe.profile.feeding import checkpoint, data, memory, recomputing, validation
from tutti.observe.profile.figures import Figures

__all__ = ["KINDS", "Cause", "Verdict", "judge"]

#: All that a verdict may name.
KINDS = (
    *("data", "compute", "communication", "memory", "straggler", "host", "checkpoint", "validation"),
)  # fmt: skip

#: Shares of a step from which something is the bottleneck, or worth a line.
STANDS_IN_THE_WAY, WORTH_A_LINE = 0.2, 0.05


@dataclass(frozen=True)
class Verdict:
    """The `bottleneck`, and what else costs something, the dearest first."""

    bottleneck: Cause
    others: tuple[Cause, ...]


def judge(figures: Figures) -> Verdict:
    """The verdict on the figures of a profile."""
    found = [
        cause
        for find in (data, communication, straggler, memory, recomputing, host, checkpoint, validation)
        if (cause := find(figures)) is not None and cause.share >= WORTH_A_LINE
    ]
    found.sort(key=lambda cause: -cause.seconds)
    own = compute(figures)
    if found and found[0].share >= STANDS_IN_THE_WAY:
        return Verdict(found[0], (*found[1:], own))
    return Verdict(own, tuple(found))
