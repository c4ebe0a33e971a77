"""Server-sent events: a page is told what has changed, and after a break what it has missed."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from starlette.concurrency import run_in_threadpool

#: By part, what a page shows now; and the revision that it is of. Given the revision that the page has.
Look = Callable[[int], tuple[dict[str, Any], int]]

#: Something is sent so often, lest what lies between takes the connection for dead.
_SIGN_SECONDS = 10.0


async def stream(
    look: Look, session: str, last_id: str, every_seconds: float, ended: Callable[[], bool]
) -> AsyncIterator[bytes]:
    """Messages for one page, until `ended` or until it goes. `last_id`: of the last message that the page has got, ""
    if none; it counts if it is of the same `session`, which is one life of the dashboard."""
    before, _, revision_text = last_id.rpartition(".")
    revision = int(revision_text) if before == session and revision_text.isdigit() else -1
    sent: dict[str, str] = {}
    signed = time.monotonic()
    yield b"retry: 1000\n\n"
    while not ended():
        try:
            texts, now = await run_in_threadpool(_look, look, revision)
        except Exception as error:  # a file may hold anything; the page says so, and looks again
            texts, now = {"problem": json.dumps(f"{type(error).__name__}: {error}")}, max(revision, 0)
        changed = {name: text for name, text in texts.items() if sent.get(name) != text or name == "rows"}
        if changed:
            body = ",".join(f"{json.dumps(name)}:{text}" for name, text in changed.items())
            message = f'id: {session}.{now}\ndata: {{"now":{time.time():.3f},"parts":{{{body}}}}}\n\n'
            yield message.encode()
            sent = {name: text for name, text in texts.items() if name != "rows"}
            revision, signed = now, time.monotonic()
        elif time.monotonic() - signed >= _SIGN_SECONDS:
            yield f'data: {{"now":{time.time():.3f},"parts":{{}}}}\n\n'.encode()
            signed = time.monotonic()
        await _sleep(every_seconds, ended)


def _look(look: Look, revision: int) -> tuple[dict[str, str], int]:
    """The parts as JSON, which has no NaN."""
    parts, now = look(revision)
    return {
        name: json.dumps(value, separators=(",", ":"), allow_nan=False) for name, value in parts.items()
    }, now


async def _sleep(seconds: float, ended: Callable[[], bool]) -> None:
    """Short naps: who ends the dashboard does not wait for its pages."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0 and not ended():
        await asyncio.sleep(min(left, 0.2))
