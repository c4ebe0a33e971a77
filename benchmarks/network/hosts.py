"""Several hosts on one machine: network namespaces on a bridge, each with one link of a stated rate.

A packet is one frame of at most 9000 bytes (no segmentation offload), so what a link counts is what would travel; `tbf`
shapes what leaves a host. With a delay the bridge is a relay (`relay.py`). Needs root and iproute2.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
from pathlib import Path
from types import TracebackType

from benchmarks.network.relay import Relay, open_tun

MTU, BURST_KB, QUEUE_MS = 9000, 256, 200
DEVICE = "eth0"


def why_not() -> str | None:
    """What keeps this machine from playing several hosts; None: nothing."""
    if os.geteuid() != 0:
        return "only root may make network namespaces"
    missing = [tool for tool in ("ip", "tc") if shutil.which(tool) is None]
    return f"not installed: {', '.join(missing)} (package iproute2)" if missing else None


class Hosts:
    """`count` hosts, 10.77.0.1 and up; `with` makes them and takes them away. `delay_ms`: one way, between any two."""

    def __init__(self, count: int, delay_ms: float = 0) -> None:
        self.count = count
        self._delay_ms = delay_ms
        self._mark = f"tt{os.getpid() % 100000}"
        self._relay: Relay | None = None
        self._open: dict[bytes, int] = {}

    def __enter__(self) -> Hosts:
        try:
            if not self._delay_ms:
                _do("ip", "link", "add", self._mark, "mtu", MTU, "type", "bridge")
                _do("ip", "link", "set", self._mark, "up")
            for host in range(self.count):
                self._make(host)
            if self._delay_ms:
                self._relay = Relay(self._open, self._delay_ms / 1000)
        except BaseException:
            self._take_away()
            raise
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._take_away()

    def space(self, host: int) -> str:
        """The network namespace of a host."""
        return f"{self._mark}-h{host}"

    def _make(self, host: int) -> None:
        space = self.space(host)
        _do("ip", "netns", "add", space)
        if self._delay_ms:
            self._plug_into_relay(host)
        else:
            self._plug_into_bridge(host)
        _do("ip", "-n", space, "address", "add", f"{address(host)}/24", "dev", DEVICE)
        for device in ("lo", DEVICE):
            _do("ip", "-n", space, "link", "set", device, "up")
        # One frame a packet, as on a wire: what `ethtool -K … tso off gso off` does, without ethtool.
        _do("ip", "-n", space, "link", "set", DEVICE, "gso_max_segs", 1)

    def _plug_into_bridge(self, host: int) -> None:
        outer = f"{self._mark}-{host}"
        inner = ("name", DEVICE, "mtu", MTU, "netns", self.space(host))
        _do("ip", "link", "add", outer, "mtu", MTU, "type", "veth", "peer", *inner)
        _do("ip", "link", "set", outer, "master", self._mark, "up")
        _do("ip", "link", "set", outer, "gso_max_segs", 1)

    def _plug_into_relay(self, host: int) -> None:
        space, outer = self.space(host), f"{self._mark}-{host}"
        self._open[socket.inet_aton(address(host))] = open_tun(outer)
        _do("ip", "link", "set", outer, "netns", space)
        _do("ip", "-n", space, "link", "set", outer, "name", DEVICE, "mtu", MTU, "txqueuelen", 1000)

    def shape(self, mbit: float | None) -> None:
        """Let every host send at most `mbit` Mbit/s; None: as fast as it goes."""
        for host in range(self.count):
            inside = ("ip", "netns", "exec", self.space(host), "tc", "qdisc")
            with contextlib.suppress(subprocess.CalledProcessError):
                _do(*inside, "del", "dev", DEVICE, "root")
            if mbit is not None:
                rate = ("rate", f"{mbit}mbit", "burst", f"{BURST_KB}kb", "latency", f"{QUEUE_MS}ms")
                _do(*inside, "add", "dev", DEVICE, "root", "tbf", *rate)

    def _take_away(self) -> None:
        if self._relay is not None:
            self._relay.close()
        else:
            for descriptor in self._open.values():
                os.close(descriptor)
        for host in range(self.count):
            with contextlib.suppress(subprocess.CalledProcessError):
                _do("ip", "netns", "del", self.space(host))
        with contextlib.suppress(subprocess.CalledProcessError):
            _do("ip", "link", "del", self._mark)


def counters() -> tuple[int, int]:
    """Bytes that have left and reached the host that this process runs on, as its kernel counts them."""
    lines = Path("/proc/self/net/dev").read_text(encoding="utf-8").splitlines()
    numbers = next(line for line in lines if line.strip().startswith(f"{DEVICE}:")).partition(":")[2].split()
    return int(numbers[8]), int(numbers[0])


def address(host: int) -> str:
    """Of host number `host`."""
    return f"10.77.0.{host + 1}"


def _do(*words: object) -> None:
    subprocess.run([str(word) for word in words], check=True, capture_output=True)
