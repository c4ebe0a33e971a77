"""The pages and their streams. A page is one HTML file; which run or service it shows stands in its address."""

from __future__ import annotations

import secrets
import threading
import time
from importlib.resources import files
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from tutti.observe.dashboard.access import Access
from tutti.observe.dashboard.run import RunPage
from tutti.observe.dashboard.runs import Runs
from tutti.observe.dashboard.service import ServicePage
from tutti.observe.dashboard.stream import Look, stream

#: Runs whose history is kept in memory: of those that were looked at last, and whichever somebody looks at now.
_MOST_PAGES = 8
_LOOKED_AT_SECONDS = 30.0
_RUN_SECONDS, _RUNS_SECONDS, _SERVICE_SECONDS = 1.0, 2.0, 1.0
_FILES = {
    "dashboard.css": "text/css",
    "dashboard.js": "text/javascript",
    "charts.js": "text/javascript",
    "words.js": "text/javascript",
    "icon.svg": "image/svg+xml",
}


class Dashboard:
    """Shows the runs in `directories` and `services`. `key`: that visitors need; None: only this machine may come."""

    def __init__(self, directories: list[Path], services: list[ServicePage], key: str | None) -> None:
        self._runs = Runs(directories)
        self._services = {service.name: service for service in services}
        self._pages: dict[str, tuple[RunPage, float]] = {}  # and when each was looked at
        self._lock = threading.Lock()
        self._session = secrets.token_hex(4)
        self._ended = threading.Event()
        self._key = key

    def end(self) -> None:
        """Let all streams end: pages reconnect, and wait for the next dashboard."""
        self._ended.set()

    def app(self) -> ASGIApp:
        """The application."""
        routes = [
            Route("/", self._page),
            Route("/run", self._page),
            Route("/service", self._page),
            Route("/static/{name}", self._file),
            Route("/stream", self._stream),
        ]
        return Access(Starlette(routes=routes), self._key)

    async def _page(self, _: Request) -> Response:
        return _static("dashboard.html", "text/html; charset=utf-8")

    async def _file(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in _FILES:
            return PlainTextResponse("there is no such file", 404)
        return _static(name, _FILES[name])

    async def _stream(self, request: Request) -> Response:
        asked = request.query_params
        if "run" in asked:
            look, seconds = self._look_at_run(asked["run"]), _RUN_SECONDS
        elif "service" in asked:
            look, seconds = self._look_at_service(asked["service"]), _SERVICE_SECONDS
        else:
            look, seconds = self._look_at_all, _RUNS_SECONDS
        last_id = request.headers.get("last-event-id") or asked.get("after", "")
        body = stream(look, self._session, last_id, seconds, self._ended.is_set)
        return StreamingResponse(
            body,
            media_type="text/event-stream",
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        )

    def _look_at_all(self, revision: int) -> tuple[dict[str, Any], int]:
        services = [service.summary() for service in self._services.values()]
        return {"all": self._runs.look() | {"services": services}}, 0

    def _look_at_run(self, name: str) -> Look:
        def look(revision: int) -> tuple[dict[str, Any], int]:
            page = self._page_of(name)
            if page is None:
                return {"missing": {"what": "run", "name": name}}, 0
            return page.look(revision)

        return look

    def _page_of(self, name: str) -> RunPage | None:
        with self._lock:
            page, _ = self._pages.pop(name, (None, 0.0))
            if page is None or not page.run.is_dir():
                run = self._runs.find().get(name)
                if run is None:
                    return None
                page = RunPage(run, name)
            now = time.monotonic()
            self._pages[name] = page, now  # the last one that was looked at
            while len(self._pages) > _MOST_PAGES:
                eldest, (_, looked) = next(iter(self._pages.items()))
                if now - looked < _LOOKED_AT_SECONDS:
                    break
                del self._pages[eldest]
            return page

    def _look_at_service(self, name: str) -> Look:
        service = self._services.get(name)
        if service is None:
            return lambda revision: ({"missing": {"what": "service", "name": name}}, 0)
        return service.look


def _static(name: str, media_type: str) -> Response:
    body = files("tutti.observe.dashboard").joinpath("static", name).read_bytes()
    return Response(body, media_type=media_type, headers={"Cache-Control": "no-cache"})
