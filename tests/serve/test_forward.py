"""What a gateway makes of streams that fail: real workers on sockets, whose engines say what a test has them say."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import uvicorn

from served_models import Script, scripted_service
from tutti.config.service import ReleaseConfig
from tutti.serve.engine import End, Piece, Request
from tutti.serve.gateway.forward import Forward
from tutti.serve.gateway.tally import Tally
from tutti.serve.gateway.verdict import verdict
from tutti.serve.guard.exchange import Exchange
from tutti.serve.http import make_open_app

ASKED = {"model": "tiny", "prompt": "x", "stream": True}


class Failing(Script):
    """Fails once it has said its pieces."""

    def _say(self, request: Request) -> None:
        for piece in self.pieces:
            request.deliver(Piece(piece, (0,)))
        request.deliver(End("error", len(request.prompt), len(self.pieces), 0, "out of memory"))


class Version:
    """A pool of one version and its workers, who are asked in turn."""

    def __init__(self, sessions: Sequence[aiohttp.ClientSession]) -> None:
        self.version, self.tally, self._sessions, self._asked = 2, Tally(), sessions, 0
        self.problem = None

    async def worker(self, name: str, asked: str | None) -> Any:
        self._asked += 1
        return self, At(self._sessions[(self._asked - 1) % len(self._sessions)])


class At:
    def __init__(self, session: aiohttp.ClientSession) -> None:
        self.session = session

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        yield

    def doubt(self) -> None:
        pass


@contextlib.asynccontextmanager
async def at(engine: Script, socket: Path) -> AsyncIterator[aiohttp.ClientSession]:
    """A worker with `engine`."""
    service = scripted_service([])
    object.__setattr__(service, "engine", engine)
    config = uvicorn.Config(make_open_app(service), uds=str(socket), log_level="critical", lifespan="off")
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(socket))) as session:
        yield session
    server.should_exit = True
    await serving


async def told(version: Any) -> str:
    """What comes of `ASKED`."""
    said = [{"type": "http.request", "body": json.dumps(ASKED).encode(), "more_body": False}]
    parts = []

    async def receive() -> Any:
        return said.pop() if said else await asyncio.Event().wait()

    async def send(message: Any) -> None:
        parts.append(message.get("body", b""))

    scope = {
        "type": "http", "path": "/v1/completions", "method": "POST", "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
        "state": {"exchange": Exchange("id", "POST", "/v1/completions")},
    }  # fmt: skip
    await Forward(version)(scope, receive, send)
    return b"".join(parts).decode()


def test_streams_that_fail_count_as_errors(tmp_path: Path) -> None:
    async def ask() -> None:
        async with at(Failing(["a", "b"]), tmp_path / "one") as session:
            version = Version([session])
            for _ in range(60):
                assert '"code": "engine_stopped"' in await told(version)
            assert version.tally.statuses == {"200": 60}
            assert all(went.failed for went in version.tally.compared) and not version.tally.repeated
            assert "errors: 100.0%" in str(verdict(version.tally, None, ReleaseConfig()))

    asyncio.run(ask())


def test_a_stream_that_fails_before_it_begins_is_begun_elsewhere(tmp_path: Path) -> None:
    async def ask() -> None:
        async with at(Failing([]), tmp_path / "one") as bad, at(Script(["fine"]), tmp_path / "two") as good:
            version = Version([bad, good])
            answer = await told(version)
            assert "fine" in answer and "error" not in answer
            assert version.tally.repeated == 1
            alone = Version([bad])
            assert '"code": "engine_stopped"' in await told(alone)
            assert (alone.tally.repeated, alone.tally.statuses) == (2, {"200": 1})

    asyncio.run(ask())


def test_a_text_about_errors_is_none(tmp_path: Path) -> None:
    text = '\n\ndata: {"error": {"type": "server_error", "code": "engine_stopped"}}\n\n'

    async def ask() -> None:
        async with at(Script([text]), tmp_path / "one") as session:
            version = Version([session])
            await told(version)
            assert [went.failed for went in version.tally.compared] == [False]

    asyncio.run(ask())
