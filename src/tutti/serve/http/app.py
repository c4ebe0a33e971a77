"""The routes."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.types import ASGIApp

from tutti.serve.http.keys import Keys
from tutti.serve.http.refusals import Refusal, answer_with_refusals
from tutti.serve.http.schema import ChatAsked, CompletionAsked
from tutti.serve.http.writing import ChatForm, Choice, CompletionForm, Writing
from tutti.serve.service import Service


def make_app(service: Service, key: str) -> ASGIApp:
    """The application that answers for `service` to whoever has `key`."""
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
        return {"object": "list", "data": [_model(service)]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        _require(service, name)
        return _model(service)

    @app.post("/v1/completions")
    async def completions(asked: CompletionAsked, request: Request) -> Response:
        _require(service, asked.model)
        prompts = _prompts(service, asked.prompt)
        if len(prompts) * asked.n > service.most_texts:
            raise Refusal(400, f"at most {service.most_texts} texts for one request", param="n")
        choices = [
            Choice(index, prompt, asked.sampling(index % asked.n, asked.logprobs))
            for index, prompt in enumerate(prompt for prompt in prompts for _ in range(asked.n))
        ]
        form = CompletionForm(service)
        writing = Writing(form, choices, asked.max_tokens, asked.stops, tells_usage=asked.tells_usage)
        return await _answered(writing, request, stream=asked.stream)

    @app.post("/v1/chat/completions")
    async def chat(asked: ChatAsked, request: Request) -> Response:
        _require(service, asked.model)
        if service.render is None:
            raise Refusal(
                400,
                "this model has no chat template: it goes on from texts (/v1/completions)",
                param="messages",
            )
        prompt = service.tokens_of(
            service.render([{"role": one.role, "content": str(one.content)} for one in asked.messages])
        )
        choices = [Choice(index, prompt, asked.sampling(index, asked.likeliest)) for index in range(asked.n)]
        writing = Writing(
            ChatForm(service), choices, asked.most_tokens, asked.stops, tells_usage=asked.tells_usage
        )
        return await _answered(writing, request, stream=asked.stream)

    return Keys(app, key)


async def _answered(writing: Writing, request: Request, *, stream: bool) -> Response:
    writing.begin()
    if stream:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        return StreamingResponse(writing.stream(), media_type="text/event-stream", headers=headers)
    answer = asyncio.ensure_future(writing.whole())
    left = asyncio.ensure_future(_until_gone(request))
    try:
        await asyncio.wait({answer, left}, return_when=asyncio.FIRST_COMPLETED)
        if answer.done():
            return JSONResponse(answer.result())
        return Response(status_code=499)  # nobody reads it
    finally:
        writing.cancel()
        answer.cancel()
        left.cancel()


async def _until_gone(request: Request) -> None:
    """Until the asker has hung up."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _require(service: Service, name: str | None) -> None:
    if name is not None and name != service.name:
        raise Refusal(
            404,
            f"there is no model {name!r} here, but {service.name!r}",
            code="model_not_found",
            param="model",
        )


def _model(service: Service) -> dict[str, Any]:
    return {"id": service.name, "object": "model", "created": service.made, "owned_by": "tutti"}


def _prompts(service: Service, given: str | list[str] | list[int] | list[list[int]]) -> list[list[int]]:
    """Every prompt as tokens.

    Raises:
        Refusal: there is none, or a token that the model does not have.
    """
    several: Any = given if isinstance(given, list) and not (given and isinstance(given[0], int)) else [given]
    prompts = [service.tokens_of(one) if isinstance(one, str) else one for one in several]
    if not prompts:
        raise Refusal(400, "there is no prompt", param="prompt")
    if any(not 0 <= token < service.vocabulary for prompt in prompts for token in prompt):
        raise Refusal(400, f"tokens are numbers from 0 to {service.vocabulary - 1}", param="prompt")
    return prompts
