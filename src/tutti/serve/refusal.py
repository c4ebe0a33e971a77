"""What goes wrong, as OpenAI's clients expect to be told: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse

#: What is nobody's fault who asks.
SERVER_ERROR = "server_error"
_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


class Refusal(Exception):
    """An answer other than what was asked for. `param`: the field that is to blame; `retry_seconds`: when to come
    again."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_seconds: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.retry_seconds, self.headers = retry_seconds, dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The JSON of it."""
        kind = SERVER_ERROR if self.status >= 500 else _TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """The whole answer."""
        headers = dict(self.headers)
        if self.retry_seconds is not None:
            headers["Retry-After"] = str(self.retry_seconds)
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(self.body(), status_code=self.status, headers=headers)


def overloaded(seconds: int = 1) -> Refusal:
    """Too many wait; there may be room in so many `seconds`."""
    return Refusal(429, "too many requests wait already", code="overloaded", retry_seconds=seconds)


def stopped() -> Refusal:
    """There is no engine any more."""
    return Refusal(503, "the engine has stopped", code="engine_stopped", retry_seconds=5)


def late() -> Refusal:
    """Nobody waits for ever."""
    return Refusal(504, "it took too long", code="timeout")
