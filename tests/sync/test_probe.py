"""Measuring before a run: links whose figures are known, real members, and every codec's own arithmetic."""

from __future__ import annotations

import typing
from collections.abc import Sequence
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from ranks import run_ranks
from tutti.config.agreement import CodecName, SyncConfig
from tutti.sync import PeerLost, StaticTransport, Summing, Transport, probe
from tutti.sync.buffer import Buffer
from tutti.sync.cost import Link
from tutti.sync.transport import Wait

CPU = torch.device("cpu")
SHAPES = [(300, 400), (7,), (1000, 1000), (64, 3, 3)]


class Pretended(Transport):
    """A link with a clock of its own: every call has a latency, and what is sent passes at `rate` bytes a second, but
    for what is left of a burst, which passes at once and fills up again at that rate."""

    def __init__(self, members: int, latency: float, rate: float, burst: float) -> None:
        super().__init__()
        self.now, self._filled, self._since = 0.0, burst, 0.0
        self._members, self._latency, self._rate, self._burst = members, latency, rate, burst

    def _send(self, sent: float) -> None:
        self._filled = min(self._burst, self._filled + (self.now - self._since) * self._rate)
        waiting = max(0.0, sent - self._filled) / self._rate
        self._filled = max(0.0, self._filled - sent)
        self.now += self._latency + waiting
        self._since = self.now

    @property
    def rank(self) -> int:
        return 0

    @property
    def size(self) -> int:
        return self._members

    def start_all_reduce(self, tensor: Tensor) -> Wait:
        return lambda: self._send(2 * (self._members - 1) * tensor.nbytes / self._members)

    def all_gather(self, tensor: Tensor) -> list[Tensor]:
        self._send((self._members - 1) * tensor.nbytes)
        return [tensor] * self._members

    def all_to_all(
        self, outgoing: Sequence[Tensor], incoming: Sequence[int], largest: int | None = None
    ) -> list[Tensor]:
        self._send(sum(packet.nbytes for packet in outgoing))
        return list(outgoing)


@pytest.mark.parametrize("members", [2, 5])
@pytest.mark.parametrize(
    ("latency", "mbit"), [(1e-4, 10_000), (1e-3, 1000), (0.02, 100), (1e-3, 10), (0.05, 10), (0.05, 1)]
)
def test_the_figures_of_a_link_are_found_in_seconds(
    monkeypatch: pytest.MonkeyPatch, members: int, latency: float, mbit: float
) -> None:
    link = Pretended(members, latency, mbit * 1e6 / 8, burst=min(256_000, mbit * 1e4))
    monkeypatch.setattr(probe, "time", SimpleNamespace(perf_counter=lambda: link.now))
    found = probe.measure_links(
        link, [SyncConfig(codec="bf16"), SyncConfig(codec="int4")], CPU, [(5000, 2000)]
    )
    assert set(found) == {"fp32", "bf16", "packets"}
    for kind, measured in found.items():
        assert measured.latency_seconds == pytest.approx(latency, rel=0.02, abs=1e-4), kind
        assert measured.bytes_per_second == pytest.approx(mbit * 1e6 / 8, rel=0.1), kind
    assert link.now < 3 * (2 + 60 * latency), (
        "of every kind: one fair time for small ones, five for large ones"
    )


def by_real_members(rank: int) -> tuple[dict[str, Link], float, str]:
    transport = StaticTransport(dist.group.WORLD)
    probe.meet_all(transport, 2)
    try:
        probe.meet_all(transport, 3)
    except PeerLost as error:
        alone = str(error)
    links = probe.measure_links(transport, [SyncConfig(codec="int8")], CPU, SHAPES)
    return links, probe.measure_meeting(transport), alone


@pytest.mark.distributed
def test_members_find_the_same() -> None:
    ours, theirs = run_ranks(2, by_real_members)
    assert ours == theirs
    assert set(ours[0]) == {"fp32", "packets"} and ours[1] > 0
    assert all(link.latency_seconds > 0 and link.bytes_per_second > 0 for link in ours[0].values())
    assert ours[2] == "of 3 replicas only 2 came to measure"


@pytest.mark.parametrize("members", [2, 3, 7])
@pytest.mark.parametrize("codec", typing.get_args(CodecName))
def test_among_mirrors_a_sum_is_so_many_times_the_same(codec: CodecName, members: int) -> None:
    """So a codec's time is that of the real thing, whose result this is."""
    sync = SyncConfig(codec=codec, density=1.0, matrix_rank=1000)
    buffer = probe.sample_buffer([(30, 40), (5,)], 4096, members, CPU)
    values = buffer.flat.clone()
    Summing.of(sync, probe.Mirror(members)).sum(buffer)
    if codec in ("fp32", "fp16", "bf16"):  # nothing travels: there is nothing to add
        torch.testing.assert_close(buffer.flat, values, rtol=0.01, atol=0.01)
    elif codec == "powersgd":
        assert bool(buffer.flat.isfinite().all())
    elif codec == "topk":
        torch.testing.assert_close(buffer.flat, members * values, rtol=0.01, atol=0.01)
    else:  # the mirrors' pieces are other pieces of this member's vector
        assert float(buffer.flat.abs().max()) < 1.2 * members * float(values.abs().max())


@pytest.mark.parametrize("numbers", [1000, 200_000, 3_000_000])
def test_a_sample_is_as_long_as_it_should_be(numbers: int) -> None:
    buffer: Buffer = probe.sample_buffer(SHAPES, numbers, 3, CPU)
    assert len(buffer.flat) == sum(part.size for part in buffer.parts)
    assert numbers <= len(buffer.flat) < numbers + 3 * 4096 and len(buffer.flat) % (3 * 4096) == 0
    matrices = [part for part in buffer.parts if len(part.shape) > 1]
    assert all(tuple(part.shape[1:]) in [shape[1:] for shape in SHAPES] for part in matrices) and matrices


def test_every_codec_costs_something() -> None:
    syncs = [SyncConfig(codec=codec) for codec in ("fp32", "bf16", "int8", "int4", "topk", "powersgd")]
    found = probe.measure_codecs(syncs, 2, SHAPES, CPU)
    assert list(found) == [sync.codec for sync in syncs]
    for name, cost in found.items():
        assert cost.call_seconds >= 0 and cost.number_seconds >= 0, name
        assert cost.call_seconds + 1e6 * cost.number_seconds > 0, name
