"""A switch that takes its time: every packet between hosts arrives a stated delay after it left.

The kernel's `netem` would do this where there is one. Here each host's network device is a TUN device, whose other end
is a file: this thread reads the packets that hosts send (after their `tbf` has shaped them), keeps each for `delay`
seconds, and writes it to the host that it is addressed to. Whatever speaks IP passes, so collectives need not know.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import struct
import threading
import time
from collections import deque
from collections.abc import Mapping

#: TUNSETIFF, IFF_TUN, IFF_NO_PI of linux/if_tun.h
_SET_INTERFACE, _TUN, _BARE_PACKETS = 0x400454CA, 0x0001, 0x1000
_CLONE = "/dev/net/tun"
#: Where an IPv4 header has its destination.
_DESTINATION = slice(16, 20)


def open_tun(name: str) -> int:
    """Make the TUN device `name`; the file descriptor that is its other end. It goes when that is closed."""
    descriptor = os.open(_CLONE, os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(descriptor, _SET_INTERFACE, struct.pack("16sH", name.encode(), _TUN | _BARE_PACKETS))
    return descriptor


class Relay:
    """Between `hosts`: the other ends of their devices by their addresses (4 bytes)."""

    def __init__(self, hosts: Mapping[bytes, int], delay_seconds: float) -> None:
        self._hosts = hosts
        self._delay = delay_seconds
        self._waiting: deque[tuple[float, int, bytes]] = deque()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True, name="relay")
        self._thread.start()

    def close(self) -> None:
        """End, and with it the devices."""
        self._ended.set()
        self._thread.join()
        for descriptor in self._hosts.values():
            os.close(descriptor)

    def _work(self) -> None:
        poll = select.poll()
        for descriptor in self._hosts.values():
            poll.register(descriptor, select.POLLIN)
        while not self._ended.is_set():
            due_ms = 100.0
            if self._waiting:
                due_ms = min(100.0, max(0.0, (self._waiting[0][0] - time.perf_counter()) * 1000))
            for descriptor, _ in poll.poll(due_ms):
                self._take(descriptor)
            now = time.perf_counter()
            while self._waiting and self._waiting[0][0] <= now:
                _, destination, packet = self._waiting.popleft()
                with contextlib.suppress(OSError):  # its queue is full: lost, as on a wire
                    os.write(destination, packet)

    def _take(self, descriptor: int) -> None:
        """All packets that wait at one device. One delay for all: the first that came is the first that is due."""
        with contextlib.suppress(OSError):  # nothing more, or the device is still down
            while True:
                packet = os.read(descriptor, 65536)
                destination = self._hosts.get(packet[_DESTINATION]) if packet[0] >> 4 == 4 else None
                if destination is not None:
                    self._waiting.append((time.perf_counter() + self._delay, destination, packet))
