"""What a search is after: the figure of a trial that says how good its settings are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tutti.config import Config
from tutti.observe.figures import finite
from tutti.tasks import make_task


@dataclass(frozen=True)
class Goal:
    """The task's own metric, or where it has none the validation loss."""

    name: str
    larger: bool

    @classmethod
    def of(cls, config: Config) -> Goal:
        """What runs of `config` are judged by."""
        if config.task.asks:
            return cls(make_task(config.task).main, larger=True)
        return cls("validation loss", larger=False)

    def at(self, validation: Mapping[str, Any]) -> float | None:
        """The figure of one `validation` event; None: it is not finite."""
        if self.larger:
            return finite((validation.get("metrics") or {}).get(self.name))
        return finite(validation.get("loss"))

    def reached(self, report: Mapping[str, Any]) -> float | None:
        """The figure of the model that a finished run hands on: the best by a metric, else the last."""
        if self.larger:
            return finite(((report.get("best") or {}).get("metrics") or {}).get(self.name))
        return finite(report.get("validation_loss"))

    def better(self, one: float | None, other: float | None) -> bool:
        """Whether `one` is better than `other`; anything is better than nothing."""
        if one is None or other is None:
            return one is not None
        return one > other if self.larger else one < other
