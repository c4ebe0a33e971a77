"""Every error that is the user's to mend.

    ValueError
    └── TuttiError              what went wrong, where, and what to do next
        ├── ConfigError         the file or an override
        ├── DataError           the text, the tokenizer, the shards
        ├── ModelError          the architecture or its weights
        ├── RunError            the run directory: exists already, read-only, disk full
        ├── CheckpointError     torn, missing, or of another model
        ├── LaunchError         workers could not be started or kept alive
        └── TrainingError       the numbers: NaN, explosion

The command line prints a `TuttiError` as one message and exits with 2. Anything else that escapes is a
defect of Tutti.
"""

from __future__ import annotations

from tutti.core.address import without_secrets


class TuttiError(ValueError):
    """One problem in the user's hands.

    `problem` says what and where in one sentence; `hint` says what to do next (may be empty). Of URLs no password or
    signature is shown: messages end in logs, reports and trackers.
    """

    def __init__(self, problem: str, hint: str = "") -> None:
        problem, hint = without_secrets(problem), without_secrets(hint)
        super().__init__(f"{problem}\n  → {hint}" if hint else problem)
        self.problem = problem
        self.hint = hint

    def __reduce__(self) -> tuple[type[TuttiError], tuple[str, str]]:
        # Errors travel between processes; the default would call the class with the joined text.
        return (type(self), (self.problem, self.hint))


class ConfigError(TuttiError):
    """The configuration file, or an override, asks for something that cannot be."""


class DataError(TuttiError):
    """The text, tokenizer or shards are missing, broken or too small."""


class ModelError(TuttiError):
    """The model cannot be built or loaded."""


class RunError(TuttiError):
    """The run directory cannot be used."""


class CheckpointError(TuttiError):
    """A checkpoint is missing, torn, or belongs to another model."""


class LaunchError(TuttiError):
    """Workers could not be started, or died more often than allowed."""


class TrainingError(TuttiError):
    """Training produced numbers that cannot be used (NaN, infinity, explosion)."""

    #: Whether they arose on the rank that says so; else it may only have summed those of another one.
    here = True
