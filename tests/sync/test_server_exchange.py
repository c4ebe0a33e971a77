"""Replicas and server over real sockets: the same weights as one process, the bytes of the formula, and no damaged or
foreign message ever counts."""

from __future__ import annotations

import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import zmq

from served import BATCH, Replica, alone, rules, serving, together
from tutti.config.agreement import SyncConfig
from tutti.core import LaunchError, read_events
from tutti.sync import Place, merge
from tutti.sync.channel import new_secret
from tutti.sync.codecs import Codec, make_codec
from tutti.sync.server import Link, ServerAddress
from tutti.sync.server.messages import frames_of

EXACT = SyncConfig(policy="server")


@pytest.mark.parametrize("replicas", [1, 2, 3])
def test_without_staleness_it_is_one_process(replicas: int, tmp_path: Path) -> None:
    steps = 12
    with serving(tmp_path, rules(replicas, steps, EXACT)) as server:
        found = [Replica(server.at, Place(r, replicas), EXACT) for r in range(replicas)]
        together(*(partial(replica.train, steps) for replica in found))
        for replica in found:
            torch.testing.assert_close(replica.weights(), alone(steps), rtol=2e-5, atol=1e-6)
            assert torch.equal(replica.weights(), found[0].weights())
            replica.policy.close()


def test_one_replica_that_may_be_stale_is_never_stale(tmp_path: Path) -> None:
    sync = SyncConfig(policy="server", staleness=3)
    with serving(tmp_path, rules(1, 9, sync, compensation=0.04)) as server:
        replica = Replica(server.at, Place(0, 1), sync).train(9)
        torch.testing.assert_close(replica.weights(), alone(9), rtol=2e-5, atol=1e-6)
        replica.policy.close()


@pytest.mark.parametrize(
    "sync",
    [
        {"codec": "fp32"}, {"codec": "bf16"}, {"codec": "int8"}, {"codec": "int4"}, {"codec": "topk", "density": 0.1},
    ],
    ids=lambda sync: sync["codec"],
)  # fmt: skip
@pytest.mark.parametrize("staleness", [0, 2])
def test_bytes_are_those_of_the_formula(sync: dict[str, Any], staleness: int, tmp_path: Path) -> None:
    settings = SyncConfig(policy="server", staleness=staleness, **sync)
    codec = make_codec(settings)
    assert isinstance(codec, Codec)
    with serving(tmp_path, rules(2, 6, settings)) as server:
        found = [Replica(server.at, Place(r, 2), settings) for r in range(2)]
        together(*(partial(replica.train, 6) for replica in found))
        each_way = 16 + sum(codec.payload_bytes(p.numel()) for p in found[0].objective.parameters())
        for replica in found:
            steps = [b - a for a, b in zip(replica.sent, replica.sent[1:], strict=False)]
            assert set(steps) == {2 * each_way}, "one payload there, one back"
        # What a replica has is what the server thinks it has, to the bit; fetching it makes it exact.
        leader, host = found[0], server.host
        if codec.name != "fp32":
            views = [client.views[0] for client in host._clients.values() if client.replica == 0]
            assert torch.equal(leader.weights(), views[0])
        assert leader.policy.settle() == 6
        assert host._weights is not None
        assert torch.equal(leader.weights(), host._weights.centre.pieces[0].flat)
        for replica in found:
            replica.policy.close()


def test_every_sample_counts_once_and_the_events_say_so(tmp_path: Path) -> None:
    sync = SyncConfig(policy="server", staleness=1)
    with serving(tmp_path, rules(2, 10, sync)) as server:
        found = [Replica(server.at, Place(r, 2), sync) for r in range(2)]
        # The one is three times as slow; the other may be one push ahead.
        together(
            partial(found[0].train, 10, lambda _: 0.06),
            partial(found[1].train, 10, lambda _: 0.02),
        )
        for replica in found:
            replica.policy.close()
    pushes = [len(replica.counted) for replica in found]
    assert sum(pushes) == 2 * 10 and abs(pushes[0] - pushes[1]) <= 2, "nobody gets far ahead"
    seen = sorted(sample for replica in found for push in replica.counted for sample in push)
    assert seen == sorted(position % 64 for position in range(10 * BATCH))
    committed = [tuple(piece) for e in read_events(tmp_path, "commit") for piece in e["ranges"]]
    assert merge(committed) == [(0, 10 * BATCH)]
    assert [e["push"] for e in read_events(tmp_path, "commit")] == list(range(1, 21))


class Damaging(Link):
    """Every other push arrives with one bit turned over, or cut short."""

    pushes = 0

    def _send(self, request: list[Any]) -> None:
        if len(request) > 1 and b'"push"' in bytes(request[0]):
            self.pushes += 1
            if self.pushes % 2:
                content = bytearray(b"".join(request[1:]))
                content[len(content) // 2] ^= 4
                request = [request[0], bytes(content) if self.pushes % 4 == 1 else bytes(content[:-7])]
        super()._send(request)


@pytest.mark.parametrize("codec", ["fp32", "int8"])
def test_a_damaged_gradient_is_asked_for_again_and_never_used(codec: str, tmp_path: Path) -> None:
    sync = SyncConfig(policy="server", codec=codec)
    results = []
    for kind in (Link, Damaging):
        with serving(tmp_path / kind.__name__, rules(1, 6, sync)) as server:
            replica = Replica(server.at, Place(0, 1), sync)
            replica.policy._link.close()
            replica.policy._link = kind(server.at, 0, 0, 0)
            replica.train(6)
            results.append((replica.weights(), replica.norms))
            if isinstance(replica.policy._link, Damaging):
                assert replica.policy._link.pushes == 12
            replica.policy.close()
    assert torch.equal(results[0][0], results[1][0]) and results[0][1] == results[1][1]


class Losing(Link):
    """Of everything large the first is lost on its way."""

    def __init__(self, *where: Any) -> None:
        super().__init__(*where)
        self.lost: list[str] = []

    def _send(self, request: list[Any]) -> None:
        kind = json.loads(bytes(request[0]))["kind"]
        if len(request) > 1 and kind not in self.lost:
            self.lost.append(kind)
        else:
            super()._send(request)


def test_what_was_lost_on_its_way_is_asked_for_again(tmp_path: Path) -> None:
    with serving(tmp_path, rules(1, 6, EXACT)) as server:
        replica = Replica(server.at, Place(0, 1), EXACT)
        replica.policy._link.close()
        link = replica.policy._link = Losing(server.at, 0, 0, 0)
        replica.train(6)
        torch.testing.assert_close(replica.weights(), alone(6), rtol=2e-5, atol=1e-6)
        assert link.lost == ["state", "push"]
        replica.policy.close()


def test_a_stranger_is_not_heard_and_disturbs_nobody(tmp_path: Path) -> None:
    with serving(tmp_path, rules(1, 6, EXACT)) as server, zmq.Context() as context:
        plain = context.socket(zmq.DEALER)
        plain.linger = 0
        plain.connect(server.at.address)
        plain.send_multipart(frames_of("leave", serial=1, replica=0, incarnation=0, part=0))
        other = Link(ServerAddress(server.at.address, new_secret()), 0, 0, 0)
        other._socket.send_multipart(frames_of("leave", serial=1, **other._who))
        replica = Replica(server.at, Place(0, 1), EXACT).train(6)
        torch.testing.assert_close(replica.weights(), alone(6), rtol=2e-5, atol=1e-6)
        assert not plain.poll(0) and not other._socket.poll(0), "nothing was said to them"
        replica.policy.close()
        plain.close()
        other._context.destroy(linger=0)


def test_noise_from_a_member_is_ignored(tmp_path: Path) -> None:
    with serving(tmp_path, rules(1, 4, EXACT)) as server:
        replica = Replica(server.at, Place(0, 1), EXACT)
        for frames in ([b"{"], [b"[1]", b"x"], [b'{"kind": "push"}', b"x"], [b'{"replica": 0}']):
            replica.policy._link._socket.send_multipart(frames)
        replica.train(4)
        torch.testing.assert_close(replica.weights(), alone(4), rtol=2e-5, atol=1e-6)
        replica.policy.close()


def test_a_replica_with_other_parameters_is_refused(tmp_path: Path) -> None:
    with serving(tmp_path, rules(2, 4, EXACT)) as server:
        first, second = (Replica(server.at, Place(r, 2), EXACT) for r in range(2))
        second.policy.describe([0.5] * len(list(second.objective.parameters())), scale=16.0)

        def refused() -> None:
            time.sleep(1)  # who comes first says what there is
            with pytest.raises(LaunchError, match="other parameters"):
                second.policy.start(0, 4)

        together(partial(first.train, 4), refused)
        first.policy.close()
        second.policy.close()


def test_numbers_that_cannot_be_used_end_the_replica_and_not_the_weights(tmp_path: Path) -> None:
    with serving(tmp_path, rules(1, 4, EXACT)) as server:
        replica = Replica(server.at, Place(0, 1), EXACT)
        replica.policy.start(0, 4)
        totals = replica.gradient([1, 2])
        parameter = next(replica.objective.parameters())
        assert parameter.grad is not None
        parameter.grad[0, 0] = float("inf")
        before = replica.weights()
        made = replica.policy.push(totals)
        assert made.norm != made.norm and torch.equal(replica.weights(), before)
        replica.policy.close()


@pytest.mark.parametrize("staleness", [0, 2, "unbounded"])
def test_a_server_that_dies_is_followed_by_one_that_goes_on(staleness: Any, tmp_path: Path) -> None:
    """The second server has what the first saved; what came after that is done again, and said."""
    sync = SyncConfig(policy="server", staleness=staleness)
    steps = 60
    with serving(tmp_path, rules(2, steps, sync)) as server:
        found = [Replica(server.at, Place(r, 2), sync) for r in range(2)]

        def die() -> None:
            while server.host.register.pushes < 20:
                time.sleep(0.01)
            server.kill()
            server.start()

        together(*(partial(replica.train, steps, lambda _: 0.01) for replica in found), die)
        if staleness == 0:
            torch.testing.assert_close(found[0].weights(), alone(steps), rtol=1e-4, atol=1e-5)
        for replica in found:
            replica.policy.close()
    check_balance(tmp_path, steps * BATCH)
    assert [e["restored"] for e in read_events(tmp_path, "serving")] == [False, True]


def check_balance(run: Path, total: int) -> None:
    """Committed − undone = every position once."""
    counts: dict[int, int] = {}
    for kind, sign in (("commit", 1), ("undone", -1)):
        for event in read_events(run, kind):
            for start, stop in event["ranges"]:
                for position in range(start, stop):
                    counts[position] = counts.get(position, 0) + sign
    assert counts == dict.fromkeys(range(total), 1)
