"""Which policy goes with which codec, and why not."""

from __future__ import annotations

from tutti.config.schema import SyncConfig
from tutti.core import ConfigError

#: Codecs whose payloads travel as bytes, not as numbers that add up on the way.
_BYTES = ("int8", "int4", "topk")


def inadmissible(sync: SyncConfig, precision: str) -> str | None:
    """Why `sync` cannot be in a run whose arithmetic is `precision`; None: it can."""
    if sync.then is not None and sync.codec not in _BYTES:
        return f"then: {sync.then} cannot compress codec {sync.codec}, whose numbers are added up on the way"
    if sync.implementation == "ddp" and sync.codec != "fp32":
        return f"implementation: ddp sums gradients as they are; codec {sync.codec} needs implementation: buckets"
    if sync.policy == "allreduce" and precision == "fp16" and sync.codec != "fp32":
        return (
            f"codec {sync.codec} with train.precision: fp16: gradients carry a loss scale that changes, and "
            "overflow until it fits; a codec writes no overflow, and what it owes would be of another scale"
        )
    if sync.membership == "elastic" and sync.policy == "allreduce":
        if sync.implementation == "ddp":
            return "implementation: ddp cannot change its members: take membership: fixed, or implementation: buckets"
        if precision == "fp16":
            return (
                "allreduce with train.precision: fp16 needs membership: fixed, because a newcomer would not know the "
                "loss scale"
            )
    return None


def check_sync(sync: SyncConfig, precision: str) -> None:
    """Raise ConfigError where `inadmissible` has a reason; what is undecided is checked by `ladder`."""
    reason = None if sync.undecided else inadmissible(sync, precision)
    if reason is not None:
        raise ConfigError(f"sync: {reason}", "the table of what goes together: docs/reference/sync.md")
