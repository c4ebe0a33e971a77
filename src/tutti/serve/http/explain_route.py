"""`/v1/explain`: how much each word of a text had to do with what the model says of it.

The model in the engine is asked again without each of the words, as everybody else asks it: in turns with them, in
whatever arithmetic it has.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

from fastapi import Request, Response
from fastapi.responses import HTMLResponse, JSONResponse

from tutti.core import DataError
from tutti.explain import Explanation, explain, write_explanations
from tutti.serve.asking import Asking
from tutti.serve.engine import RowAnswer, Stopped
from tutti.serve.guard.exchange import TOKENS_HEADER
from tutti.serve.http.common import require_model
from tutti.serve.http.direct import Posted
from tutti.serve.http.refusals import Refusal
from tutti.serve.http.task_schema import ExplainAsked, Pair
from tutti.serve.http.unless_gone import unless_gone
from tutti.tasks.task import Example, Row

#: Explanations that are made at once: each has a thread while it waits for the engine, and there are few.
_AT_ONCE = 2


def explanation_of(service: Asking) -> Posted:
    """What is posted, and who answers it."""
    turns = asyncio.Semaphore(_AT_ONCE)

    async def explained(example: Example, label: str | None) -> tuple[list[Explanation], int]:
        async with turns:
            return await _explained(service, example, label)

    async def answer(asked: ExplainAsked, request: Request) -> Response:
        require_model(service, asked.model)
        given = asked.input.model_dump() if isinstance(asked.input, Pair) else asked.input
        try:
            (example,) = service.examples([given])
        except DataError as error:
            raise Refusal(400, error.problem, param="input") from error
        try:
            found = await unless_gone(service, explained(example, asked.label), request)
        except DataError as error:
            raise Refusal(400, f"{error.problem}; {error.hint}", param="label") from error
        if found is None:
            return Response(status_code=499)  # nobody reads it
        explanations, tokens = found
        if asked.format == "html":
            page = write_explanations(f"Why {service.name} says so", [explanations])
            return HTMLResponse(page, headers={TOKENS_HEADER: str(tokens)})
        return JSONResponse(
            {
                "object": "list",
                "model": service.name,
                "data": [{"index": index, **one.told()} for index, one in enumerate(explanations)],
                "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
            }
        )

    return Posted(ExplainAsked, answer)


async def _explained(service: Asking, example: Example, label: str | None) -> tuple[list[Explanation], int]:
    """The explanations, and how many tokens were read for them."""
    loop, gone, tokens = asyncio.get_running_loop(), threading.Event(), 0

    def ask(rows: Sequence[Row]) -> Sequence[RowAnswer]:
        nonlocal tokens
        if gone.is_set():
            raise Stopped
        tokens += sum(len(row["input_ids"]) for row in rows)
        return asyncio.run_coroutine_threadsafe(service.ask_rows(rows), loop).result()

    readings = await service.readings(example)
    try:
        found = await asyncio.to_thread(
            explain,
            service.asker,
            example,
            readings,
            label=label,
            method="ablation",
            ask=ask,
        )
    finally:
        gone.set()
    return found, tokens
