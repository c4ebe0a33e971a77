"""One exchange of push-sum: a member gives some of what it holds to one neighbour, and gets the like from another.

What travels is a `Parcel`: numbers as a codec writes them, and the weight that goes with them. The giver is told what
its parcel says when it is read, and subtracts just that: what the codec lost has never left. So the sum of everything
that members hold stays what it is, whatever the codec, and nothing is owed.

A neighbour that is lost stays so until `begin`. What cannot be given is kept; what does not come is not waited for
again. The parts of a replica agree on who is lost, because all of them have to keep the same weight.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tutti.sync.buffer import Buffer
from tutti.sync.codecs import HEADER_BYTES, Codec, Corrupt, NotFinite, Sealer, unseal
from tutti.sync.codecs.codec import as_bytes, from_bytes
from tutti.sync.summing import not_finite
from tutti.sync.transport import PeerLost, StaticTransport, Transport, Wait

_WEIGHT_BYTES = 8


@dataclass(frozen=True)
class Parcel:
    """`numbers` fp32 [count] and the `weight` that they stand for."""

    numbers: Tensor
    weight: float


class Push:
    """Parcels between the members of `transport`, written by `codec`; `inside`: the parts of this replica."""

    def __init__(
        self, transport: Transport, codec: Codec, inside: StaticTransport, *, squeeze: bool = False
    ) -> None:
        self._transport = transport
        self._codec = codec
        self._inside = inside
        self._sealer = Sealer(squeeze=squeeze)
        self._squeeze = squeeze
        self._lost: set[int] = set()

    def begin(self) -> None:
        """The members have met: whoever is among them is alive."""
        self._lost.clear()

    def exchange(self, buffer: Buffer, weight: float, to: int, source: int) -> tuple[Parcel, Parcel]:
        """Give `buffer` and `weight` to member `to` and take what `source` gives: what has left, and what came.

        Where a neighbour is lost that is nothing, of weight 0. Raises TrainingError where a number is not finite.
        """
        codec, flat = self._codec, buffer.flat
        size = codec.payload_bytes(len(flat))
        try:
            payload = codec.encode(flat)
        except NotFinite as error:
            raise not_finite(buffer, error, codec.name) from error
        given = Parcel(codec.decode(payload, len(flat)), weight)
        weight_bytes = as_bytes(torch.tensor([weight], dtype=torch.float64))
        packet = self._sealer.seal(torch.cat([weight_bytes, payload.cpu()]))
        gone, packet_in = self._swap(packet, to, _WEIGHT_BYTES + size, source)
        arrived: Tensor | None = None
        if packet_in is not None:
            try:
                arrived = unseal(packet_in, _WEIGHT_BYTES + size)
            except Corrupt:
                arrived = None  # it has left its giver, with its weight: what is left is still a mean
        gone, came = self._agree(gone, arrived is not None, flat.device)
        nothing = Parcel(torch.zeros_like(flat), 0.0)
        if not came or arrived is None:
            return given if gone else nothing, nothing
        weight_in = float(from_bytes(arrived[:_WEIGHT_BYTES], torch.float64))
        numbers = codec.decode(arrived[_WEIGHT_BYTES:].to(flat.device), len(flat))
        return given if gone else nothing, Parcel(numbers, weight_in)

    def _swap(self, packet: Tensor, to: int, payload_bytes: int, source: int) -> tuple[bool, Tensor | None]:
        """Send `packet` to `to`; whether it went, and the packet of `source` if it came."""
        size = HEADER_BYTES + payload_bytes
        if self._squeeze:
            length = torch.tensor([len(packet)])
            length_in = torch.zeros_like(length)
            self._both(as_bytes(length), to, as_bytes(length_in), source)
            size = int(length_in)
        arriving = torch.empty(size, dtype=torch.uint8)
        self._both(packet, to, arriving, source)
        return to not in self._lost, arriving if source not in self._lost else None

    def _both(self, leaving: Tensor, to: int, arriving: Tensor, source: int) -> None:
        """Send and receive at once: everybody starts both before anybody waits, so no ring of waits can close."""
        started: list[tuple[int, Wait]] = []

        def attempt(member: int, start: Callable[[], Wait]) -> None:
            if member not in self._lost:
                try:
                    started.append((member, start()))
                except PeerLost:
                    self._lost.add(member)

        attempt(to, lambda: self._transport.start_send(leaving, to))
        attempt(source, lambda: self._transport.start_receive(arriving, source))
        for member, wait in started:
            try:
                wait()
            except PeerLost:
                self._lost.add(member)

    def _agree(self, gone: bool, came: bool, device: torch.device) -> tuple[bool, bool]:
        """Whether the parcel went and came for every part of this replica."""
        if self._inside.size == 1:
            return gone, came
        failures = torch.tensor([float(not gone), float(not came)], device=device)
        self._inside.all_reduce(failures)
        return not bool(failures[0]), not bool(failures[1])


def parcel_bytes(codec: Codec, count: int) -> int:
    """What a member sends in one exchange of `count` numbers, without zstd: the formula that the meter is held to."""
    return HEADER_BYTES + _WEIGHT_BYTES + codec.payload_bytes(count)
