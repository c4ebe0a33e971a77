"""`/v1/answer` of a service with documents: a question, its answer, and what it was taken from."""

from __future__ import annotations

from fastapi import Request, Response
from fastapi.responses import JSONResponse

from tutti.core import DataError
from tutti.serve.answering import Answering
from tutti.serve.guard.exchange import OWNER_HEADER
from tutti.serve.http.common import require_model
from tutti.serve.http.direct import Posted
from tutti.serve.http.refusals import Refusal
from tutti.serve.http.task_schema import QuestionAsked
from tutti.serve.http.unless_gone import unless_gone


def answer_of(answering: Answering) -> Posted:
    """What is posted, and who answers it."""
    service = answering.service

    async def answer(asked: QuestionAsked, request: Request) -> Response:
        require_model(service, asked.model)
        if not asked.question.strip():
            raise Refusal(400, "question: there is none", param="question")
        owner = request.headers.get(OWNER_HEADER, "")
        answering_it = answering.answer(asked.question, asked.passages, asked.max_tokens, owner)
        try:
            found = await unless_gone(service, answering_it, request)
        except DataError as error:
            raise Refusal(400, error.problem, param="question") from error
        if found is None:
            return Response(status_code=499)  # nobody reads it
        read, written = found.tokens
        return JSONResponse(
            {
                "object": "answer",
                "model": service.name,
                "answer": found.text,
                "score": found.score,
                "citations": list(found.citations),
                "usage": {
                    "prompt_tokens": read,
                    "completion_tokens": written,
                    "total_tokens": read + written,
                },
            }
        )

    return Posted(QuestionAsked, answer)
