"""Who may look: whoever is at this machine, or has the key; and what a browser may do with a page of ours."""

from __future__ import annotations

import secrets
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qsl, urlencode

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_COOKIE = "tutti_dashboard"
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_OURSELVES = frozenset({"localhost", "127.0.0.1", "[::1]"})


class Access:
    """`app` for those who may look. `key`: in `?key=` once, then in a cookie, or as a bearer; None: whoever comes by a
    name of this machine itself may. (A page elsewhere that has its own name point here would come by that name.)"""

    def __init__(self, app: ASGIApp, key: str | None) -> None:
        self._app, self._key = app, key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, with headers that keep the page to itself."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        answer = self._refusal(scope)
        await (self._app if answer is None else answer)(scope, receive, send_guarded)

    def _refusal(self, scope: Scope) -> Response | None:
        """What is answered instead of a page; None: nothing."""
        headers = Headers(scope=scope)
        if scope["method"] not in ("GET", "HEAD"):
            return PlainTextResponse("a dashboard is only looked at", 405, {"Allow": "GET, HEAD"})
        if self._key is None:
            host = headers.get("host", "")
            name = host if host.endswith("]") else host.rpartition(":")[0] or host
            if name.lower() in _OURSELVES:
                return None
            return PlainTextResponse(
                "this dashboard is for its own machine; --host and a key open it to others", 403
            )
        asked = parse_qsl(scope.get("query_string", b"").decode("latin-1"), keep_blank_values=True)
        for name, value in asked:
            if name == "key" and self._is_key(value):
                rest = urlencode([(n, v) for n, v in asked if n != "key"])
                response = RedirectResponse(f"{scope['path']}{'?' + rest if rest else ''}", 303)
                secure = scope.get("scheme") == "https"
                response.set_cookie(_COOKIE, value, httponly=True, samesite="strict", secure=secure)
                return response
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self._is_key(bearer.strip()):
            return None
        if self._is_key(_cookie(headers.get("cookie", ""))):
            return None
        return PlainTextResponse(
            "this dashboard needs a key: open it as …/?key=KEY, as `tutti dashboard` printed it",
            401,
            {"WWW-Authenticate": "Bearer"},
        )

    def _is_key(self, given: str) -> bool:
        return self._key is not None and secrets.compare_digest(given.encode(), self._key.encode())


def _cookie(header: str) -> str:
    try:
        found = SimpleCookie(header).get(_COOKIE)
    except CookieError:
        return ""
    return found.value if found else ""
