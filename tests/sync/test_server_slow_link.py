"""A server behind a link on which one message takes longer than a silent connection is kept."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

import served
from served import Replica, rules, serving, together
from slow_link import SlowLink
from toys import MaskedSquares, make_objective
from tutti.config.agreement import SyncConfig
from tutti.core import read_events
from tutti.sync import Place

SYNC = SyncConfig(policy="server")
STEPS = 2


def large_objective(unused: bool = False) -> MaskedSquares:
    """With 2.4 MB of parameters more, which no sample concerns."""
    objective = make_objective(unused=unused)
    objective.model.register_parameter("ballast", nn.Parameter(torch.ones(600_000)))
    return objective


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_what_takes_longer_than_a_silence_arrives_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served, "make_objective", large_objective)
    found = {}
    for name, rate in (("slow", 1.2e6), ("fast", None)):  # on which 2.4 MB take two seconds
        with serving(tmp_path / name, rules(2, STEPS, SYNC)) as server:
            link = None if rate is None else SlowLink(server.at.address, rate)
            at = server.at if link is None else replace(server.at, address=link.own)
            replicas = [Replica(at, Place(r, 2), SYNC) for r in range(2)]
            together(*(partial(replica.train, STEPS) for replica in replicas), seconds=100)
            found[name] = replicas[0].weights()
            for replica in replicas:
                replica.policy.close()
            if link is not None:
                assert link.connections == 2, "nobody was taken for dead"
                link.close()
        assert not list(read_events(tmp_path / name, "return"))
    assert torch.equal(found["slow"], found["fast"])
