"""What a Prometheus server collects at `GET /metrics`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from tutti.serve.guard.exchange import Exchange

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


@dataclass(frozen=True)
class Vitals:
    """Of what computes. `load`: requests that are served and that wait; `problem`: None if it lives."""

    load: Callable[[], tuple[int, int]]
    problem: Callable[[], str | None]


class _Now(Collector):
    """What is so at the moment of asking."""

    def __init__(self, vitals: Vitals) -> None:
        self._vitals = vitals

    def collect(self) -> Iterator[Metric]:
        served, waiting = self._vitals.load()
        up = float(self._vitals.problem() is None)
        yield GaugeMetricFamily(
            "tutti_slots_in_use", "Texts that are being written, or rows computed.", served
        )
        yield GaugeMetricFamily(
            "tutti_queue_length", "Texts that wait for a slot, or rows for a pass.", waiting
        )
        yield GaugeMetricFamily("tutti_engine_up", "1: the engine answers; 0: it is dead or wedged.", up)


class Metrics:
    """Of one service. `more`: what is told beside."""

    def __init__(self, vitals: Vitals | None, more: Collector | None = None) -> None:
        self._registry = registry = CollectorRegistry()
        if more is not None:
            registry.register(more)
        if vitals is not None:
            registry.register(_Now(vitals))
        self._requests = Counter(
            "tutti_requests", "Requests that are over.", ["route", "method", "status"], registry=registry
        )
        self._seconds = Histogram(
            "tutti_request_seconds", "From a request's headers to the end of its answer.", ["route"],
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self._first = Histogram(
            "tutti_first_piece_seconds", "From a request's headers to the first piece of its answer.", ["route"],
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self._tokens = Counter("tutti_tokens", "Tokens read and written.", ["direction"], registry=registry)
        self._redactions = Counter(
            "tutti_redactions", "Personal data that was hidden.", ["kind"], registry=registry
        )
        self._withheld = Counter(
            "tutti_withheld", "Answers that were broken off as harmful.", registry=registry
        )

    def notice(self, exchange: Exchange) -> None:
        """Count a request that is over; `499`: the client left before it was answered."""
        method = exchange.method if exchange.method in _METHODS else "other"
        self._requests.labels(exchange.route, method, str(exchange.status or 499)).inc()
        self._seconds.labels(exchange.route).observe(exchange.seconds)
        if exchange.first_seconds is not None:
            self._first.labels(exchange.route).observe(exchange.first_seconds)
        self._tokens.labels("read").inc(exchange.prompt_tokens)
        self._tokens.labels("written").inc(exchange.new_tokens)
        for kind, count in exchange.redactions.items():
            self._redactions.labels(kind).inc(count)
        self._withheld.inc(exchange.harm is not None)

    def text(self) -> bytes:
        """As a Prometheus server reads them."""
        return generate_latest(self._registry)

    def beside(self, app: ASGIApp) -> ASGIApp:
        """`app`, with `/metrics` beside it."""

        async def answered(scope: Scope, receive: Receive, send: Send) -> None:
            if (
                scope["type"] != "http"
                or scope["path"] != "/metrics"
                or scope["method"] not in ("GET", "HEAD")
            ):
                await app(scope, receive, send)
                return
            page = Response(self.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})
            await page(scope, receive, send)

        return answered
