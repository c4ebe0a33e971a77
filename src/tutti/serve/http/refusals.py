"""Everything that goes wrong in an application is told as a `Refusal`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from tutti.serve.refusal import Refusal

__all__ = ["Refusal", "answer_with_refusals", "misread"]


def misread(first: Mapping[str, Any]) -> Refusal:
    """Of what pydantic says that is wrong with a request."""
    param = ".".join(str(part) for part in first["loc"] if part != "body") or None
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = "no such parameter, or none that this service knows"
    return Refusal(400, f"{param}: {message}" if param else message, param=param)


def answer_with_refusals(app: FastAPI) -> None:
    """Let `app` say everything that goes wrong like this."""

    @app.exception_handler(Refusal)
    async def refused(_: Request, refusal: Refusal) -> JSONResponse:
        return refusal.response()

    @app.exception_handler(RequestValidationError)
    async def unreadable(_: Request, error: RequestValidationError) -> JSONResponse:
        return misread(error.errors()[0]).response()

    @app.exception_handler(HTTPException)
    async def elsewhere(_: Request, error: HTTPException) -> JSONResponse:
        return Refusal(error.status_code, str(error.detail)).response()

    @app.exception_handler(Exception)
    async def defect(_: Request, error: Exception) -> JSONResponse:
        return Refusal(500, "this is a defect of the service").response()
