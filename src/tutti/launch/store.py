"""A store that listens at one address of this machine, where torch's own listens at all of them.

Who reaches a store can read and change what is in it: so nobody shall who need not.
"""

from __future__ import annotations

import socket

from torch.distributed import TCPStore  # type: ignore[attr-defined]


def store_at(host: str) -> TCPStore:
    """A store that others find at the name or address `host`, at a port of its own choice.

    Raises:
        OSError, RuntimeError: `host` is not this machine, or the store cannot start.
    """
    family, _, _, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, socket.SOCK_STREAM) as door:
        door.bind(address)
        door.listen(2048)
        port = int(door.getsockname()[1])
        return TCPStore(
            str(address[0]), port, is_master=True, wait_for_workers=False, master_listen_fd=door.detach()
        )
