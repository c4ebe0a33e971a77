"""Where replicas that come and go meet: torchft's lighthouse, which knows who is alive, and a store for addresses."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tutti.core.address import bracketed
from tutti.core.errors import LaunchError
from tutti.launch.store import store_at

#: A replica that sent no heartbeat for so long counts as dead.
HEARTBEAT_TIMEOUT_MS = 500
#: How long a quorum waits for replicas that are alive but have not come yet (they are in mid-round).
JOIN_TIMEOUT_MS = 600_000


@dataclass(frozen=True)
class Meeting:
    """`lighthouse`: its URL; None where a server of Tutti's own is the membership. `store`: host and port."""

    lighthouse: str | None
    store: tuple[str, int]


@contextmanager
def meeting_here(host: str, *, lighthouse: bool, min_replicas: int) -> Iterator[Meeting]:
    """Servers in this process, at which others find it by the name or address `host`.

    Raises:
        LaunchError: `host` is not this machine, or a server cannot start.
    """
    found = None
    try:
        address = bracketed(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0])
        if lighthouse:
            from torchft.coordination import LighthouseServer

            found = LighthouseServer(
                bind=f"{address}:0",
                min_replicas=min_replicas,
                join_timeout_ms=JOIN_TIMEOUT_MS,
                quorum_tick_ms=50,
                heartbeat_timeout_ms=HEARTBEAT_TIMEOUT_MS,
            )
        store = store_at(host)
    except (RuntimeError, OSError) as error:
        raise LaunchError(
            f"the servers of the replicas' membership cannot start at {host}: {error}",
            "give an address of this machine",
        ) from error
    try:
        yield Meeting(_url(found.address(), address) if found is not None else None, (host, store.port))
    finally:
        if found is not None:
            found.shutdown()


def _url(called: str, address: str) -> str:
    """The lighthouse calls itself by its machine's name, which others need not know."""
    return f"http://{address}:{called.rsplit(':', 1)[1].rstrip('/')}"
