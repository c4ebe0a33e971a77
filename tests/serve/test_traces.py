"""Spans arrive at a real receiver as OpenTelemetry's own library reads them; a receiver that is gone delays nobody."""

from __future__ import annotations

import queue
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from served_models import scripted_service, served
from tutti.serve.guard.traces import Traces
from tutti.serve.http import make_app

KEY = "sk-of-the-test"
HEADERS = {"Authorization": f"Bearer {KEY}"}
TRACE = "0af7651916cd43dd8448eb211c80319c"


@pytest.fixture
def received(monkeypatch: pytest.MonkeyPatch) -> Iterator[queue.Queue[Any]]:
    spans: queue.Queue[Any] = queue.Queue()

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            import gzip

            body = self.rfile.read(int(self.headers["content-length"]))
            body = gzip.decompress(body) if self.headers.get("content-encoding") == "gzip" else body
            for one in ExportTraceServiceRequest.FromString(body).resource_spans:
                name = {a.key: a.value.string_value for a in one.resource.attributes}["service.name"]
                for scope in one.scope_spans:
                    for span in scope.spans:
                        spans.put((name, span))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
    yield spans
    server.shutdown()


def said(span: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in span.attributes}


def test_a_request_is_a_part_of_its_clients_trace(received: queue.Queue[Any]) -> None:
    service = scripted_service(["Good ", "day."])
    before = time.time_ns()
    with served(make_app(service, KEY)) as address:
        given = HEADERS | {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01", "x-request-id": "mine"}
        asked = {"messages": [{"role": "user", "content": "a secret"}], "stream": True}
        assert httpx.post(f"{address}/v1/chat/completions", json=asked, headers=given).status_code == 200
        assert httpx.get(f"{address}/v1/models").status_code == 401
        found = {}
        for _ in range(2):
            name, span = received.get(timeout=20)
            assert name == "tutti"
            found[span.name] = span
    chat, models = found["POST /v1/chat/completions"], found["GET /v1/models"]
    assert chat.trace_id.hex() == TRACE and chat.parent_span_id.hex() == "b7ad6b7169203331"
    assert models.trace_id.hex() != TRACE and not models.parent_span_id
    attributes = said(chat)
    assert attributes["http.response.status_code"] == 200 and attributes["tutti.request.id"] == "mine"
    assert attributes["gen_ai.operation.name"] == "chat" and attributes["tutti.answer.whole"] is True
    assert attributes["gen_ai.usage.output_tokens"] == 2 and attributes["tutti.first_piece.seconds"] > 0
    assert said(models)["http.response.status_code"] == 401
    assert before <= chat.start_time_unix_nano <= chat.end_time_unix_nano <= time.time_ns()
    assert "secret" not in str(chat) and KEY not in str(chat)


def test_nothing_is_sent_where_nobody_asks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", raising=False)
    assert Traces.where_wanted() is None
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert Traces.where_wanted() is None


def test_a_receiver_that_hangs_delays_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    hangs = socket.create_server(("127.0.0.1", 0))  # takes connections, and says nothing
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{hangs.getsockname()[1]}")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
    service = scripted_service(["Good ", "day."])
    with served(make_app(service, KEY)) as address, httpx.Client(headers=HEADERS) as client:
        for _ in range(20):
            asked = {"prompt": "a"}
            answer = client.post(f"{address}/v1/completions", json=asked, timeout=2)
            assert answer.json()["choices"][0]["text"] == "Good day."
    hangs.close()
