"""What a policy holds of a model beside its weights, gradients and optimizer: what a memory budget has to count."""

from __future__ import annotations

from dataclasses import dataclass

from tutti.config.agreement import SyncConfig
from tutti.sync.codecs import make_codec

_FP32 = 4


@dataclass(frozen=True)
class Held:
    """Of one replica, in bytes a parameter that learns.

    kept: all the time. exchanging: besides, while replicas exchange, when a step's activations are gone. buffers:
    gradients lie in buffers that are always there, not only after backward. served: the optimizer is at a server.
    """

    kept: float
    exchanging: float
    buffers: bool = False
    served: bool = False


def held_by(sync: SyncConfig, replicas: int) -> Held:
    """What the decided `sync` holds in one of so many replicas."""
    several = replicas > 1
    # One replica exchanges nothing; a server's replica does so with the server.
    owed = _FP32 if make_codec(sync).needs_feedback and (several or sync.policy == "server") else 0
    coded = 0 if sync.codec == "fp32" or not several else 2 * _FP32
    if sync.policy == "server":
        # What goes, as numbers and as a packet, and what comes.
        return Held(owed, 3 * _FP32 + owed, served=True)
    if sync.policy == "allreduce":
        late = 2 * _FP32 if sync.overlap else 0  # gradients of two steps, and the weights before the last
        return Held(late + owed, owed or coded // 4, buffers=several or late > 0)
    agreed: float = _FP32 + (_FP32 if sync.policy == "diloco" else 0)  # weights, and the outer momentum
    if sync.overlap:  # what a fragment's turn is about, and its mean, are there while training goes on
        agreed += 2 * _FP32 / sync.fragments
    # What was done, and its mean; of gossip also a parcel on both ways.
    mixing = 6 if sync.policy == "gossip" and several else 2
    return Held(agreed + owed, mixing * _FP32 + coded, buffers=several and sync.synchronous_steps > 0)
