"""What every room speaks: errors, events, the run directory and a few small types."""

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
