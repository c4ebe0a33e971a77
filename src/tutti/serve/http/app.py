"""The routes: those of every service, and those of what is served."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.types import ASGIApp

from tutti.serve.answering import Answering
from tutti.serve.asking import Asking
from tutti.serve.guard.layers import Guard
from tutti.serve.guard.metrics import Vitals
from tutti.serve.http.answer_route import answer_of
from tutti.serve.http.common import require_model
from tutti.serve.http.direct import Direct, Posted
from tutti.serve.http.refusals import Refusal, answer_with_refusals
from tutti.serve.http.task_routes import routes_of
from tutti.serve.http.writing_routes import mount_writing
from tutti.serve.kinds import ANSWERER, KINDS, Served
from tutti.serve.service import Service


def make_app(service: Service | Asking, guard: Guard | str, answering: Answering | None = None) -> ASGIApp:
    """The application that answers for `service` to whoever `guard` lets in; a key alone will do for one. `answering`:
    questions, from documents."""
    guard = Guard(guard) if isinstance(guard, str) else guard
    vitals = Vitals(lambda: service.engine.load, lambda: service.problem)
    return guard.around(make_open_app(service, answering), vitals)


def make_open_app(service: Service | Asking, answering: Answering | None = None) -> ASGIApp:
    """The same without a guard, for whoever has one before it."""
    posts = {} if isinstance(service, Service) else routes_of(service)
    if answering is not None:
        (path,) = ANSWERER.routes
        posts[path] = answer_of(answering)
    routes = tuple(dict.fromkeys((*service.kind.routes, *posts)))
    described = _model(service, routes, answering)
    app = FastAPI(title=f"Tutti: {service.name}", docs_url=None, redoc_url=None)
    answer_with_refusals(app)

    @app.get("/health")
    @app.get("/ready")
    async def health() -> Response:
        """503 when the engine is dead or wedged."""
        problem = service.problem
        if problem is None:
            return JSONResponse({"status": "ok"})
        return JSONResponse({"status": "unavailable", "reason": problem}, status_code=503)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [described]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        require_model(service, name)
        return described

    if isinstance(service, Service):
        mount_writing(app, service)
    for path, posted in posts.items():
        _mount(app, path, posted)
    _refuse_the_others(app, service, routes)
    return Direct(app, posts)


def _mount(app: FastAPI, path: str, posted: Posted) -> None:
    async def answer(asked: BaseModel, request: Request) -> Response:
        return await posted.answer(asked, request)

    answer.__annotations__["asked"] = posted.asked  # what FastAPI reads and describes
    app.post(path, name=path)(answer)


def _refuse_the_others(app: FastAPI, service: Served, routes: Sequence[str]) -> None:
    """Say to whoever asks for what other kinds of models do what this one does."""
    message = f"{service.name!r} is {service.kind}: ask it at {' or '.join(routes)}"

    async def refuse() -> Response:
        raise Refusal(404, message, code="wrong_kind_of_model")

    for route in sorted({route for kind in KINDS for route in kind.routes} - set(routes)):
        app.post(route, include_in_schema=False)(refuse)


def _model(service: Service | Asking, routes: Sequence[str], answering: Answering | None) -> dict[str, Any]:
    """What `/v1/models` says: what OpenAI's does, and what can be asked."""
    chats = {"chats": service.turn is not None} if isinstance(service, Service) else {}
    return {
        "id": service.name,
        "object": "model",
        "created": service.made,
        "owned_by": "tutti",
        "kind": service.kind.name,
        "routes": list(routes),
        "documents": answering is not None,
    } | chats
