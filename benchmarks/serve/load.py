"""A client that costs little: many connections that are kept open, in a process of its own.

    python -m benchmarks.serve.load < asked.json    (url, key, bodies, seconds, connections, rate)

Without a `rate` every connection asks again as soon as it was answered. With one, requests come at random moments, so
many a second on average (Poisson), whether or not others have been answered; and how long one takes is counted from the
moment when it was to be sent (otherwise a service that stalls would look better than it is). Prints one JSON object.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections import Counter
from typing import Any
from urllib.parse import urlsplit


class Connection:
    """One connection; a request at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def ask(self, request: bytes) -> int:
        """The status of the answer to `request`."""
        self._writer.write(request)
        head = await self._reader.readuntil(b"\r\n\r\n")
        lower = head.lower()
        at = lower.index(b"content-length:") + 15
        await self._reader.readexactly(int(lower[at : lower.index(b"\r\n", at)]))
        return int(head[9:12])


async def measure(asked: dict[str, Any]) -> dict[str, Any]:
    """Ask as it is said in `asked`; how long each took, in seconds (`admitted`: those with
    status 200), and which statuses there were."""
    place = urlsplit(asked["url"])
    head = (
        f"POST {place.path} HTTP/1.1\r\nHost: {place.netloc}\r\nAuthorization: Bearer {asked['key']}\r\n"
        "Content-Type: application/json\r\nContent-Length: "
    )
    requests = [f"{head}{len(body.encode())}\r\n\r\n{body}".encode() for body in asked["bodies"]]
    assert place.hostname is not None
    free: asyncio.Queue[Connection] = asyncio.Queue()
    for _ in range(asked["connections"]):
        free.put_nowait(Connection(*await asyncio.open_connection(place.hostname, place.port)))
    seconds: list[float] = []
    admitted: list[float] = []
    statuses: Counter[int] = Counter()
    dice = random.Random(0)
    began = time.perf_counter()
    end = began + asked["seconds"]

    async def ask(connection: Connection, due: float) -> None:
        status = await connection.ask(dice.choice(requests))
        statuses[status] += 1
        seconds.append(time.perf_counter() - due)
        if status == 200:
            admitted.append(seconds[-1])

    if asked["rate"] is None:

        async def always(connection: Connection) -> None:
            while (now := time.perf_counter()) < end:
                await ask(connection, now)

        await asyncio.gather(*[always(free.get_nowait()) for _ in range(asked["connections"])])
    else:
        tasks: set[asyncio.Task[None]] = set()

        async def once(due: float) -> None:
            connection = await free.get()
            await ask(connection, due)
            free.put_nowait(connection)

        due = began
        while (due := due + dice.expovariate(asked["rate"])) < end:
            if (wait := due - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            task = asyncio.create_task(once(due))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await asyncio.gather(*tasks)
    lasted = time.perf_counter() - began
    took = {"took": [round(one, 6) for one in seconds], "admitted": [round(one, 6) for one in admitted]}
    return {"seconds": lasted, "statuses": dict(statuses), **took}


if __name__ == "__main__":
    print(json.dumps(asyncio.run(measure(json.load(sys.stdin)))))
