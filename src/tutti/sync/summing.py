"""Sums of buffers over the live members, written on the wire as a codec says.

    fp32 fp16 bf16   one all-reduce of the numbers
    int8 int4        members swap encoded pieces, each adds up its own in fp32, encodes the sum, and all gather it:
                     2 (n − 1)/n payloads a member, as a ring all-reduce has, and two roundings whatever n is
    topk             all gather all payloads: (n − 1) of them a member
    powersgd         two all-reduces of thin matrices

All members end with the same bits. What is lost on the way is owed by whoever lost it (`ErrorFeedback`): by the sender
of a payload, and by the member that rounded a sum.

Exchanges that take more than one call run on a thread of their own, in the order in which they were started, so that
backward goes on meanwhile.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import torch
from torch import Tensor

from tutti.config.agreement import SyncConfig
from tutti.core import TrainingError
from tutti.sync.codecs import (
    HEADER_BYTES,
    Codec,
    Corrupt,
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
from tutti.sync.transport import PeerLost, Transport, Wait

#: Pieces begin at multiples of this, so that no block of numbers is cut.
_ALIGNMENT = 4096


@dataclass(frozen=True)
class Buffer:
    """A flat fp32 vector [count] and the parameters that lie in it."""

    flat: Tensor
    parts: Sequence[Shaped]

    @classmethod
    def of(cls, flat: Tensor, named: Iterable[tuple[str, Tensor]]) -> Buffer:
        """`flat`, in which tensors of these shapes lie one after the other."""
        parts, start = list[Shaped](), 0
        for name, tensor in named:
            parts.append(Shaped(name, tensor.shape, start))
            start += tensor.numel()
        assert start == len(flat)
        return cls(flat, parts)

    @property
    def name(self) -> str:
        """That of its first parameter."""
        return self.parts[0].name

    def owner(self, index: int) -> str:
        """The parameter at place `index`."""
        return next(part.name for part in self.parts if index < part.start + part.size)


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
        if isinstance(self.codec, Floats):
            return self._start_floats(buffer, self.codec)
        if self._courier is None:
            self._courier = Courier()
        return self._courier.send(lambda: self._exchange(buffer))

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

    def _start_floats(self, buffer: Buffer, codec: Floats) -> Wait:
        try:
            low = codec.cast(buffer.flat)
        except NotFinite as error:
            raise not_finite(buffer, error, codec.name) from error
        finish = self.transport.start_all_reduce(low)

        def wait() -> None:
            finish()
            if low is not buffer.flat:
                buffer.flat.copy_(low)

        return wait

    @torch.no_grad()
    def _exchange(self, buffer: Buffer) -> None:
        codec, flat = self.codec, buffer.flat
        feedback = self.feedback or ErrorFeedback()
        values = feedback.correct(buffer.name, flat)
        try:
            if isinstance(codec, PowerSGD):
                total, error = codec.sum(self.transport, values, buffer.parts)
                feedback.owe(buffer.name, error)
            elif codec.sparse:
                total = self._gather(codec, buffer.name, values, feedback)
            else:
                total = self._swap_and_gather(codec, buffer.name, values, feedback)
        except NotFinite as error:
            raise not_finite(buffer, error, codec.name) from error
        flat.copy_(total)

    def _gather(self, codec: Codec, name: str, values: Tensor, feedback: ErrorFeedback) -> Tensor:
        payload = codec.encode(values)
        feedback.owe(name, values - codec.decode(payload, len(values)))
        total = torch.zeros_like(values)
        for some in self._share(payload, codec.payload_bytes(len(values))):
            total += codec.decode(some.to(values.device), len(values))
        return total

    def _swap_and_gather(self, codec: Codec, name: str, values: Tensor, feedback: ErrorFeedback) -> Tensor:
        require_finite(values)
        transport = self.transport
        bounds = piece_bounds(len(values), transport.size)
        mine = bounds[transport.rank]
        error = torch.zeros_like(values)
        packets = []
        for place, (start, stop) in enumerate(bounds):
            if place == transport.rank:
                packets.append(torch.empty(0, dtype=torch.uint8))
                continue
            payload = codec.encode(values[start:stop])
            error[start:stop] = values[start:stop] - codec.decode(payload, stop - start)
            packets.append(self._sealer.seal(payload.cpu()))
        feedback.owe(name, error)
        count = mine[1] - mine[0]
        total = torch.zeros(count, device=values.device)
        for place, packet in enumerate(self._swap(packets, codec.payload_bytes(count))):
            own = place == transport.rank  # what stays here loses nothing
            total += values[mine[0] : mine[1]] if own else codec.decode(packet.to(values.device), count)
        try:
            payload = codec.encode(total)
        except NotFinite as error:
            raise NotFinite(mine[0] + error.index, str(error)) from error
        feedback.owe_more(name, mine[0], total - codec.decode(payload, count))
        sizes = [codec.payload_bytes(stop - start) for start, stop in bounds]
        return torch.cat(
            [
                codec.decode(some.to(values.device), stop - start)
                for some, (start, stop) in zip(self._share(payload, sizes), bounds, strict=True)
            ]
        )

    def _share(self, payload: Tensor, payload_bytes: int | Sequence[int]) -> list[Tensor]:
        """The payloads of all members, by rank."""
        transport = self.transport
        sizes = [payload_bytes] * transport.size if isinstance(payload_bytes, int) else payload_bytes
        payload = payload.cpu()
        packet, nothing = self._sealer.seal(payload), torch.empty(0, dtype=torch.uint8)
        outgoing = [nothing if place == transport.rank else packet for place in range(transport.size)]
        found = self._swap(outgoing, sizes)
        found[transport.rank] = payload
        return found

    def _swap(self, packets: Sequence[Tensor], payload_bytes: int | Sequence[int]) -> list[Tensor]:
        """Give packet i to member i; the payloads that came, by rank (this member's own place is empty)."""
        transport = self.transport
        expected = [payload_bytes] * transport.size if isinstance(payload_bytes, int) else list(payload_bytes)
        if self._squeeze:
            lengths = torch.tensor([len(packet) for packet in packets])
            arriving = [int(of[transport.rank]) for of in transport.all_gather(lengths)]
        else:
            arriving = [HEADER_BYTES + size for size in expected]
            arriving[transport.rank] = 0
        found = transport.all_to_all(packets, arriving)
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


def piece_bounds(count: int, members: int) -> list[tuple[int, int]]:
    """Where each member's piece of a vector begins and ends; the last ones may be shorter, or empty."""
    step = -(-count // members)
    step += -step % _ALIGNMENT if step > _ALIGNMENT else 0
    return [(min(member * step, count), min((member + 1) * step, count)) for member in range(members)]


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


class Courier:
    """A thread that runs exchanges one after the other."""

    def __init__(self) -> None:
        self._tasks: queue.SimpleQueue[tuple[Callable[[], None], Future[None]]] = queue.SimpleQueue()
        threading.Thread(target=self._work, name="sync", daemon=True).start()

    def send(self, exchange: Callable[[], None]) -> Wait:
        """Have `exchange` run after everything that was sent before it; its errors are raised by waiting."""
        result: Future[None] = Future()
        self._tasks.put((exchange, result))
        return lambda: result.result()

    def _work(self) -> None:
        while True:
            exchange, result = self._tasks.get()
            try:
                exchange()
                result.set_result(None)
            except BaseException as error:
                result.set_exception(error)
