"""The parts of a replica vote: one that was killed before it did is a lost peer, not an error of the one that waits."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest
from torchft.coordination import LighthouseServer, ManagerClient, ManagerServer

from tutti.sync import PeerLost, membership
from tutti.sync.membership import Membership
from tutti.train.process import is_peer_error


@pytest.fixture
def waiting(monkeypatch: pytest.MonkeyPatch) -> Iterator[Membership]:
    """The first of two parts, at a manager that waits for both."""
    monkeypatch.setattr(membership, "_QUESTION_TIMEOUT", timedelta(seconds=1))
    lighthouse = LighthouseServer(bind="127.0.0.1:0", min_replicas=1)
    server = ManagerServer(
        replica_id="a",
        lighthouse_addr=lighthouse.address(),
        hostname="127.0.0.1",
        bind="127.0.0.1:0",
        store_addr="",
        world_size=2,
        heartbeat_interval=timedelta(seconds=1),
        connect_timeout=timedelta(seconds=10),
        quorum_retries=0,
    )
    part = Membership.__new__(Membership)
    part._part, part._inside = 0, object()  # type: ignore[assignment]
    part._client = ManagerClient(server.address(), connect_timeout=timedelta(seconds=10))
    yield part
    server.shutdown()
    lighthouse.shutdown()


def test_who_never_votes_is_a_lost_peer(waiting: Membership) -> None:
    with pytest.raises(PeerLost, match="not all parts of this replica voted") as lost:
        waiting.vote(True, 3)
    assert is_peer_error(lost.value)
