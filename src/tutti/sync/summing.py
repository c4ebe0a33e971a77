"""Sums of buffers over the live members, written on the wire as a codec says.

    fp32 fp16 bf16   one all-reduce of the numbers
    int8 int4        members swap encoded pieces, each adds up its own in fp32, encodes the sum, and all gather it:
                     2 (n − 1)/n payloads a member, as a ring all-reduce has, and two roundings whatever n is
    topk             all gather all payloads: (n − 1) of them a member
    powersgd         two all-reduces of thin matrices

All members end with the same bits. What is lost on the way is owed by whoever lost it (`ErrorFeedback`): by the sender
of a payload, and by the member that rounded a sum.

Where several members share a machine and there are several machines, all of this is done between machines only
(`levels`).

Exchanges that take more than one call run on a thread of their own, in the order in which they were started, so that
backward goes on meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from tutti.config.agreement import SyncConfig
from tutti.core import TrainingError
from tutti.sync.background import Courier
from tutti.sync.buffer import Buffer, lane_bounds, piece_bounds
from tutti.sync.codecs import (
    HEADER_BYTES,
    Codec,
    Corrupt,
    Debts,
    ErrorFeedback,
    Floats,
    NotFinite,
    PowerSGD,
    Sealer,
    Shaped,
    make_codec,
    require_finite,
    unseal,
)
from tutti.sync.levels import Levels
from tutti.sync.transport import PeerLost, Transport, Wait


class Summing:
    """Sums over the members of `transport`."""

    def __init__(
        self, transport: Transport, codec: Codec | PowerSGD, *, feedback: ErrorFeedback | None, squeeze: bool
    ) -> None:
        self.transport = transport
        self.codec = codec
        self.feedback = feedback
        self._sealer = Sealer(squeeze=squeeze)
        self._squeeze = squeeze
        self._courier: Courier | None = None
        self._levels: Levels | None = None

    @classmethod
    def of(cls, sync: SyncConfig, transport: Transport) -> Summing:
        """As `sync` asks for."""
        codec = make_codec(sync)
        feedback = ErrorFeedback(sync.feedback_decay) if codec.needs_feedback else None
        return cls(transport, codec, feedback=feedback, squeeze=sync.then == "zstd")

    def start(self, buffer: Buffer) -> Wait:
        """Begin summing `buffer` in place. Starting or waiting may raise PeerLost, or TrainingError where a number is
        not finite."""
        if self.transport.size == 1:
            return lambda: None
        levels = self.transport.levels
        if levels is not self._levels:
            self._new_levels(levels)
        if isinstance(self.codec, Floats) and levels is None:
            return self._start_floats(self.transport, buffer, self.codec)
        if self._courier is None:
            self._courier = Courier()
        if levels is None:
            debts = (self.feedback or ErrorFeedback()).of(buffer.name)
            return self._courier.send(lambda: self._exchange(self.transport, buffer, debts))
        return self._courier.send(lambda: self._exchange_in_two(levels, buffer))

    def start_rows(self, buffer: Buffer) -> Wait:
        """Begin summing `buffer`, a table [rows, any] of which members changed few rows, in place: first the members
        agree on which, then they sum up those. As `start` where a codec remembers what all of a buffer lost."""
        several = self.transport.size > 1
        if not several or not isinstance(self.codec, Floats) or self.transport.levels is not None:
            return self.start(buffer)
        table = buffer.flat.view(buffer.parts[0].shape)
        # As (table != 0).any(1), which takes three times as long on a CPU.
        changed = ((table.amax(1) != 0) | (table.amin(1) != 0)).float()
        self.transport.all_reduce(changed)
        rows = changed.nonzero().squeeze(1)
        if 2 * len(rows) > len(table):
            return self.start(buffer)
        some = table.index_select(0, rows)
        finish = self.start(Buffer.of(some.view(-1), [(buffer.name, some)]))

        def wait() -> None:
            finish()
            table.index_copy_(0, rows, some)

        return wait

    def start_plain(self, tensor: Tensor, transport: Transport) -> Wait:
        """Begin summing `tensor` in place, as it is, over `transport`; its turn comes after what was started before."""
        if self._courier is None:
            return transport.start_all_reduce(tensor)
        return self._courier.send(lambda: transport.all_reduce(tensor))

    def keep(self) -> None:
        """What was summed since the last call counts: from now on its errors are owed."""
        if self.feedback is not None:
            self.feedback.keep()

    def drop(self) -> None:
        """It does not count."""
        if self.feedback is not None:
            self.feedback.drop()

    def owed(self, buffers: Iterable[Buffer]) -> dict[str, Tensor]:
        """What this member owes of every parameter, as views of what it remembers."""
        if self.feedback is None:
            return {}
        found = {}
        for buffer in buffers:
            error = self.feedback.error(buffer.name, buffer.flat)
            for part in buffer.parts:
                found[part.name] = error[part.start : part.start + part.size].view(part.shape)
        return found

    def sum(self, buffer: Buffer) -> None:
        """Sum `buffer` in place."""
        self.start(buffer)()

    def _start_floats(self, transport: Transport, buffer: Buffer, codec: Floats) -> Wait:
        try:
            low = codec.cast(buffer.flat)
        except NotFinite as error:
            raise not_finite(buffer, error, codec.name) from error
        finish = transport.start_all_reduce(low)

        def wait() -> None:
            finish()
            if low is not buffer.flat:
                buffer.flat.copy_(low)

        return wait

    def _new_levels(self, levels: Levels | None) -> None:
        self._levels = levels  # the former's groups are let go of
        if isinstance(self.codec, PowerSGD):
            self.codec.right.clear()  # others may have a lane now, and no warm start

    @torch.no_grad()
    def _exchange_in_two(self, levels: Levels, buffer: Buffer) -> None:
        codec, flat = self.codec, buffer.flat
        bounds = lane_bounds(buffer, levels.lanes, whole_parts=isinstance(codec, PowerSGD))
        debts = None if isinstance(codec, Floats) else (self.feedback or ErrorFeedback()).of(buffer.name)
        if debts is not None:
            flat.copy_(debts.correct(flat))  # inside a machine nothing is lost: there all debts are paid
            debts.owe(torch.zeros_like(flat))
        levels.collect(flat, bounds)
        if levels.across is not None:
            start, stop = bounds[levels.inside.rank]
            piece = buffer.piece(start, stop)
            if isinstance(codec, Floats):
                self._start_floats(levels.across, piece, codec)()
            elif piece.parts and debts is not None:  # there may be more lanes than parameters
                self._exchange(levels.across, piece, debts.of_piece(start, stop))
        levels.spread(flat, bounds)

    @torch.no_grad()
    def _exchange(self, transport: Transport, buffer: Buffer, debts: Debts) -> None:
        codec, flat = self.codec, buffer.flat
        values = debts.correct(flat)
        try:
            if isinstance(codec, PowerSGD):
                total, error = codec.sum(transport, values, buffer.parts)
                debts.owe(error)
                flat.copy_(total)
            elif codec.sparse:
                self._gather(transport, codec, values, debts, flat)
            else:
                self._swap_and_gather(transport, codec, values, debts, flat)
        except NotFinite as error:
            raise not_finite(buffer, error, codec.name) from error

    # Both use up `values` (what is sent; at the end what is owed of it), and write the sum into `total`: what is as
    # large as the model costs more to make than to compute with.

    def _gather(
        self, transport: Transport, codec: Codec, values: Tensor, debts: Debts, total: Tensor
    ) -> None:
        payload = codec.encode(values)
        codec.add_to(values, payload, -1)
        debts.owe(values)
        found = self._share(transport, payload, codec.payload_bytes(len(values)))
        total.zero_()
        for some in found:
            codec.add_to(total, some.to(total.device))

    def _swap_and_gather(
        self, transport: Transport, codec: Codec, values: Tensor, debts: Debts, total: Tensor
    ) -> None:
        require_finite(values)
        bounds = piece_bounds(len(values), transport.size)
        mine = bounds[transport.rank]
        own = values[slice(*mine)].clone()
        packets = []
        for place, (start, stop) in enumerate(bounds):
            if place == transport.rank:
                packets.append(torch.empty(0, dtype=torch.uint8))
                values[start:stop] = 0  # what stays here loses nothing
                continue
            payload = codec.encode(values[start:stop])
            codec.add_to(values[start:stop], payload, -1)
            packets.append(self._sealer.seal(payload.cpu()))
        debts.owe(values)
        count = mine[1] - mine[0]
        whole = torch.zeros_like(own)
        sizes = [codec.payload_bytes(stop - start) for start, stop in bounds]
        came = self._swap(transport, packets, codec.payload_bytes(count), max(sizes))
        for place, packet in enumerate(came):
            if place == transport.rank:
                whole += own
            else:
                codec.add_to(whole, packet.to(own.device))
        try:
            payload = codec.encode(whole)
        except NotFinite as error:
            raise NotFinite(mine[0] + error.index, str(error)) from error
        codec.add_to(whole, payload, -1)
        debts.owe_more(mine[0], whole)
        for some, (start, stop) in zip(self._share(transport, payload, sizes), bounds, strict=True):
            total[start:stop] = codec.decode(some.to(total.device), stop - start)

    def _share(
        self, transport: Transport, payload: Tensor, payload_bytes: int | Sequence[int]
    ) -> list[Tensor]:
        """The payloads of all members, by rank."""
        sizes = [payload_bytes] * transport.size if isinstance(payload_bytes, int) else payload_bytes
        payload = payload.cpu()
        packet, nothing = self._sealer.seal(payload), torch.empty(0, dtype=torch.uint8)
        outgoing = [nothing if place == transport.rank else packet for place in range(transport.size)]
        found = self._swap(transport, outgoing, sizes, max(sizes))
        found[transport.rank] = payload
        return found

    def _swap(
        self,
        transport: Transport,
        packets: Sequence[Tensor],
        payload_bytes: int | Sequence[int],
        largest_bytes: int,
    ) -> list[Tensor]:
        """Give packet i to member i; the payloads that came, by rank (this member's own place is empty).
        `payload_bytes`: of those that come, before zstd; `largest_bytes`: of any that is given to anybody."""
        expected = [payload_bytes] * transport.size if isinstance(payload_bytes, int) else list(payload_bytes)
        if self._squeeze:
            lengths = transport.all_gather(torch.tensor([len(packet) for packet in packets]))
            arriving = [int(of[transport.rank]) for of in lengths]
            largest = max(int(of.max()) for of in lengths)
        else:
            arriving = [HEADER_BYTES + size for size in expected]
            arriving[transport.rank] = 0
            largest = HEADER_BYTES + largest_bytes
        found = transport.all_to_all(packets, arriving, largest)
        for place, packet in enumerate(found):
            if place == transport.rank:
                continue
            try:
                found[place] = unseal(packet, expected[place])
            except Corrupt as error:
                raise PeerLost(
                    f"what replica {place} sent arrived damaged and is not used: {error}"
                ) from error
        return found


def plain_sums(transport: Transport) -> Summing:
    """Of numbers as they are."""
    return Summing(transport, Floats("fp32"), feedback=None, squeeze=False)


def bytes_sent(codec: Codec | PowerSGD, count: int, parts: Sequence[Shaped], members: int, rank: int) -> int:
    """What member `rank` sends to sum one buffer, without zstd: the formula that the meter is held to."""
    if members == 1:
        return 0
    if isinstance(codec, PowerSGD):
        return sum(2 * (members - 1) * 4 * numbers // members for numbers in codec.sent_numbers(parts))
    if isinstance(codec, Floats):
        return 2 * (members - 1) * codec.payload_bytes(count) // members
    if codec.sparse:
        return (members - 1) * (HEADER_BYTES + codec.payload_bytes(count))
    pieces = [
        HEADER_BYTES + codec.payload_bytes(stop - start) for start, stop in piece_bounds(count, members)
    ]
    return sum(pieces) - pieces[rank] + (members - 1) * pieces[rank]


def not_finite(buffer: Buffer, error: NotFinite, codec: str) -> TrainingError:
    """What the user is told where `codec` cannot write `buffer`."""
    return TrainingError(
        f"{error} in what {buffer.owner(error.index)} sends to the other replicas: codec {codec} cannot write it",
        "lower train.learning_rate, or see what made it with sync.codec=fp32",
    )
