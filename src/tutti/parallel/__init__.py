"""Inside a replica: who this process is, and one small module per way to split a model."""

from tutti.parallel.layout import apply_layout, undo_compile
from tutti.parallel.world import World, join_world, leave_world, pick_device, started_store

__all__ = [
    "World",
    "apply_layout",
    "join_world",
    "leave_world",
    "pick_device",
    "started_store",
    "undo_compile",
]
