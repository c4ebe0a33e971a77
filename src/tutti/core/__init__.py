"""What every room speaks: errors, events, the run directory and a few small types.

The types need torch, which takes seconds to import; they are looked up when first asked for, so that
`tutti --help` and `tutti validate` answer at once.
"""

from typing import TYPE_CHECKING, Any

from tutti.core.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    LaunchError,
    ModelError,
    RunError,
    TrainingError,
    TuttiError,
)
from tutti.core.events import EventWriter, read_events
from tutti.core.files import write_json_atomically, write_text_atomically
from tutti.core.rundir import RunDirectory

if TYPE_CHECKING:
    from tutti.core.types import Batch, LossSum, Objective, SampleSource

__all__ = [
    "Batch",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "EventWriter",
    "LaunchError",
    "LossSum",
    "ModelError",
    "Objective",
    "RunDirectory",
    "RunError",
    "SampleSource",
    "TrainingError",
    "TuttiError",
    "read_events",
    "write_json_atomically",
    "write_text_atomically",
]

_NEED_TORCH = ("Batch", "LossSum", "Objective", "SampleSource")


def __getattr__(name: str) -> Any:
    if name in _NEED_TORCH:
        from tutti.core import types

        return getattr(types, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
