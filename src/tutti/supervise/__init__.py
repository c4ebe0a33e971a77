"""A run from its first process to its report: launch the workers, show them, watch them, sum them up."""

from tutti.supervise.groups import GroupsSupervision
from tutti.supervise.local import Supervision
from tutti.supervise.started import in_started_world, run_in_started_world

__all__ = ["GroupsSupervision", "Supervision", "in_started_world", "run_in_started_world"]
