"""Which machine this is: who shares it shares memory and a link that is fast."""

from __future__ import annotations

import socket
from contextlib import suppress
from pathlib import Path


def this_machine() -> str:
    """The same for processes of one booted system that see each other on the loopback interface, else another.

    Containers with networks of their own count as machines, although they may share one.
    """
    with suppress(OSError):
        booted = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{booted}/{Path('/proc/self/ns/net').readlink()}"
    return socket.gethostname()
