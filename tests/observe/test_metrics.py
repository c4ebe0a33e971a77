"""What metrics say of a service, from a registry that is really one, and Prometheus's own rules by hand."""

import pytest
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from tutti.observe.metrics import Sample, between, grown, parse_sample, quantile


def test_quantiles_as_prometheus_has_them() -> None:
    # 10 observations up to 1 s, 30 up to 2 s, 40 in all, of which 2 above 5 s.
    buckets = {"1.0": 10, "2.0": 30, "5.0": 38, "+Inf": 40}
    assert quantile(0.5, buckets) == pytest.approx(1.5)  # rank 20: half of the 20 between 1 and 2
    assert quantile(0.25, buckets) == pytest.approx(1.0)
    assert quantile(0.125, buckets) == pytest.approx(0.5)  # the first begins at 0
    assert quantile(0.99, buckets) == 5.0  # the last has no upper bound
    assert quantile(0.5, {"1.0": 0, "+Inf": 0}) is None and quantile(0.5, {}) is None


def test_between_two_samples() -> None:
    registry = CollectorRegistry()
    requests = Counter("tutti_requests", "", ["route", "method", "status"], registry=registry)
    seconds = Histogram("tutti_request_seconds", "", ["route"], buckets=(0.1, 1, 10), registry=registry)
    tokens = Counter("tutti_tokens", "", ["direction"], registry=registry)
    requests.labels("/v1/completions", "POST", "200").inc(5)
    before = parse_sample(generate_latest(registry).decode(), 100.0)
    requests.labels("/v1/completions", "POST", "200").inc(15)
    requests.labels("/v1/embeddings", "POST", "500").inc(4)
    requests.labels("/v1/embeddings", "POST", "429").inc(1)
    for value, route in ((0.05, "a"), (0.5, "a"), (0.5, "b"), (0.5, "b")):
        seconds.labels(route).observe(value)
    tokens.labels("written").inc(300)
    after = parse_sample(generate_latest(registry).decode(), 110.0)
    row = between(before, after)
    assert row["requests"] == pytest.approx(2.0) and row["failed"] == pytest.approx(0.4)
    assert row["refused"] == pytest.approx(0.1) and row["error_rate"] == pytest.approx(0.2)
    assert row["seconds_p50"] == pytest.approx(0.1 + 0.9 / 3)  # rank 2, of 3 between 0.1 and 1
    assert row["tokens_written"] == pytest.approx(30)
    assert "first_p50" not in row and "waiting" not in row
    assert after.requests["route"] == {"/v1/completions": 20, "/v1/embeddings": 5}


def test_a_service_that_was_started_again_counts_from_nothing() -> None:
    assert grown({"200": 90.0, "500": 3.0}, {"200": 7.0}) == {"200": 7.0}
    assert grown({"200": 90.0}, {"200": 95.0, "429": 2.0}) == {"200": 5.0, "429": 2.0}
    silent = Sample(110.0, problem="it cannot be reached")
    assert between(Sample(100.0), silent) == {"time": 110.0, "reached": 0.0}
    assert "requests" not in between(silent, Sample(120.0, requests={"status": {"200": 5.0}}))


def test_other_metrics_are_refused() -> None:
    with pytest.raises(ValueError, match="no metrics"):
        parse_sample("# HELP up x\nup 1\n", 0.0)
