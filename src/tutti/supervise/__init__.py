"""A run from its first process to its report: launch the workers, show them, watch them, sum them up."""

from tutti.supervise.groups import GroupsSupervision
from tutti.supervise.guest import Visit
from tutti.supervise.local import Supervision
from tutti.supervise.measured import candidate
from tutti.supervise.reception import Reception, read_key, split_address
from tutti.supervise.started import in_started_world, run_in_started_world

__all__ = [
    "GroupsSupervision",
    "Reception",
    "Supervision",
    "Visit",
    "candidate",
    "in_started_world",
    "read_key",
    "run_in_started_world",
    "split_address",
]
