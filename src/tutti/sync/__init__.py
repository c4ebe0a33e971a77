"""Between replicas: policies (how copies agree), transports (what carries tensors), and the ledger of samples."""

from tutti.sync.allreduce import AllReduce, DistributedDataParallelAllReduce
from tutti.sync.diloco import DiLoCo
from tutti.sync.ledger import Ledger, Range, count, cut, merge, positions, share
from tutti.sync.policy import Meeting, Place, Policy, Totals
from tutti.sync.transport import ByteMeter, PeerLost, StaticTransport, Transport

__all__ = [
    "AllReduce",
    "ByteMeter",
    "DiLoCo",
    "DistributedDataParallelAllReduce",
    "Ledger",
    "Meeting",
    "PeerLost",
    "Place",
    "Policy",
    "Range",
    "StaticTransport",
    "Totals",
    "Transport",
    "count",
    "cut",
    "merge",
    "positions",
    "share",
]
