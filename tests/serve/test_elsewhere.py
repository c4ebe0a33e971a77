"""A service elsewhere behind our guard: a real one, asked by OpenAI's client through it."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from aiohttp import web
from gateways import KEY, Gateway

from served_models import served, tiny_service
from tutti.cli import run
from tutti.serve.gateway.elsewhere import Elsewhere
from tutti.serve.http import make_app

REMOTE_KEY = "sk-of-the-other"


@pytest.fixture(scope="module")
def other() -> Iterator[str]:
    """The service that computes."""
    service = tiny_service(slots=2, queue_length=8)
    with served(make_app(service, REMOTE_KEY)) as address:
        yield address
    service.close()


@pytest.fixture(scope="module")
def made(other: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Gateway, Path]]:
    """The guard before it, and its audit log."""
    audit = tmp_path_factory.mktemp("elsewhere") / "audit.jsonl"
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("TUTTI_REMOTE_KEY", REMOTE_KEY)
        started = Gateway(f"{other}/v1", f"audit.file={audit}", "redact.inputs=true")
    yield started, audit
    assert started.end() == 0


def client_of(address: str, key: str = KEY) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{address}/v1", api_key=key, max_retries=0)


def test_what_it_says_is_what_the_other_says(made: tuple[Gateway, Path], other: str) -> None:
    gateway, audit = made
    asked: dict[str, Any] = {"model": "tiny", "prompt": "The house", "max_tokens": 12, "temperature": 0}
    theirs = client_of(other, REMOTE_KEY).completions.create(**asked).choices[0].text
    ours = client_of(gateway.address)
    assert [model.id for model in ours.models.list()] == ["tiny"]
    answer = ours.completions.create(**asked)
    assert answer.choices[0].text == theirs
    parts = list(ours.completions.create(**asked, stream=True))
    assert "".join(part.choices[0].text for part in parts if part.choices) == theirs
    told = client_of(other, REMOTE_KEY).completions.create(**asked | {"prompt": "I am [EMAIL_ADDRESS]"})
    hidden = ours.completions.create(**asked | {"prompt": "I am anna@example.org"})
    assert hidden.choices[0].text == told.choices[0].text

    def completions() -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in audit.read_text().splitlines()]
        return [line for line in lines if line["route"] == "/v1/completions"]

    # The client has the last byte a moment before the line is written.
    gateway.until(lambda: len(completions()) == 3)
    counted = completions()
    assert [line["new_tokens"] for line in counted] == [12, 12, 12]
    assert counted[-1]["redactions"] == {"EMAIL_ADDRESS": 1}


def test_it_has_a_door_of_its_own(made: tuple[Gateway, Path], other: str) -> None:
    gateway, _ = made
    for key in ("wrong", REMOTE_KEY):
        with pytest.raises(openai.AuthenticationError):
            client_of(gateway.address, key).models.list()
    assert httpx.get(f"{gateway.address}/health").json() == {"status": "ok"}
    answer = gateway.http.post("/v1/audio/speech", json={})
    assert answer.status_code in (403, 404)
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client_of(gateway.address).completions.create(model="tiny", prompt="a", temperature=9)


def test_nothing_there_is_changed_with_our_key(made: tuple[Gateway, Path]) -> None:
    gateway, _ = made
    for method, path in (
        ("DELETE", "/v1/models/tiny"),
        ("POST", "/v1/models/tiny"),
        ("GET", "/v1/completions"),
        ("PUT", "/v1/chat/completions"),
    ):
        assert gateway.http.request(method, path, json={}).status_code == 405
    with socket.create_connection(tuple(gateway.address.removeprefix("http://").split(":"))) as plain:  # type: ignore[arg-type]
        plain.sendall(
            f"GET /v1/models/../chat/completions HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {KEY}\r\n\r\n".encode()
        )
        assert b" 404 " in plain.recv(100)


class Fickle(BaseHTTPRequestHandler):
    """Lists a model, as long as it likes."""

    alive = True
    status = 200

    def do_GET(self) -> None:
        if not type(self).alive:
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        self.send_response(type(self).status)
        self.end_headers()
        self.wfile.write(b'{"data": [{"id": "tiny"}]}')

    def do_POST(self) -> None:
        self.do_GET()

    def log_message(self, format: str, *args: Any) -> None:
        pass


def test_the_other_may_go_and_come_back() -> None:
    handler = type("Handler", (Fickle,), {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    gateway = Gateway(f"http://127.0.0.1:{server.server_address[1]}")

    def health(status: int) -> Callable[[], bool]:
        return lambda: httpx.get(f"{gateway.address}/health").status_code == status

    assert httpx.get(f"{gateway.address}/health").status_code == 200
    handler.alive = False  # type: ignore[attr-defined]
    answer = gateway.http.post("/v1/completions", json={"prompt": "a"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "remote_gone")
    gateway.until(health(503))
    handler.alive = True  # type: ignore[attr-defined]
    gateway.until(health(200))
    handler.status = 401  # type: ignore[attr-defined]
    answer = gateway.http.post("/v1/completions", json={"prompt": "a"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "remote_refused")
    assert gateway.end() == 0
    server.shutdown()


def test_as_many_streams_as_come_are_passed_on_and_it_is_watched_beside_them() -> None:
    """More than clients of HTTP have connections if nobody says how many."""
    over, watched, begun = asyncio.Event(), asyncio.Event(), 0

    async def models(_: web.Request) -> web.Response:
        if begun == 120:
            watched.set()
        return web.json_response({"data": [{"id": "tiny"}]})

    async def write(request: web.Request) -> web.StreamResponse:
        nonlocal begun
        answer = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await answer.prepare(request)
        await answer.write(b'data: {"choices": []}\n\n')
        begun += 1
        await over.wait()
        return answer

    async def ask(elsewhere: Elsewhere) -> None:
        told = [{"type": "http.request", "body": b"{}", "more_body": False}]

        async def receive() -> Any:
            return told.pop() if told else await asyncio.Event().wait()

        async def send(message: Any) -> None:
            assert message.get("status", 200) == 200

        await elsewhere(
            {"type": "http", "path": "/v1/completions", "method": "POST", "headers": []}, receive, send
        )

    async def all_together() -> None:
        app = web.Application()
        app.router.add_get("/v1/models", models)
        app.router.add_post("/v1/completions", write)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        elsewhere = Elsewhere(f"http://127.0.0.1:{runner.addresses[0][1]}")
        async with elsewhere.living(lambda _: None):
            asked = [asyncio.create_task(ask(elsewhere)) for _ in range(120)]
            try:
                await asyncio.wait_for(watched.wait(), 20)
                assert elsewhere.problem is None
            finally:
                over.set()
                await asyncio.wait(asked)
            await asyncio.gather(*asked)
        await runner.cleanup()

    asyncio.run(all_together())


@pytest.mark.parametrize("kind", ["nobody", "stranger", "locked"])
def test_what_cannot_be_guarded_is_said_at_once(
    kind: str, other: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TUTTI_REMOTE_KEY", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as free:
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}"
    if kind == "nobody":
        assert run(["serve", nobody, "--port", "0"]) == 2
        assert "nobody answers at" in capfd.readouterr().err
        assert run(["serve", nobody, "--port", "0", "--slots", "4"]) == 2
        assert "cannot be chosen here" in capfd.readouterr().err
        assert run(["serve", nobody, "--port", "0", "--page"]) == 2
        assert "leave out --page" in capfd.readouterr().err
    elif kind == "locked":
        assert run(["serve", other, "--port", "0"]) == 2
        assert "TUTTI_REMOTE_KEY" in capfd.readouterr().err
    else:
        handler = type("Handler", (Fickle,), {"do_GET": lambda self: self.send_error(404)})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert run(["serve", f"http://127.0.0.1:{server.server_address[1]}", "--port", "0"]) == 2
        assert "does not list models" in capfd.readouterr().err
        server.shutdown()
    assert "TUTTI_REMOTE_KEY" not in os.environ
