"""Between replicas: policies (how copies agree), transports (what carries tensors), and the ledger of samples."""

from tutti.core.ranges import merge
from tutti.sync.admissible import check_sync, inadmissible
from tutti.sync.allreduce import AllReduce, DistributedDataParallelAllReduce
from tutti.sync.diloco import DiLoCo
from tutti.sync.elastic_allreduce import ElasticAllReduce
from tutti.sync.gossip import Gossip
from tutti.sync.joining import StateLost
from tutti.sync.late import LateAllReduce
from tutti.sync.ledger import Ledger, Range, count, cut, positions, share
from tutti.sync.local_sgd import LocalSGD
from tutti.sync.phased import SynchronousStart
from tutti.sync.policy import Meeting, Place, Policy, Totals
from tutti.sync.rounds import Rounds
from tutti.sync.streaming import StreamingDiLoCo
from tutti.sync.summing import Summing
from tutti.sync.transport import ByteMeter, PeerLost, StaticTransport, Transport

__all__ = [
    "AllReduce",
    "ByteMeter",
    "DiLoCo",
    "DistributedDataParallelAllReduce",
    "ElasticAllReduce",
    "Gossip",
    "LateAllReduce",
    "Ledger",
    "LocalSGD",
    "Meeting",
    "PeerLost",
    "Place",
    "Policy",
    "Range",
    "Rounds",
    "StateLost",
    "StaticTransport",
    "StreamingDiLoCo",
    "Summing",
    "SynchronousStart",
    "Totals",
    "Transport",
    "check_sync",
    "count",
    "cut",
    "inadmissible",
    "merge",
    "positions",
    "share",
]
