"""The routes of a model that writes, as OpenAI has them."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from tutti.core import ModelError
from tutti.serve.engine import Grammar, NoGrammar
from tutti.serve.guard.exchange import OWNER_HEADER
from tutti.serve.http.common import require_model
from tutti.serve.http.refusals import Refusal
from tutti.serve.http.schema import ChatAsked, CompletionAsked
from tutti.serve.http.writing import ChatForm, Choice, CompletionForm, Writing
from tutti.serve.service import Service
from tutti.web.gone import until_gone


def mount_writing(app: FastAPI, service: Service) -> None:
    """Let `app` answer completions and chats with `service`."""

    @app.post("/v1/completions")
    async def completions(asked: CompletionAsked, request: Request) -> Response:
        require_model(service, asked.model)
        prompts = _prompts(service, asked.prompt)
        if asked.suffix:
            try:
                prompts = [service.around(prompt, asked.suffix) for prompt in prompts]
            except ModelError as error:
                raise Refusal(400, error.problem, param="suffix") from error
        if len(prompts) * asked.n > service.most_texts:
            raise Refusal(400, f"at most {service.most_texts} texts for one request", param="n")
        grammars = await _grammars(service, asked.schema_of_answer, len(prompts) * asked.n)
        choices = [
            Choice(index, prompt, asked.sampling(index % asked.n, asked.logprobs), grammars[index])
            for index, prompt in enumerate(prompt for prompt in prompts for _ in range(asked.n))
        ]
        form = CompletionForm(service)
        owner = request.headers.get(OWNER_HEADER, "")
        writing = Writing(
            form, choices, asked.max_tokens, asked.stops, tells_usage=asked.tells_usage, owner=owner
        )
        return await _answered(writing, request, stream=asked.stream)

    @app.post("/v1/chat/completions")
    async def chat(asked: ChatAsked, request: Request) -> Response:
        require_model(service, asked.model)
        if service.turn is None:
            raise Refusal(
                400,
                "this model has no chat template: it goes on from texts (/v1/completions)",
                param="messages",
            )
        prompt = service.turn([{"role": one.role, "content": str(one.content)} for one in asked.messages])
        grammars = await _grammars(service, asked.schema_of_answer, asked.n)
        choices = [
            Choice(index, prompt, asked.sampling(index, asked.likeliest), grammars[index])
            for index in range(asked.n)
        ]
        writing = Writing(
            ChatForm(service),
            choices,
            asked.most_tokens,
            asked.stops,
            tells_usage=asked.tells_usage,
            owner=request.headers.get(OWNER_HEADER, ""),
        )
        return await _answered(writing, request, stream=asked.stream)


async def _answered(writing: Writing, request: Request, *, stream: bool) -> Response:
    writing.begin()
    if stream:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        return StreamingResponse(writing.stream(), media_type="text/event-stream", headers=headers)
    answer = asyncio.ensure_future(writing.whole())
    left = asyncio.ensure_future(until_gone(request.receive))
    try:
        await asyncio.wait({answer, left}, return_when=asyncio.FIRST_COMPLETED)
        if answer.done():
            return JSONResponse(answer.result())
        return Response(status_code=499)  # nobody reads it
    finally:
        writing.cancel()
        answer.cancel()
        left.cancel()


async def _grammars(service: Service, schema: dict[str, Any] | None, count: int) -> list[Grammar | None]:
    """What each of so many answers follows.

    Raises:
        Refusal: nothing can follow it.
    """
    if schema is None:
        return [None] * count
    try:
        first = await asyncio.to_thread(service.grammars.json, schema)
    except NoGrammar as error:
        raise Refusal(400, f"response_format: {error}", param="response_format") from error
    return [first, *(first.copy() for _ in range(count - 1))]


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
