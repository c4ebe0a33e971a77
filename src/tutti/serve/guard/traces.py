"""Every request as a span of OpenTelemetry, sent to the collector that the usual variables of the environment name.

A span is made when its request is over, and sent by a thread of OpenTelemetry's own from a queue of bounded length: a
collector that is slow or gone delays nobody, it misses spans. No texts are in it.
"""

from __future__ import annotations

import os
import uuid

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from tutti.serve.guard.exchange import Exchange

#: Either says where to; how else (headers, names, sampling) is up to OpenTelemetry's other variables.
_WHERE = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
#: One attempt to send; when the service ends nobody waits for longer.
_SEND_SECONDS = 5
#: What OpenTelemetry calls what is done there.
_OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
}
_FAILED = 500


class Traces:
    """Of one service."""

    def __init__(self) -> None:
        own = {SERVICE_INSTANCE_ID: uuid.uuid4().hex}
        if not os.environ.get("OTEL_SERVICE_NAME"):
            own[SERVICE_NAME] = "tutti"
        provider = TracerProvider(resource=Resource.create(own))
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(timeout=_SEND_SECONDS)))
        self._tracer = provider.get_tracer("tutti.serve")
        self._parents = TraceContextTextMapPropagator()

    @classmethod
    def where_wanted(cls) -> Traces | None:
        """None where the environment names no collector."""
        wanted = any(os.environ.get(name) for name in _WHERE)
        return cls() if wanted and os.environ.get("OTEL_SDK_DISABLED", "").lower() != "true" else None

    def notice(self, exchange: Exchange) -> None:
        """The span of a request that is over; a part of the trace that its client began, if it did."""
        parent = Context()
        if exchange.traceparent is not None:
            parent = self._parents.extract({"traceparent": exchange.traceparent}, parent)
        began = int(exchange.began * 1e9)
        attributes: dict[str, str | int | float | bool] = {
            "http.request.method": exchange.method,
            "http.route": exchange.route,
            "http.response.status_code": exchange.status or 499,
            "tutti.request.id": exchange.id,
            "tutti.answer.whole": exchange.whole,
            "gen_ai.usage.input_tokens": exchange.prompt_tokens,
            "gen_ai.usage.output_tokens": exchange.new_tokens,
        }
        if exchange.key is not None:
            attributes["tutti.key"] = exchange.key
        if exchange.route in _OPERATIONS:
            attributes["gen_ai.operation.name"] = _OPERATIONS[exchange.route]
        if exchange.first_seconds is not None:
            attributes["tutti.first_piece.seconds"] = exchange.first_seconds
        span = self._tracer.start_span(
            f"{exchange.method} {exchange.route}", parent, SpanKind.SERVER, attributes, start_time=began
        )
        if (exchange.status or 0) >= _FAILED:
            span.set_status(Status(StatusCode.ERROR))
        span.end(began + int(exchange.seconds * 1e9))
