"""Whether the one who asked still waits."""

from __future__ import annotations

from starlette.types import Receive


async def until_gone(receive: Receive) -> None:
    """Until the asker of a request, whose body was read, has hung up."""
    while (await receive())["type"] != "http.disconnect":
        pass
