"""Somebody is told when something is wrong with the service: by a thread that looks at its metrics."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from tutti.config.alerts import ServiceAlertsConfig
from tutti.observe.alerts import Sender, ServiceRules, Watch, WatchedService, receivers_of
from tutti.observe.metrics import Sample, parse_sample
from tutti.serve.guard.layers import Guard
from tutti.serve.guard.metrics import Metrics

_EVERY_SECONDS = 5.0


class _OwnSamples:
    """What `metrics` say each time that they are asked, and said within `window_seconds`."""

    def __init__(self, metrics: Metrics, window_seconds: float) -> None:
        self._metrics = metrics
        self._samples: deque[Sample] = deque(maxlen=2 + round(window_seconds / _EVERY_SECONDS))

    def __call__(self) -> Sequence[Sample]:
        self._samples.append(parse_sample(self._metrics.text().decode(), time.time()))
        return list(self._samples)


def check_receivers(alerts: ServiceAlertsConfig) -> None:
    """Raises ConfigError where what they name is not there."""
    receivers_of(alerts.model_dump())


@contextmanager
def told_of(
    name: str, guard: Guard, alerts: ServiceAlertsConfig, say: Callable[[str], None]
) -> Iterator[None]:
    """While the service `name`, which `guard` is around, answers."""
    if not alerts.has_receivers or guard.metrics is None:
        yield
        return
    section = alerts.model_dump()
    samples = _OwnSamples(guard.metrics, alerts.window_minutes * 60.0)
    watched = WatchedService(name, samples, ServiceRules.of(section), alerts.repeat_minutes * 60.0)
    watch = Watch([watched], Sender(receivers_of(section), say), say, every_seconds=_EVERY_SECONDS).start()
    try:
        yield
    finally:
        watch.stop()
