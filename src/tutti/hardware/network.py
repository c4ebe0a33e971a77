"""Network interfaces, and what the loopback really carries (it is what local workers talk over)."""

from __future__ import annotations

import socket
import statistics
import threading
import time
from dataclasses import dataclass

import psutil

_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class Interface:
    """One network interface; `megabits_per_second` is what the driver says (None: it doesn't)."""

    name: str
    addresses: tuple[str, ...]
    megabits_per_second: int | None
    mtu: int | None


@dataclass(frozen=True)
class Network:
    """Interfaces that are up, and loopback measured with one TCP connection (None: could not be opened)."""

    hostname: str
    interfaces: tuple[Interface, ...]
    loopback_latency_seconds: float | None
    loopback_bytes_per_second: float | None


def probe_network(*, seconds: float = 0.2) -> Network:
    """List the interfaces that are up; measure the loopback for about `seconds`."""
    states = psutil.net_if_stats()
    interfaces = []
    for name, addresses in sorted(psutil.net_if_addrs().items()):
        state = states.get(name)
        if state is None or not state.isup:
            continue
        internet = tuple(a.address for a in addresses if a.family in (socket.AF_INET, socket.AF_INET6))
        if internet:
            # 0 and 65535 (sometimes 2^32−1) are how drivers say "unknown".
            speed = state.speed if 0 < state.speed < 10_000_000 and state.speed != 65535 else None
            interfaces.append(Interface(name, internet, speed, state.mtu or None))
    try:
        latency, rate = measure_loopback(seconds)
    except OSError:
        return Network(socket.gethostname(), tuple(interfaces), None, None)
    return Network(socket.gethostname(), tuple(interfaces), latency, rate)


def measure_loopback(seconds: float = 0.2) -> tuple[float, float]:
    """(seconds of half a round trip of one byte, bytes per second of one TCP stream) on 127.0.0.1."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        echo = threading.Thread(target=_echo_then_swallow, args=(server, _PINGS), daemon=True)
        echo.start()
        with socket.create_connection(server.getsockname(), timeout=5) as client:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            trips = []
            for _ in range(_PINGS):
                start = time.perf_counter()
                client.sendall(b"x")
                client.recv(1)
                trips.append(time.perf_counter() - start)
            block, sent = bytes(_BLOCK_BYTES), 0
            start = time.perf_counter()
            while time.perf_counter() - start < seconds:
                client.sendall(block)
                sent += len(block)
            client.shutdown(socket.SHUT_WR)
            client.recv(1)  # the other side has read everything
            rate = sent / (time.perf_counter() - start)
        echo.join(timeout=5)
    return statistics.median(trips) / 2, rate


_PINGS = 100


def _echo_then_swallow(server: socket.socket, pings: int) -> None:
    server.settimeout(5)
    connection, _ = server.accept()
    with connection:
        connection.settimeout(5)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(pings):
            connection.sendall(connection.recv(1))
        buffer = bytearray(_BLOCK_BYTES)
        while connection.recv_into(buffer):
            pass
        connection.sendall(b"x")
