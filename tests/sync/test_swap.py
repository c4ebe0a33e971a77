"""What members swap arrives whole, in one piece or in many, whoever gives how much; a broken exchange is said."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Condition

import pytest
import torch
from torch import Tensor

from tutti.sync import swap as module
from tutti.sync.swap import swap

Sent = tuple[Tensor, list[int]]


class Wire:
    """Between members that are threads: exchange number k of one meets number k of the others."""

    def __init__(self, members: int) -> None:
        self.members = members
        self.sent: list[list[Sent]] = [[] for _ in range(members)]
        self.most_under_way, self._changed = 0, Condition()

    def begin(self, member: int) -> Callable[..., Callable[[], None]]:
        under_way = 0

        def begin(into: Tensor, given: Tensor, comes: list[int], goes: list[int]) -> Callable[[], None]:
            nonlocal under_way
            assert (len(into), len(given)) == (sum(comes), sum(goes))
            under_way += 1
            with self._changed:
                number = len(self.sent[member])
                self.sent[member].append((given.clone(), goes))
                self.most_under_way = max(self.most_under_way, under_way)
                self._changed.notify_all()

            def wait() -> None:
                nonlocal under_way
                with self._changed:
                    there = lambda: all(len(one) > number for one in self.sent)  # noqa: E731
                    assert self._changed.wait_for(there, timeout=20), "members made different exchanges"
                parts = [
                    torch.split(given, goes)[member] for given, goes in (one[number] for one in self.sent)
                ]
                assert [len(part) for part in parts] == comes
                into.copy_(torch.cat(parts))
                under_way -= 1

            return wait

        return begin


def packets_among(members: int) -> list[list[Tensor]]:
    drawn = torch.Generator().manual_seed(members)
    sizes = torch.randint(0, 60, (members, members), generator=drawn).fill_diagonal_(0)
    sizes[0, 1] = 0  # one has nothing to give to another
    return [
        [torch.randint(0, 256, (int(size),), dtype=torch.uint8, generator=drawn) for size in row]
        for row in sizes
    ]


@pytest.mark.parametrize("piece_bytes", [1, 7, 64, 1 << 18])
@pytest.mark.parametrize("members", [2, 3, 5])
@pytest.mark.parametrize("known", [True, False])
def test_everything_arrives_where_it_should(
    piece_bytes: int, members: int, known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PIECE_BYTES", piece_bytes)
    packets, wire = packets_among(members), Wire(members)
    largest = max(len(packet) for row in packets for packet in row) if known else None

    def swapped(member: int) -> list[Tensor]:
        incoming = [len(row[member]) for row in packets]
        return swap(packets[member], incoming, largest, wire.begin(member))

    with ThreadPoolExecutor(members) as threads:
        found = list(threads.map(swapped, range(members)))
    for member, got in enumerate(found):
        for giver, packet in enumerate(got):
            assert torch.equal(packet, packets[giver][member])
    exchanges = {len(one) for one in wire.sent}
    assert len(exchanges) == 1
    in_pieces = largest is not None and largest * (members - 1) > piece_bytes
    assert (exchanges.pop() > 1) == in_pieces
    assert wire.most_under_way <= module._UNDER_WAY
    if in_pieces:
        assert all(
            sum(goes) <= max(piece_bytes, members - 1) + members for one in wire.sent for _, goes in one
        )


def test_what_breaks_on_the_way_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PIECE_BYTES", 4)

    def begin(*_: object) -> Callable[[], None]:
        def wait() -> None:
            raise RuntimeError("the other one has gone")

        return wait

    packets = [torch.zeros(0, dtype=torch.uint8), torch.zeros(40, dtype=torch.uint8)]
    with pytest.raises(RuntimeError, match="has gone"):
        swap(packets, [0, 40], 40, begin)
