"""What routes of every kind of service share."""

from __future__ import annotations

from tutti.serve.http.refusals import Refusal
from tutti.serve.kinds import Served


def require_model(service: Served, name: str | None) -> None:
    """Raise Refusal where a request is for another model than the one that is served; None: it does not say."""
    if name is not None and name != service.name:
        raise Refusal(
            404,
            f"there is no model {name!r} here, but {service.name!r}",
            code="model_not_found",
            param="model",
        )
