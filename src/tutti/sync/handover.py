"""State for a newcomer, handed over in the background.

A member that is to give makes a copy (a moment's work in memory) and goes on; a thread hands it out, piece by piece
of one tensor after the other. The newcomer's thread fetches it while others train. Pieces are small enough that on a
slow link, too, one after the other is a sign of life, and several are asked for ahead, so that a long way costs little.
"""

from __future__ import annotations

import io
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import torch
import zmq
from torch import Tensor

from tutti.core import TrainingError
from tutti.core.address import bracketed
from tutti.sync.background import in_background
from tutti.sync.channel import caller, listener

#: A giver that says nothing for so long is dead or cut off.
_SILENCE_MS = 10_000
_POLL_MS = 200
#: Of a tensor, and how many of them are on their way.
_PIECE_BYTES, _AHEAD = 1 << 18, 16


class Lost(Exception):
    """The giver is gone, or has something else by now."""


class Giver:
    """Hands out the newest state that was offered to whoever knows the run's secret."""

    def __init__(self, secret: bytes, host: str) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = listener(self._context, zmq.ROUTER, secret)
        port = self._socket.bind_to_random_port("tcp://*")
        #: Where to fetch it.
        self.address = f"tcp://{bracketed(host)}:{port}"
        self._offer: tuple[str, bytes, list[Tensor]] = ("", b"", [])
        self._closed = threading.Event()
        threading.Thread(target=self._serve, name="handover", daemon=True).start()

    def offer(self, key: str, state: Any) -> None:
        """Copy `state` (anything that pickles, with tensors in it) and have it ready under `key`."""
        self._offer = (key, *_taken_apart(state))

    def withdraw(self) -> None:
        """Forget it: nobody is to fetch any more."""
        self._offer = ("", b"", [])

    def close(self) -> None:
        """End the thread."""
        self._closed.set()

    def _serve(self) -> None:
        while not self._closed.is_set():
            if not self._socket.poll(_POLL_MS):
                continue
            who, key, number, start = self._socket.recv_multipart()
            have, frame, tensors = self._offer
            if key.decode() != have:
                answer: list[Any] = [b"gone"]
            elif number == b"":
                answer = [b"frame", frame]
            else:
                content = tensors[int(number)].reshape(-1).view(torch.uint8).numpy().data
                answer = [b"piece", content[int(start) : int(start) + _PIECE_BYTES]]
            self._socket.send_multipart([who, *answer], copy=False)
        self._socket.close()


def fetch(secret: bytes, address: str, key: str) -> Future[Any]:
    """The state offered at `address` under `key`, fetched by a thread. The future raises Lost when it cannot be had."""
    return in_background(lambda: _fetched(secret, address, key), "fetch")


def _fetched(secret: bytes, address: str, key: str) -> Any:
    with zmq.Context() as context, caller(context, zmq.DEALER, secret) as socket:
        socket.connect(address)

        def ask(number: str, start: int) -> None:
            socket.send_multipart([key.encode(), number.encode(), str(start).encode()])

        def answer() -> Any:
            if not socket.poll(_SILENCE_MS):
                raise Lost(f"{address} has not answered for {_SILENCE_MS / 1000:.0f} s")
            kind, *content = socket.recv_multipart(copy=False)
            if kind.bytes == b"gone":
                raise Lost(f"{address} has no state {key} any more")
            return content[0].buffer

        def load(number: int, into: memoryview) -> None:
            starts = range(0, len(into), _PIECE_BYTES)
            for start in starts[:_AHEAD]:
                ask(str(number), start)
            for place, start in enumerate(starts):
                piece, stop = answer(), min(start + _PIECE_BYTES, len(into))
                if len(piece) != stop - start:
                    raise TrainingError(
                        f"tensor {number} of a handed over state arrived with {len(piece)} bytes at {start}"
                    )
                into[start:stop] = piece
                if place + _AHEAD < len(starts):
                    ask(str(number), starts[place + _AHEAD])

        ask("", 0)
        return _put_together(bytes(answer()), load)


def _taken_apart(state: Any) -> tuple[bytes, list[Tensor]]:
    """`state` pickled with numbers in place of its tensors, and copies of these on the CPU."""
    tensors: list[Tensor] = []

    class Pickler(pickle.Pickler):
        def persistent_id(self, thing: Any) -> Any:
            if not isinstance(thing, Tensor):
                return None
            tensors.append(thing.detach().to("cpu", copy=True).contiguous())
            return len(tensors) - 1, tensors[-1].dtype, tuple(thing.shape)

    buffer = io.BytesIO()
    Pickler(buffer, protocol=pickle.HIGHEST_PROTOCOL).dump(state)
    return buffer.getvalue(), tensors


def _put_together(frame: bytes, load: Callable[[int, memoryview], None]) -> Any:
    """`load(number, into)` fills the memory of tensor `number`."""

    class Unpickler(pickle.Unpickler):
        def persistent_load(self, identity: Any) -> Tensor:
            number, dtype, shape = identity
            tensor = torch.empty(shape, dtype=dtype)
            load(number, tensor.view(-1).view(torch.uint8).numpy().data)
            return tensor

    return Unpickler(io.BytesIO(frame)).load()
