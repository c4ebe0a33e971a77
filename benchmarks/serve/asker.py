"""A client that keeps a log of every try by its id, in a process of its own, until its input ends.

    python -m benchmarks.serve.asker < asked.json    (url, key, bodies, connections, per_second, log)

Each of its connections asks, waits for the answer, and asks again, so that all together ask about so often. A request
that was turned away at the door (the connection was refused, or closed before a byte of an answer came) is tried again
under another id, and the log has both. A line of it: the request's number, the try's id, its status (null: none), its
version, seconds, whether the connection was refused.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

import aiohttp


async def ask(asked: dict[str, Any], over: asyncio.Event) -> None:
    """Until `over`; then what was begun is ended."""
    count = 0
    pause = asked["connections"] / asked["per_second"]
    headers = {"Authorization": f"Bearer {asked['key']}", "Content-Type": "application/json"}
    with Path(asked["log"]).open("w", buffering=1) as log:

        async def connection() -> None:
            nonlocal count
            async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1)) as session:
                while not over.is_set():
                    number, count = count, count + 1
                    began = time.perf_counter()
                    body = asked["bodies"][number % len(asked["bodies"])]
                    await until_answered(session, number, body)
                    await asyncio.sleep(max(0.0, pause - (time.perf_counter() - began)))

        async def until_answered(session: aiohttp.ClientSession, number: int, body: str) -> None:
            attempt = 0
            while True:
                name, status, version, refused = f"swap-{number}-{attempt}", None, None, False
                began = time.perf_counter()
                try:
                    own = headers | {"x-request-id": name}
                    async with session.post(asked["url"], data=body, headers=own) as answer:
                        await answer.read()
                        status, version = answer.status, answer.headers.get("x-tutti-version")
                except aiohttp.ClientConnectorError:
                    refused = True
                except aiohttp.ClientError:
                    pass
                took = round(time.perf_counter() - began, 5)
                line = [number, name, status, version, took, refused]
                log.write(json.dumps(line) + "\n")
                if status is not None:
                    return
                attempt += 1
                await asyncio.sleep(0.1)

        await asyncio.gather(*[connection() for _ in range(asked["connections"])])


async def main() -> None:
    asked = json.loads(sys.stdin.readline())
    over = asyncio.Event()
    asking = asyncio.create_task(ask(asked, over))
    await asyncio.to_thread(sys.stdin.read)
    over.set()
    await asking


if __name__ == "__main__":
    asyncio.run(main())
