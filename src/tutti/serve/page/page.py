"""The page as an application before all others. It holds nothing but itself: what it asks, it asks with the key that
its user gives it."""

from __future__ import annotations

from importlib.resources import files

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

#: Where it is.
PAGE = "/try"
_FILES = {
    PAGE: ("page.html", "text/html"),
    f"{PAGE}/page.css": ("page.css", "text/css"),
    f"{PAGE}/page.js": ("page.js", "text/javascript"),
}
_HEADERS = {
    # Whatever a model writes into the page can neither run nor fetch anything.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def with_page(app: ASGIApp) -> ASGIApp:
    """`app`, and the page."""
    answers = {
        path: Response(files(__package__).joinpath(name).read_bytes(), media_type=kind, headers=_HEADERS)
        for path, (name, kind) in _FILES.items()
    }

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        is_get = scope["type"] == "http" and scope["method"] in ("GET", "HEAD")
        await (answers.get(scope["path"], app) if is_get else app)(scope, receive, send)

    return answer
