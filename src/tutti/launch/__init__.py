"""From one run to its processes: workers on this machine, started, watched and restarted."""

from tutti.launch.agent import ReplicaAgent
from tutti.launch.local import LAUNCHER_RANK, LocalLaunch, Outcome

__all__ = ["LAUNCHER_RANK", "LocalLaunch", "Outcome", "ReplicaAgent"]
