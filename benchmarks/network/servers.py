"""What replicas meet at, on the first host: torchft's lighthouse and a store, as Tutti's own launcher starts them."""

from __future__ import annotations

from multiprocessing.connection import Connection

from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torchft.coordination import LighthouseServer

from tutti.launch.meeting import HEARTBEAT_TIMEOUT_MS, JOIN_TIMEOUT_MS


def serve(pipe: Connection) -> None:
    """Send {"lighthouse": port, "store": port} and stay until the other end of `pipe` is closed."""
    lighthouse = LighthouseServer(
        bind="0.0.0.0:0",
        min_replicas=1,
        join_timeout_ms=JOIN_TIMEOUT_MS,
        quorum_tick_ms=20,
        heartbeat_timeout_ms=HEARTBEAT_TIMEOUT_MS,
    )
    store = TCPStore("0.0.0.0", 0, is_master=True, wait_for_workers=False)
    pipe.send({"lighthouse": int(lighthouse.address().rsplit(":", 1)[1]), "store": store.port})
    pipe.poll(None)
    lighthouse.shutdown()
