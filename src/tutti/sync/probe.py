"""Links and codecs, measured before a run over the transport that the run will use; seconds, not minutes, on any link.

A link is a latency, the median of small exchanges, and a rate, that of the largest buffer that goes through in a fair
time. Buffers grow by fours, so that a slow link never sees a large one; what goes first is not counted, for links let a
burst pass at full speed. All members take the slowest one's time, so all make the same calls.

A codec's time is that of a real sum over a transport on which nothing has to travel.
"""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from tutti.config.agreement import SyncConfig
from tutti.sync.buffer import Buffer
from tutti.sync.cost import PACKETS, CodecCost, Link, travels_as
from tutti.sync.summing import Summing
from tutti.sync.transport import PeerLost, Transport, Wait

_SMALLEST_BYTES, _GROWTH, _LARGEST_BYTES = 1 << 14, 4, 1 << 24
#: One exchange may take so long, and all small ones together.
_FAIR_SECONDS = 0.25
_REPEATS = 4
_SMALL_EXCHANGES = 20
#: Vectors on which codecs are tried, a short and a long one.
_CODEC_NUMBERS = (1 << 13, 1 << 20)
_CODEC_SECONDS = 0.5


def meet_all(transport: Transport, members: int) -> None:
    """Meet the other replicas, `members` with this one.

    Raises:
        PeerLost: not all of them came.
    """
    transport.meet()
    if transport.size != members:
        raise PeerLost(f"of {members} replicas only {transport.size} came to measure")


def measure_links(
    transport: Transport, syncs: Iterable[SyncConfig], device: torch.device, shapes: Sequence[tuple[int, ...]]
) -> dict[str, Link]:
    """What sums and packets cost between the members, for what `syncs` send of parameters of `shapes`."""
    wanted = dict.fromkeys(["fp32", *(travels_as(sync.codec) for sync in syncs)])
    most_bytes = 4 * sum(map(math.prod, shapes))
    return {kind: _measure_link(transport, _exchange(transport, kind, device), most_bytes) for kind in wanted}


def measure_meeting(transport: Transport) -> float:
    """Seconds in which members agree on who is there, tell each other a few numbers, and settle whether it counts."""

    def meet() -> None:
        transport.meet()
        transport.all_gather(torch.zeros(10, dtype=torch.int64))
        if not transport.commit():
            raise PeerLost("a member was lost while it measured")

    return statistics.median(_timed(transport, meet) for _ in range(5))


def measure_codecs(
    syncs: Iterable[SyncConfig], members: int, shapes: Sequence[tuple[int, ...]], device: torch.device
) -> dict[str, CodecCost]:
    """Processor time of a sum over `members`, by codec, of vectors in which parameters of `shapes` lie."""
    few, many = (sample_buffer(shapes, numbers, members, device) for numbers in _CODEC_NUMBERS)
    found: dict[str, CodecCost] = {}
    for sync in syncs:
        if sync.codec not in found:
            short, long = (_codec_seconds(Summing.of(sync, Mirror(members)), like) for like in (few, many))
            each = max(0.0, long - short) / (len(many.flat) - len(few.flat))
            found[sync.codec] = CodecCost(max(0.0, short - each * len(few.flat)), each)
    return found


def sample_buffer(
    shapes: Sequence[tuple[int, ...]], numbers: int, members: int, device: torch.device
) -> Buffer:
    """About so many random numbers in `shapes`, the largest cut to fit, and as many times as it takes; of a length
    that members share out evenly."""
    whole = numbers + -numbers % (4096 * members)
    taken, room = list[tuple[str, Tensor]](), whole
    for shape in itertools.cycle(sorted((s for s in shapes if 0 not in s), key=math.prod, reverse=True)):
        width = math.prod(shape[1:])
        if (rows := min(shape[0] if shape else 1, room // width)) == 0:
            break
        taken.append((f"part {len(taken)}", torch.empty((rows, *shape[1:]), device="meta")))
        room -= rows * width
    taken.append(("rest", torch.empty(room, device="meta")))
    return Buffer.of(torch.randn(whole, device=device), taken)


class Mirror(Transport):
    """Members who all say what this one says, at once: what is left of an exchange is its arithmetic."""

    def __init__(self, members: int) -> None:
        super().__init__()
        self._members = members

    @property
    def rank(self) -> int:
        return 0

    @property
    def size(self) -> int:
        return self._members

    def start_all_reduce(self, tensor: Tensor) -> Wait:
        return lambda: None

    def all_gather(self, tensor: Tensor) -> list[Tensor]:
        return [tensor] * self._members

    def all_to_all(
        self, outgoing: Sequence[Tensor], incoming: Sequence[int], largest: int | None = None
    ) -> list[Tensor]:
        return list(outgoing)


def _exchange(transport: Transport, kind: str, device: torch.device) -> Callable[[int], tuple[int, Wait]]:
    """For a size in bytes: what a member sends, and an exchange that sends it."""
    members = transport.size

    def packets(size: int) -> tuple[int, Wait]:
        each = max(1, size // members)
        outgoing = [torch.zeros(each * (m != transport.rank), dtype=torch.uint8) for m in range(members)]
        incoming = [len(packet) for packet in outgoing]
        return (members - 1) * each, lambda: _drop(transport.all_to_all(outgoing, incoming, each))

    def sums(size: int) -> tuple[int, Wait]:
        dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[kind]
        numbers = torch.zeros(max(1, size // dtype.itemsize), dtype=dtype, device=device)

        def exchange() -> None:
            transport.all_reduce(numbers)
            _settle(device)

        return 2 * (members - 1) * numbers.nbytes // members, exchange

    return packets if kind == PACKETS else sums


def _measure_link(transport: Transport, exchange: Callable[[int], tuple[int, Wait]], most_bytes: int) -> Link:
    _, small = exchange(64)
    smalls = [_timed(transport, small)]
    smalls += [_timed(transport, small) for _ in range(_repeats(_SMALL_EXCHANGES, smalls[0]))]
    latency = statistics.median(smalls)
    largest = min(_LARGEST_BYTES, max(most_bytes, _SMALLEST_BYTES))
    size = min(_SMALLEST_BYTES, largest)
    while True:
        sent, large = exchange(size)
        seconds = _timed(transport, large)
        longer = min(size * _GROWTH, largest)
        if longer == size or seconds * longer / size > _FAIR_SECONDS:
            break
        size = longer
    seconds = statistics.median(_timed(transport, large) for _ in range(_REPEATS))
    return Link(latency, sent / max(seconds - latency, 0.1 * seconds, 1e-9))


def _repeats(most: int, seconds: float) -> int:
    """As many as are done in a fair time, but some."""
    return max(2, min(most, int(_FAIR_SECONDS / max(seconds, 1e-9))))


def _timed(transport: Transport, exchange: Wait) -> float:
    """Seconds of `exchange`, begun by all members at once, for the one that waits longest."""
    transport.all_gather(torch.zeros(1))
    began = time.perf_counter()
    exchange()
    seconds = torch.tensor([time.perf_counter() - began], dtype=torch.float64)
    return max(float(theirs) for theirs in transport.all_gather(seconds))


def _codec_seconds(summing: Summing, like: Buffer) -> float:
    """The best of several sums: a busy moment must not decide."""
    times: list[float] = []
    values = like.flat.clone()
    while len(times) < 3 or (sum(times) < _CODEC_SECONDS and len(times) < 10):
        like.flat.copy_(values)
        _settle(values.device)
        began = time.perf_counter()
        summing.sum(like)
        _settle(values.device)
        times.append(time.perf_counter() - began)
        summing.keep()
    return min(times)


def _settle(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _drop(_: object) -> None:
    pass
