"""The routes of models that do not write: `/v1/classify`, `/v1/extract`, `/v1/embeddings` and the others.

All answer alike, as OpenAI does to embeddings: a list with what was said to each input, and how many tokens were read.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
from fastapi import Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from tutti.core import DataError
from tutti.serve.asking import Asking, Said
from tutti.serve.http.common import require_model
from tutti.serve.http.direct import Posted
from tutti.serve.http.explain_route import explanation_of
from tutti.serve.http.refusals import Refusal
from tutti.serve.http.task_schema import (
    AnswerAsked,
    ClassifyAsked,
    EmbeddingsAsked,
    ExtractAsked,
    RecommendAsked,
)
from tutti.serve.http.unless_gone import unless_gone
from tutti.serve.kinds import ANSWERER, CLASSIFIER, EMBEDDER, EXPLAIN, RECOMMENDER, TAGGER


def routes_of(service: Asking) -> dict[str, Posted]:
    """What is posted to which path, and who answers it, of what `service` is for."""

    async def say(asked: Any, request: Request) -> Response:
        require_model(service, asked.model)
        said = await _say(service, _listed(asked.input), request)
        return _nobody() if said is None else _list_of(service, service.decode(said), said.tokens)

    async def recommend(asked: RecommendAsked, request: Request) -> Response:
        require_model(service, asked.model)
        several = bool(asked.input) and isinstance(asked.input[0], list)
        histories = asked.input if several else [asked.input]
        said = await _say(service, [{"items": one} for one in histories], request)
        if said is None:
            return _nobody()
        lines = [line | {"items": line["items"][: asked.top]} for line in service.decode(said)]
        return _list_of(service, lines, said.tokens)

    async def embed(asked: EmbeddingsAsked, request: Request) -> Response:
        require_model(service, asked.model)
        if asked.dimensions is not None:
            raise Refusal(
                400,
                "dimensions: this model was not trained so that a part of its vectors would do",
                param="dimensions",
            )
        said = await _say(service, _listed(asked.input), request)
        if said is None:
            return _nobody()
        lines = [{"object": "embedding", **line} for line in service.decode(said)]
        if asked.encoding_format == "base64":
            for line in lines:
                line["embedding"] = base64.b64encode(np.array(line["embedding"], "<f4").tobytes()).decode()
        return _list_of(service, lines, said.tokens)

    posted = {
        CLASSIFIER: Posted(ClassifyAsked, say),
        TAGGER: Posted(ExtractAsked, say),
        EMBEDDER: Posted(EmbeddingsAsked, embed),
        RECOMMENDER: Posted(RecommendAsked, recommend),
        ANSWERER: Posted(AnswerAsked, say),
    }
    path, *others = service.kind.routes
    routes = {path: posted[service.kind]}
    return routes | {EXPLAIN: explanation_of(service)} if EXPLAIN in others else routes


async def _say(service: Asking, records: Sequence[Any], request: Request) -> Said | None:
    """What the model says to `records`; None: nobody waits for it any more.

    Raises:
        Refusal: a record is none of the task's, or as `unless_gone`.
    """
    try:
        examples = service.examples(records)
    except DataError as error:
        raise Refusal(400, error.problem, param="input") from error
    return await unless_gone(service, service.ask(examples), request)


def _listed(given: Any) -> list[Any]:
    several = given if isinstance(given, list) else [given]
    return [one.model_dump() if isinstance(one, BaseModel) else one for one in several]


def _list_of(service: Asking, lines: Sequence[dict[str, Any]], tokens: int) -> Response:
    return JSONResponse(
        {
            "object": "list",
            "model": service.name,
            "data": [{"index": index, **line} for index, line in enumerate(lines)],
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }
    )


def _nobody() -> Response:
    return Response(status_code=499)  # nobody reads it
