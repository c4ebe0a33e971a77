"""What one request may take: bodies, time, and how many there may be at once; and whom nobody waits for."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from starlette.types import Receive, Scope, Send

from served_models import served, tiny_service
from tutti.config import ServiceConfig
from tutti.config.service import LimitsConfig
from tutti.serve.guard.layers import Guard
from tutti.serve.http import make_app
from tutti.serve.service import Service

KEY = "sk-of-the-test"
AUTHORIZED = {"Authorization": f"Bearer {KEY}"}


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    made = tiny_service(context=2048, slots=4)
    yield made
    made.engine.close()


def guard(**limits: Any) -> Guard:
    return Guard(KEY, ServiceConfig(limits=LimitsConfig(**limits)))


def ask(address: str, text: str) -> httpx.Response:
    asked = {"model": "tiny", "prompt": text, "max_tokens": 1}
    return httpx.post(f"{address}/v1/completions", json=asked, headers=AUTHORIZED)


class Greedy:
    """An application that counts what it was given."""

    def __init__(self) -> None:
        self.seen = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.seen += len((await receive())["body"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})


def test_a_body_that_is_too_large_is_not_read(service: Service) -> None:
    with served(make_app(service, guard(body_bytes=300))) as address:
        assert ask(address, "x" * 100).status_code == 200
        refused = ask(address, "x" * 400)
        assert refused.status_code == 413 and refused.json()["error"]["code"] == "request_too_large"
        # Announced, and never sent: the answer comes at once.
        with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), timeout=20) as peer:
            head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
            peer.sendall(f"{head}Content-Length: 10000000\r\n\r\n".encode())
            assert b" 413 " in peer.recv(1000).splitlines()[0]


def test_a_body_of_unknown_length_is_cut_off_and_nobody_hears_of_it() -> None:
    greedy = Greedy()
    with served(guard(body_bytes=1000).around(greedy)) as address:

        def parts() -> Iterator[bytes]:
            for _ in range(100):
                yield b"x" * 100

        assert httpx.post(address, content=parts(), headers=AUTHORIZED).status_code == 413
        assert greedy.seen == 0
        assert httpx.post(address, content=b"x" * 1000, headers=AUTHORIZED).status_code == 200
        assert greedy.seen == 1000


@pytest.mark.parametrize("length", ["-1", "1e3", "99999999999999999999", "٣"])
def test_a_length_that_is_none_passes_nothing(length: str) -> None:
    greedy = Greedy()
    with (
        served(guard(body_bytes=10).around(greedy)) as address,
        socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), timeout=20) as peer,
    ):
        head = (
            f"POST / HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Length: {length}\r\n\r\n"
        )
        peer.sendall(head.encode() + b"x" * 100)
        assert peer.recv(1000).split()[1:2] in ([b"400"], [b"413"])
        assert greedy.seen == 0


def test_headers_without_end_are_hung_up_on(service: Service) -> None:
    with served(make_app(service, guard()), read_seconds=60) as address:
        with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), timeout=20) as endless:
            endless.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n")
            sent = 0
            try:
                while sent < 50_000_000:
                    endless.sendall(b"x-more: " + b"y" * 1000 + b"\r\n")
                    sent += 1010
            except OSError:  # it was hung up while this wrote
                pass
        assert sent < 50_000_000
        assert ask(address, "x").status_code == 200


def test_who_does_not_say_what_is_wanted_is_hung_up_on(service: Service) -> None:
    """Headers that drip, none at all, a body that stops."""
    with served(make_app(service, guard(read_seconds=1)), read_seconds=1) as address:
        port = int(address.rpartition(":")[2])
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n".encode()
        with (
            socket.create_connection(("127.0.0.1", port), timeout=20) as silent,
            socket.create_connection(("127.0.0.1", port), timeout=20) as dripping,
            socket.create_connection(("127.0.0.1", port), timeout=20) as stopped,
        ):
            stopped.sendall(head + b"Content-Length: 50\r\n\r\n{")
            try:
                for _ in range(100):
                    dripping.sendall(b"G")
                    time.sleep(0.05)
            except OSError:  # it was hung up while this wrote
                pass
            else:
                pytest.fail("headers may drip for five seconds")
            assert silent.recv(100) == b""
            assert b" 408 " in stopped.recv(1000).splitlines()[0]
        assert ask(address, "x").status_code == 200


def test_requests_beyond_the_house_come_again(service: Service) -> None:
    entered, leave = threading.Semaphore(0), threading.Event()

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        import asyncio

        entered.release()
        while not leave.is_set():
            await asyncio.sleep(0.01)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    with served(guard(requests=2).around(slow)) as address:
        found: list[int] = []
        threads = [
            threading.Thread(target=lambda: found.append(httpx.get(address, headers=AUTHORIZED).status_code))
            for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        entered.acquire(timeout=20), entered.acquire(timeout=20)
        refused = httpx.get(address, headers=AUTHORIZED)
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        assert httpx.get(address).status_code == 401
        leave.set()
        for thread in threads:
            thread.join(20)
        assert found == [200, 200]
        assert httpx.get(address, headers=AUTHORIZED).status_code == 200


def test_an_answer_that_takes_too_long_is_broken_off(service: Service) -> None:
    with served(make_app(service, guard(request_seconds=1))) as address:
        client = openai.OpenAI(base_url=f"{address}/v1", api_key=KEY, max_retries=0)
        asked: dict[str, Any] = {"model": "tiny", "prompt": ["x"] * 3, "max_tokens": 2000}
        with pytest.raises(openai.InternalServerError, match="took too long") as refused:
            client.completions.create(**asked)
        assert refused.value.status_code == 504
        with pytest.raises(openai.APIError, match="took too long"):
            list(client.completions.create(stream=True, **asked))
    _until_idle(service)


def test_who_leaves_is_not_written_for_through_all_layers(service: Service) -> None:
    with served(make_app(service, KEY)) as address:
        client = openai.OpenAI(base_url=f"{address}/v1", api_key=KEY, max_retries=0)
        asked: dict[str, Any] = {"model": "tiny", "prompt": "x", "max_tokens": 2000}
        stream = client.completions.create(stream=True, **asked)
        next(iter(stream))
        assert service.engine.load[0] == 1
        stream.close()
        with pytest.raises(openai.APITimeoutError):
            client.with_options(timeout=0.05).completions.create(**asked)
        _until_idle(service)
        with httpx.stream(
            "POST", f"{address}/v1/completions", content=_endless(), headers=AUTHORIZED
        ) as never:
            assert never.status_code == 413


def _endless() -> Iterator[bytes]:
    while True:
        yield json.dumps({"prompt": "x" * 100_000}).encode()


def _until_idle(service: Service) -> None:
    deadline = time.monotonic() + 20
    while service.engine.load != (0, 0):
        assert time.monotonic() < deadline
        time.sleep(0.01)
