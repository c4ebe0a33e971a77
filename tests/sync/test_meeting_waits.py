"""Who waits for others to come says so, for whoever looks for hangs."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest
from torch.distributed import HashStore
from torchft.coordination import LighthouseServer

from tutti.core.live import LiveSign
from tutti.sync.membership import Membership, Quorum


def test_a_sign_of_life_says_that_its_replica_waits_for_others(tmp_path: Path) -> None:
    lighthouse = LighthouseServer(bind="127.0.0.1:0", min_replicas=2, join_timeout_ms=100, quorum_tick_ms=20)
    store, secret = HashStore(), b"secret"

    def member(replica: int) -> Membership:
        return Membership(
            lighthouse=lighthouse.address(),
            store=store,
            name=f"{replica}.0",
            part=0,
            parts=1,
            inside=None,
            host="127.0.0.1",
            secret=secret,
            say=print,
        )

    def waits() -> bool:
        return bool(json.loads((tmp_path / "rank-0.json").read_text())["waits"])

    def wait_until(wanted: bool) -> None:
        end = time.monotonic() + 30
        while waits() != wanted:
            if time.monotonic() > end:
                pytest.fail("waited in vain")
            time.sleep(0.02)

    members, found = [member(0), member(1)], list[Quorum]()
    with LiveSign(tmp_path, 0, every_seconds=0.02):
        assert not waits()
        first = threading.Thread(target=lambda: found.append(members[0].agree(1, fresh=False)), daemon=True)
        first.start()
        wait_until(True)
        assert len(members[1].agree(1, fresh=False).members) == 2
        first.join(30)
        assert len(found) == 1
        wait_until(False)
    for one in members:
        one.close()
    lighthouse.shutdown()
