"""The metrics of a service, as Prometheus has them: cumulative counts now, and what happened between two moments."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

#: Labels by which requests are counted on the page, where a service has them.
_LABELS = ("route", "status", "model", "version")
#: Of a version: what it is called here, and its metric.
_OF_VERSIONS = {
    "share": "tutti_version_share",
    "ready": "tutti_workers",
    "wanted": "tutti_workers_wanted",
    "in_flight": "tutti_requests_in_flight",
    "requests": "tutti_version_requests_total",
    "restarts": "tutti_worker_restarts_total",
}


@dataclass(frozen=True)
class Sample:
    """What a service said at `time`. Counts are since it began; `problem`: why it said nothing, "" if it did.

    `seconds`, `first`: of requests whose answer, or its first piece, took at most so many seconds (as text, `+Inf`
    last). `versions`: of a service of releases, each with what its gateway says of it (see `_OF_VERSIONS`).
    """

    time: float
    problem: str = ""
    requests: dict[str, dict[str, float]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    first: dict[str, float] = field(default_factory=dict)
    tokens: dict[str, float] = field(default_factory=dict)
    redactions: dict[str, float] = field(default_factory=dict)
    withheld: float = 0.0
    in_use: float | None = None
    waiting: float | None = None
    up: float | None = None
    versions: dict[str, dict[str, float]] = field(default_factory=dict)
    rolled_back: float = 0.0

    def as_line(self) -> str:
        """For a file."""
        return json.dumps(asdict(self), separators=(",", ":"))


def parse_sample(text: str, time: float) -> Sample:
    """What `/metrics` says. Raises ValueError: it is something else."""
    from prometheus_client.parser import text_string_to_metric_families

    found: dict[str, list[Any]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append(sample)
    if not any(name.startswith("tutti_") for name in found):
        raise ValueError("there are no metrics of `tutti serve` there")

    def by(name: str, label: str) -> dict[str, float]:
        counts: dict[str, float] = {}
        for sample in found.get(name, ()):
            if label in sample.labels:
                counts[sample.labels[label]] = counts.get(sample.labels[label], 0.0) + sample.value
        return counts

    def single(name: str) -> float | None:
        return sum(sample.value for sample in found[name]) if name in found else None

    versions: dict[str, dict[str, float]] = {}
    for name, metric in _OF_VERSIONS.items():
        for version, value in by(metric, "version").items():
            versions.setdefault(version, {})[name] = value
    requests = {label: counts for label in _LABELS if (counts := by("tutti_requests_total", label))}
    return Sample(
        time,
        requests=requests,
        seconds=by("tutti_request_seconds_bucket", "le"),
        first=by("tutti_first_piece_seconds_bucket", "le"),
        tokens=by("tutti_tokens_total", "direction"),
        redactions=by("tutti_redactions_total", "kind"),
        withheld=single("tutti_withheld_total") or 0.0,
        in_use=single("tutti_slots_in_use"),
        waiting=single("tutti_queue_length"),
        up=single("tutti_engine_up"),
        versions=versions,
        rolled_back=single("tutti_rollbacks_total") or 0.0,
    )


def grown(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """How much more of each there is. A service that was started again counts from nothing, all of it at once."""
    if any(after.get(name, 0.0) < count for name, count in before.items()):
        before = {}
    return {name: count - before.get(name, 0.0) for name, count in after.items()}


def quantile(share: float, buckets: Mapping[str, float]) -> float | None:
    """The value below which `share` of the observations lie, as Prometheus's `histogram_quantile` has it: they are
    taken to lie evenly in their bucket, and at its lower bound in the last, which has no upper one. None: there are
    none."""
    bounds = sorted((float(bound), count) for bound, count in buckets.items())
    if not bounds or bounds[-1][1] <= 0:
        return None
    rank = share * bounds[-1][1]
    lower, below = 0.0, 0.0
    for bound, count in bounds:
        if count >= rank:
            if math.isinf(bound):
                return lower
            return lower + (bound - lower) * ((rank - below) / (count - below) if count > below else 1.0)
        lower, below = bound, count
    return lower


def between(a: Sample, b: Sample) -> dict[str, float]:
    """What happened from `a` to `b`; what is not known is left out."""
    row = {"time": b.time}
    if b.problem:
        return row | {"reached": 0.0}
    row["reached"] = 1.0
    for name, value in (("in_use", b.in_use), ("waiting", b.waiting), ("up", b.up)):
        if value is not None:
            row[name] = value
    passed = b.time - a.time
    if a.problem or passed <= 0:
        return row
    statuses = grown(a.requests.get("status", {}), b.requests.get("status", {}))
    all_requests = sum(statuses.values())
    failed = sum(count for status, count in statuses.items() if status.startswith("5"))
    refused = sum(count for status, count in statuses.items() if status.startswith("4"))
    row |= {"requests": all_requests / passed, "failed": failed / passed, "refused": refused / passed}
    if all_requests:
        row["error_rate"] = failed / all_requests
    for name, buckets in (
        ("seconds", grown(a.seconds, b.seconds)),
        ("first", grown(a.first, b.first)),
    ):
        for label, share in (("p50", 0.5), ("p99", 0.99)):
            if (value := quantile(share, buckets)) is not None:
                row[f"{name}_{label}"] = value
    tokens = grown(a.tokens, b.tokens)
    row |= {f"tokens_{direction}": count / passed for direction, count in tokens.items()}
    row["redactions"] = sum(grown(a.redactions, b.redactions).values()) / passed
    row["withheld"] = grown({"": a.withheld}, {"": b.withheld})[""] / passed
    return row
