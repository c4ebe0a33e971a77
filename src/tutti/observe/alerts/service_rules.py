"""What may be wrong with a service, judged by what its metrics said lately."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from tutti.observe import words
from tutti.observe.alerts.findings import Finding
from tutti.observe.metrics import Sample, between

#: A service that is started anew is away for some seconds, and one request of three is no rate.
_AWAY_SECONDS = 30.0
_LEAST_REQUESTS = 20


@dataclass(frozen=True)
class ServiceRules:
    """Which rules hold; the section `alerts` of a service's settings says what each means. None: not asked for."""

    down: bool = True
    error_rate: float | None = None
    p99_seconds: float | None = None
    queue: int | None = None
    window_minutes: float = 5

    @classmethod
    def of(cls, section: Mapping[str, Any]) -> ServiceRules:
        """Those of the settings' section."""
        known = {field.name for field in fields(cls)}
        return cls(**{key: value for key, value in section.items() if key in known})


def judge_service(samples: Sequence[Sample], rules: ServiceRules) -> list[Finding]:
    """What is so at the last of `samples`, which are in the order of time."""
    if not samples:
        return []
    now = samples[-1].time
    found: list[Finding] = []
    if rules.down and (problem := _down(samples)) is not None:
        found.append(Finding("down", "down", problem))
    window = [s for s in samples if s.time >= now - rules.window_minutes * 60 and not s.problem]
    if len(window) < 2:
        return found
    row = between(window[0], window[-1])
    minutes = f"the last {words.seconds(window[-1].time - window[0].time)}"
    requests = row.get("requests", 0.0) * (window[-1].time - window[0].time)
    if (
        rules.error_rate is not None
        and requests >= _LEAST_REQUESTS
        and row.get("error_rate", 0.0) > rules.error_rate
    ):
        said = f"{words.percent(row['error_rate'])} of {requests:,.0f} requests of {minutes} failed"
        found.append(Finding("error_rate", "error_rate", said))
    if rules.p99_seconds is not None and requests >= _LEAST_REQUESTS:
        p99 = row.get("seconds_p99")
        if p99 is not None and p99 > rules.p99_seconds:
            said = f"one of 100 requests took longer than {words.seconds(p99)} ({requests:,.0f} in {minutes})"
            found.append(Finding("p99", "p99_seconds", said))
    if rules.queue is not None:
        waiting = [s.waiting for s in window if s.waiting is not None]
        if waiting and sum(waiting) / len(waiting) > rules.queue:
            said = f"{sum(waiting) / len(waiting):,.0f} requests waited on average over {minutes}"
            found.append(Finding("queue", "queue", said))
    return found


def _down(samples: Sequence[Sample]) -> str | None:
    """Why it does not answer, if it has not for a while; None: it does."""
    bad = []
    for sample in reversed(samples):
        if not sample.problem and sample.up != 0:
            break
        bad.append(sample)
    if not bad or bad[0].time - bad[-1].time < _AWAY_SECONDS:
        return None
    return bad[0].problem or "its engine is dead or wedged: it answers, but computes nothing"
