"""Who can reach the servers of a launch: of a run on one machine, nobody from elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch.distributed import TCPStore

from tutti.core.errors import LaunchError
from tutti.launch.alone import AloneRendezvous
from tutti.launch.meeting import meeting_here

#: /proc/net/tcp's number for a socket that listens.
_LISTENS = "0A"


def listening() -> set[str]:
    """Addresses, as the kernel writes them, at which this process listens."""
    own = set()
    for one in Path("/proc/self/fd").iterdir():
        try:
            own.add(str(one.readlink()).removeprefix("socket:[").removesuffix("]"))
        except OSError:
            continue
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/self/net/{table}").read_text().splitlines()[1:]:
            columns = line.split()
            if columns[3] == _LISTENS and columns[9] in own:
                found.add(columns[1])
    return found


def test_a_run_on_one_machine_listens_there_only() -> None:
    before = listening()
    rendezvous = AloneRendezvous("run")
    with meeting_here("127.0.0.1", lighthouse=False, min_replicas=1) as meeting:
        new = listening() - before
        assert len(new) == 2 and all(address.startswith("0100007F:") for address in new)
        member = TCPStore(*meeting.store, is_master=False, wait_for_workers=False)
        member.set("a", "b")
        assert member.get("a") == b"b"
    info = rendezvous.next_rendezvous()
    where = info.bootstrap_store_info
    worker = TCPStore(where.master_addr, where.master_port, is_master=False, wait_for_workers=False)
    worker.set("from", "a worker")
    assert worker.get("from") == b"a worker"
    info.store.set("rank", "0")
    again = rendezvous.next_rendezvous()  # after a restart nothing of the last round is there
    assert not again.store.check(["rank"]) and (again.rank, again.world_size) == (0, 1)
    assert rendezvous.num_nodes_waiting() == 0 and not rendezvous.is_closed()


def test_an_address_of_another_machine_is_refused() -> None:
    with (
        pytest.raises(LaunchError, match="give an address of this machine"),
        meeting_here("192.0.2.1", lighthouse=False, min_replicas=1),
    ):
        pass
