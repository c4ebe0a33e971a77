"""Several hosts on one machine: network namespaces on a bridge, each with one link of a stated rate.

A packet is one frame of at most 9000 bytes (no segmentation offload), so what a link counts is what would travel; `tbf`
shapes what leaves a host. Needs root and iproute2.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from types import TracebackType
from typing import Any

MTU, BURST_KB, QUEUE_MS = 9000, 256, 200
DEVICE = "eth0"


def why_not() -> str | None:
    """What keeps this machine from playing several hosts; None: nothing."""
    if os.geteuid() != 0:
        return "only root may make network namespaces"
    missing = [tool for tool in ("ip", "tc") if shutil.which(tool) is None]
    return f"not installed: {', '.join(missing)} (package iproute2)" if missing else None


class Hosts:
    """`count` hosts, 10.77.0.1 and up; `with` makes them and takes them away."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._mark = f"tt{os.getpid() % 100000}"

    def __enter__(self) -> Hosts:
        try:
            _do("ip", "link", "add", self._mark, "mtu", MTU, "type", "bridge")
            _do("ip", "link", "set", self._mark, "up")
            for host in range(self.count):
                self._make(host)
        except BaseException:
            self._take_away()
            raise
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._take_away()

    def _make(self, host: int) -> None:
        space, outer = self._space(host), f"{self._mark}-{host}"
        _do("ip", "netns", "add", space)
        _do(
            "ip",
            "link",
            "add",
            outer,
            "mtu",
            MTU,
            "type",
            "veth",
            "peer",
            "name",
            DEVICE,
            "mtu",
            MTU,
            "netns",
            space,
        )
        _do("ip", "link", "set", outer, "master", self._mark, "up")
        _do("ip", "-n", space, "address", "add", f"{address(host)}/24", "dev", DEVICE)
        for device in ("lo", DEVICE):
            _do("ip", "-n", space, "link", "set", device, "up")
        # One frame a packet, as on a wire: what `ethtool -K … tso off gso off` does, without ethtool.
        _do("ip", "link", "set", outer, "gso_max_segs", 1)
        _do("ip", "-n", space, "link", "set", DEVICE, "gso_max_segs", 1)

    def shape(self, mbit: float | None) -> None:
        """Let every host send at most `mbit` Mbit/s; None: as fast as it goes."""
        for host in range(self.count):
            inside = ("ip", "netns", "exec", self._space(host), "tc", "qdisc")
            with contextlib.suppress(subprocess.CalledProcessError):
                _do(*inside, "del", "dev", DEVICE, "root")
            if mbit is not None:
                rate = ("rate", f"{mbit}mbit", "burst", f"{BURST_KB}kb", "latency", f"{QUEUE_MS}ms")
                _do(*inside, "add", "dev", DEVICE, "root", "tbf", *rate)

    def start(self, host: int, command: Sequence[str], **how: Any) -> subprocess.Popen[str]:
        """Run `command` on a host."""
        return subprocess.Popen(["ip", "netns", "exec", self._space(host), *command], text=True, **how)

    def _space(self, host: int) -> str:
        return f"{self._mark}-h{host}"

    def _take_away(self) -> None:
        for host in range(self.count):
            with contextlib.suppress(subprocess.CalledProcessError):
                _do("ip", "netns", "del", self._space(host))
        with contextlib.suppress(subprocess.CalledProcessError):
            _do("ip", "link", "del", self._mark)


def address(host: int) -> str:
    """Of host number `host`."""
    return f"10.77.0.{host + 1}"


def _do(*words: object) -> None:
    subprocess.run([str(word) for word in words], check=True, capture_output=True)
