"""A service that is somewhere else and speaks as OpenAI's does (vLLM, SGLang, llama.cpp, TGI), behind our guard: keys,
quotas, redaction, audit and metrics are ours, and what it computes with is its own."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import yarl
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from tutti.core.errors import ModelError
from tutti.serve.gateway.relay import inward, send_stream, send_whole, start_of, streams, unless_left
from tutti.serve.guard.scopes import OPEN
from tutti.serve.refusal import Refusal

#: Where the key is looked for that the service elsewhere wants.
REMOTE_KEY_VARIABLE = "TUTTI_REMOTE_KEY"
#: What is passed on; what else there may be there is nobody's business.
_POSTED = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/embeddings"})
_ROUTES = _POSTED | {"/v1/models"}
#: How often it is asked whether it lives, and how long it may take to say so.
_EVERY_SECONDS, _PATIENCE_SECONDS = 1.0, 5.0


class Elsewhere:
    """What answers at `url`, with or without its `/v1`."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        #: Why it cannot answer now; None: it can.
        self.problem: str | None = "it was not asked yet"
        #: Requests that are with it.
        self.in_flight = 0
        key = os.environ.get(REMOTE_KEY_VARIABLE)
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}

    @asynccontextmanager
    async def living(self, welcome: Callable[[str], None]) -> AsyncIterator[None]:
        """While it is passed on to. `welcome`: is called with the name of its first model.

        Raises:
            ModelError: nobody answers there, or not as OpenAI does.
        """
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_PATIENCE_SECONDS)
        async with (
            aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0),  # how many there may be is up to the bounds
                timeout=timeout,
                headers={"Accept-Encoding": "identity"},  # texts are looked at as they come
                cookie_jar=aiohttp.DummyCookieJar(),
            ) as self._session,
            aiohttp.ClientSession(timeout=timeout, cookie_jar=aiohttp.DummyCookieJar()) as self._watching,
        ):
            welcome(await self._models())
            watching = asyncio.create_task(self._watch())
            try:
                yield
            finally:
                watching.cancel()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        if scope["path"] in OPEN:
            await self._health()(scope, receive, send)
            return
        path = scope["path"]
        steps_out = any(part in (".", "..") for part in path.split("/"))  # to where its keys may not go
        if steps_out or (path not in _ROUTES and not path.startswith("/v1/models/")):
            raise Refusal(404, f"what is served elsewhere is asked at {', '.join(sorted(_ROUTES))}")
        # With our key there, nobody is to change or remove anything.
        methods = ("POST",) if path in _POSTED else ("GET", "HEAD")
        if scope["method"] not in methods:
            raise Refusal(405, f"{path} takes {' and '.join(methods)}")
        body = (await receive()).get("body", b"")
        self.in_flight += 1
        try:
            await unless_left(self._pass_on(scope, body, send), scope, receive)
        finally:
            self.in_flight -= 1

    def _health(self) -> JSONResponse:
        if self.problem is None:
            return JSONResponse({"status": "ok"})
        return JSONResponse({"status": "unavailable", "reason": self.problem}, status_code=503)

    async def _pass_on(self, scope: Scope, body: bytes, send: Send) -> None:
        """Raises Refusal."""
        path = scope.get("raw_path", scope["path"].encode()).decode("latin-1")
        try:
            async with self._session.request(
                scope["method"],
                yarl.URL(self.url + path, encoded=True),
                data=body or None,
                headers=inward(scope) | self._headers,
                allow_redirects=False,
            ) as answer:
                if answer.status in (401, 403):  # of our key there, not of the client's here
                    raise Refusal(
                        502, "the service behind this one does not let it in", code="remote_refused"
                    )
                start = start_of(answer)
                if streams(answer):
                    await send_stream(answer, start, await answer.content.readany(), send)
                else:
                    await send_whole(start, await answer.read(), send)
        except (aiohttp.ClientError, OSError) as error:
            raise Refusal(
                503, "the service behind this one cannot be reached", code="remote_gone", retry_seconds=5
            ) from error

    async def _models(self) -> str:
        """The first of its models. Raises ModelError."""
        where = f"{self.url}/v1/models"
        try:
            async with (
                asyncio.timeout(_PATIENCE_SECONDS),
                self._watching.get(where, headers=self._headers) as answer,
            ):
                if answer.status in (401, 403):
                    raise ModelError(
                        f"{where} does not let us in ({answer.status})",
                        f"set {REMOTE_KEY_VARIABLE} to a key that it knows",
                    )
                told: Any = await answer.json(content_type=None) if answer.status == 200 else None
        except TimeoutError as error:
            raise ModelError(f"{where} says nothing for {_PATIENCE_SECONDS:.0f} s", "is it busy?") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise ModelError(
                f"nobody answers at {where}: {error}", "start it first, or check the address"
            ) from error
        try:
            name = str(told["data"][0]["id"])
        except (TypeError, KeyError, IndexError) as error:
            raise ModelError(
                f"{where} does not list models as OpenAI's service does", "give the address before /models"
            ) from error
        self.problem = None
        return name

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_EVERY_SECONDS)
            try:
                await self._models()
            except ModelError as error:
                self.problem = error.problem
