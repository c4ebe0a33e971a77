"""What a key may be for, and which route needs what."""

from __future__ import annotations

from typing import Literal, get_args

Scope = Literal["generate", "embed", "classify", "explain", "metrics", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)

#: What a load balancer asks, and learns nothing from: the only routes that are open.
OPEN = frozenset({"/health", "/ready"})
#: What a key needs for a route; None: any key will do. A route that is not here is for `admin` alone, so one that
#: somebody forgets to enter is shut.
NEEDED: dict[str, Scope | None] = {
    "/v1/models": None,
    "/v1/models/{name:path}": None,
    "/openapi.json": None,
    "/v1/chat/completions": "generate",
    "/v1/completions": "generate",
    "/v1/embeddings": "embed",
    "/v1/classify": "classify",
    "/v1/extract": "classify",
    "/v1/recommend": "classify",
    "/v1/answer": "classify",
    "/v1/explain": "explain",
    "/metrics": "metrics",
}
_MODEL = "/v1/models/{name:path}"


def route_of(path: str) -> str:
    """The route that `path` is for, as metrics and the audit log have it; `other`: none that is known here."""
    if path in NEEDED or path in OPEN:
        return path
    return _MODEL if path.startswith("/v1/models/") else "other"


def scope_of(path: str) -> Scope | None:
    """What a key needs to go to `path`; None: any key will do."""
    return NEEDED.get(route_of(path), "admin")
