"""Which policy goes with which codec, arithmetic, optimizer and layout, and why not."""

from __future__ import annotations

from tutti.config.agreement import SyncConfig
from tutti.core import ConfigError

#: Codecs whose payloads travel as bytes, not as numbers that add up on the way.
_BYTES = ("int8", "int4", "topk")


def inadmissible(sync: SyncConfig, precision: str, *, optimizer: str = "adamw", parts: int = 1) -> str | None:
    """Why `sync` cannot be in a run whose arithmetic is `precision`; None: it can. `parts`: ranks of a replica."""
    if sync.then is not None and sync.codec not in _BYTES:
        return f"then: {sync.then} cannot compress codec {sync.codec}, whose numbers are added up on the way"
    if sync.implementation == "ddp" and sync.codec != "fp32":
        return f"implementation: ddp sums gradients as they are; codec {sync.codec} needs implementation: buckets"
    if sync.policy == "gossip" and sync.codec == "powersgd":
        return "codec powersgd takes two sums over all replicas, and a replica that gossips sends to one at a time"
    if sync.policy == "allreduce" and precision == "fp16" and sync.codec != "fp32":
        return (
            f"codec {sync.codec} with train.precision: fp16: gradients carry a loss scale that changes, and "
            "overflow until it fits; a codec writes no overflow, and what it owes would be of another scale"
        )
    if sync.policy == "diloco" and sync.every != "auto" and sync.every // sync.fragments <= sync.overlap:
        return (
            f"a fragment's turn comes every {sync.every // sync.fragments} steps (every: {sync.every}, fragments: "
            f"{sync.fragments}), so overlap: {sync.overlap} must be less than that"
        )
    if sync.overlap and sync.policy == "allreduce":
        reason = _not_late(sync, precision, parts)
        if reason is not None:
            return reason
    if sync.overlap and sync.policy not in ("allreduce", "diloco"):
        return f"overlap is of allreduce and diloco, not of policy {sync.policy}"
    if sync.membership == "elastic" and sync.policy == "allreduce":
        if sync.implementation == "ddp":
            return "implementation: ddp cannot change its members: take membership: fixed, or implementation: buckets"
        if precision == "fp16":
            return (
                "allreduce with train.precision: fp16 needs membership: fixed, because a newcomer would not know the "
                "loss scale"
            )
    if sync.synchronous_steps and sync.policy in ("allreduce", "server"):
        return f"synchronous_steps come before rounds, which policy {sync.policy} has not"
    if sync.synchronous_steps and precision == "fp16":
        return "synchronous_steps with train.precision: fp16: a newcomer would not know the loss scale"
    if sync.policy == "server":
        return _not_served(sync, precision, optimizer, parts)
    return None


def _not_late(sync: SyncConfig, precision: str, parts: int) -> str | None:
    if sync.overlap > 1:
        return f"allreduce with overlap: {sync.overlap}: a gradient is one step late at most; take overlap: 1"
    if sync.implementation == "ddp":
        return (
            "implementation: ddp waits for its sums before the step; overlap: 1 needs implementation: buckets"
        )
    if sync.membership == "elastic":
        return "allreduce with overlap: 1 needs membership: fixed: who joins or leaves would meet a gradient under way"
    if precision == "fp16":
        return "allreduce with overlap: 1 and train.precision: fp16: a late gradient may be of another loss scale"
    if parts > 1:
        return (
            f"allreduce with overlap: 1 needs a whole copy on every rank, and layout splits one over {parts}"
        )
    return None


def _not_served(sync: SyncConfig, precision: str, optimizer: str, parts: int) -> str | None:
    if sync.codec == "powersgd":
        return "codec powersgd is a sum over replicas in several exchanges; policy server gets gradients one by one"
    if precision == "fp16":
        return (
            "policy server with train.precision: fp16: gradients carry a loss scale that each replica changes by "
            "itself, and the server adds them up"
        )
    if optimizer in ("muon", "adafactor") and parts > 1:
        return (
            f"policy server steps each of the {parts} parts of layout alone, and optimizer {optimizer} needs whole "
            "matrices"
        )
    return None


def check_sync(sync: SyncConfig, precision: str, *, optimizer: str = "adamw", parts: int = 1) -> None:
    """Raise ConfigError where `inadmissible` has a reason; what is undecided is checked by `ladder`."""
    reason = None if sync.undecided else inadmissible(sync, precision, optimizer=optimizer, parts=parts)
    if reason is not None:
        raise ConfigError(f"sync: {reason}", "the table of what goes together: docs/reference/sync.md")
