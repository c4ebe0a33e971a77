"""From events to what trackers are told."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tutti.observe.starts import made_together, restarted_alone
from tutti.observe.tail import Event, number, when
from tutti.observe.trackers.tracker import Row

#: event → its fields → the names of their curves
_CURVES = {
    "step": {
        "loss": "loss/train",
        "learning_rate": "optimizer/learning_rate",
        "gradient_norm": "optimizer/gradient_norm",
        "seconds": "time/step_seconds",
        "wait_data_seconds": "time/wait_data_seconds",
        "sync_seconds": "time/sync_seconds",
        "bytes_sent": "network/bytes_sent",
    },
    "validation": {"loss": "loss/validation", "bits_per_byte": "loss/validation_bits_per_byte"},
    "test": {"loss": "loss/test"},
    "checkpoint": {
        "blocked_seconds": "checkpoint/blocked_seconds",
        "write_seconds": "checkpoint/write_seconds",
    },
}


@dataclass(frozen=True)
class Start:
    """The run was started, from this step on."""

    resumed_from: int


class Rows:
    """Turns events into rows, and into starts where steps may be done again."""

    def __init__(self) -> None:
        self._together = True
        self._told = 0  # of steps that all replicas make together, the last one that somebody spoke of

    def of(self, events: Iterable[Event]) -> list[Row | Start]:
        """What `events`, the next ones, say; much of what happens says nothing that could be drawn."""
        found: list[Row | Start] = []
        for event in events:
            if event["kind"] == "run_started":
                self._together = made_together(event)
                if not event.get("rank") and not restarted_alone(event):  # else no step is done again
                    self._told = int(event.get("resumed_from") or 0)
                    found.append(Start(self._told))
            elif values := self._values(event):
                found.append(Row(int(event.get("step") or 0), when(event), values))
        return found

    def _values(self, event: Event) -> dict[str, float]:
        kind, rank = event["kind"], event.get("rank")
        if kind == "step" and number(event.get("loss")) is None:
            return {}  # of a rank that speaks for nobody
        if kind == "step" and self._together:
            if int(event.get("step") or 0) <= self._told:
                return {}  # of replicas that make each step together one speaks for all
            self._told = int(event.get("step") or 0)
        # Replicas on their own way have curves of their own.
        own = bool(rank) and rank != -1 and not (self._together and kind == "step")
        values = {}
        for field, name in _CURVES.get(kind, {}).items():
            if (value := number(event.get(field))) is not None:
                values[f"{name}/rank-{rank}" if own else name] = value
        metrics = event.get("metrics")
        if kind in ("validation", "test") and isinstance(metrics, dict):
            values |= {
                f"{kind}/{name}": v for name, item in metrics.items() if (v := number(item)) is not None
            }
        tokens, seconds = number(event.get("tokens")), number(event.get("seconds"))
        if kind == "step" and not own and tokens and seconds:
            values["time/tokens_per_second"] = tokens / seconds
        return values
