"""Inside a replica: who this process is, and one small module per way to split a model."""

from tutti.parallel.layout import Arithmetic, apply_language_layout, apply_layout, undo_compile
from tutti.parallel.offload import MappedFiles, keep_optimizer_state
from tutti.parallel.possible import (
    Limits,
    anything_else,
    check_layout,
    limits_of,
    limits_with_head,
    sharded_only,
)
from tutti.parallel.split import Split
from tutti.parallel.world import World, arrange, join_world, leave_world, pick_device, started_store

__all__ = [
    "Arithmetic",
    "Limits",
    "MappedFiles",
    "Split",
    "World",
    "anything_else",
    "apply_language_layout",
    "apply_layout",
    "arrange",
    "check_layout",
    "join_world",
    "keep_optimizer_state",
    "leave_world",
    "limits_of",
    "limits_with_head",
    "pick_device",
    "sharded_only",
    "started_store",
    "undo_compile",
]
