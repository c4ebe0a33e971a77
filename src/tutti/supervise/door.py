"""The door of a run: replicas on other machines come in, if they know its key.

    join      {count or null, cores, machine, software}   →   {guest, numbers, incarnation, files} or {refused, hint}
    file      {guest, name, offset}                       →   {}, bytes
    work      {guest, after}                              →   {stage, …}: what is to be done; or {wait}
    measured  {guest, events}                             →   {}
    alive     {guest}                                     →   {known}
    leave     {guest}                                     →   {}

A run has as many seats as replicas; those that do not start on the first machine are free. A guest that falls silent
loses its seats: others may have them. What is to be done has a number, `stage`: a guest asks for what comes `after` the
one that it has ended.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zmq

from tutti.core.address import bracketed
from tutti.core.errors import LaunchError
from tutti.sync.channel import listener

CHUNK_BYTES = 256 << 10
#: A guest that was not heard of for so long has left.
SILENCE_SECONDS = 60.0
_LOOK_MS = 200
#: Workers of a guest may be started again so often under numbers that nobody else had.
_INCARNATIONS = 10_000


@dataclass
class _Guest:
    numbers: list[int]
    machine: str
    heard: float


@dataclass(frozen=True)
class House:
    """What a guest finds: `files` by the name under which they are asked for. `software`: what it has to run itself.
    `parts`: workers of a replica."""

    files: Mapping[str, Path]
    software: str
    parts: int


class Door:
    """Serves in a thread of its own. `seats`: numbers of replicas that may come in. `note(kind, **fields)`: told of who
    comes and goes; `receive(events)`: of what guests measured.

    Raises:
        LaunchError: `host` is not this machine, or somebody else listens at `port`.
    """

    def __init__(
        self,
        host: str,
        port: int,
        key: bytes,
        seats: Sequence[int],
        house: House,
        note: Callable[..., None],
        receive: Callable[[list[dict[str, Any]]], None],
    ) -> None:
        self._free = sorted(seats)
        self._guests: dict[int, _Guest] = {}
        self._came = 0
        self._house, self._note, self._receive = house, note, receive
        self._stages: list[Mapping[str, Any]] = []
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = listener(self._context, zmq.REP, key)
        try:
            self._socket.bind(f"tcp://{bracketed(host)}:{port}")
        except zmq.ZMQError as error:
            self._socket.close()
            self._context.term()
            raise LaunchError(
                f"--listen: cannot listen at {host}:{port}: {error}",
                "give an address of this machine and a free port",
            ) from error
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="door", daemon=True)
        self._thread.start()

    def give(self, work: Mapping[str, Any]) -> None:
        """From now on this (JSON) is what guests are to do."""
        self._stages.append(work)

    def close(self) -> None:
        """Nobody comes in any more."""
        self._ending.set()
        self._thread.join(timeout=10)

    def _serve(self) -> None:
        while not self._ending.is_set():
            with suppress(OSError):  # a full disk, of which the workers will tell
                self._forget_silent()
            if not self._socket.poll(_LOOK_MS):
                continue
            frames = self._socket.recv_multipart()
            try:
                answer = self._answer(json.loads(frames[0]))
            except (ValueError, KeyError, TypeError, IndexError, OSError) as error:
                answer = [json.dumps({"refused": f"not understood: {error}", "hint": ""}).encode()]
            self._socket.send_multipart(answer)
        self._socket.close()
        self._context.term()

    def _answer(self, asked: dict[str, Any]) -> list[bytes]:
        verb = asked["verb"]
        guest = self._guests.get(int(asked.get("guest", 0)))
        if guest is not None:
            guest.heard = time.monotonic()
        if verb == "file":
            with self._house.files[asked["name"]].open("rb") as file:
                file.seek(int(asked["offset"]))
                return [b"{}", file.read(CHUNK_BYTES)]
        if verb == "join":
            found = self._join(
                asked["count"], int(asked["cores"]), str(asked["machine"]), str(asked["software"])
            )
        elif verb == "work":
            stage = len(self._stages)
            found = {"stage": stage, **self._stages[-1]} if stage > int(asked["after"]) else {"wait": True}
        elif verb == "measured":
            self._receive(list(asked["events"]))
            found = {}
        elif verb == "leave":
            if guest is not None:
                self._let_go(int(asked["guest"]), "left")
            found = {}
        else:
            found = {"known": guest is not None}
        return [json.dumps(found).encode()]

    def _join(self, wanted: int | None, cores: int, machine: str, software: str) -> dict[str, Any]:
        if software != self._house.software:
            return {
                "refused": f"the run goes on with {self._house.software}, this machine has {software}",
                "hint": "install the same versions on all machines",
            }
        if not self._free:
            return {
                "refused": "all replicas of the run have their place",
                "hint": "wait until one leaves, or start the run with more `replicas`",
            }
        count = int(wanted) if wanted is not None else max(1, cores // self._house.parts)
        numbers, self._free = self._free[:count], self._free[count:]
        self._came += 1
        self._guests[self._came] = _Guest(numbers, machine, time.monotonic())
        self._note("joined", of_replicas=numbers, machine=machine)
        return {
            "guest": self._came,
            "numbers": numbers,
            "incarnation": self._came * _INCARNATIONS,
            "files": {name: path.stat().st_size for name, path in self._house.files.items()},
        }

    def _forget_silent(self) -> None:
        for number, guest in list(self._guests.items()):
            if time.monotonic() - guest.heard > SILENCE_SECONDS:
                self._let_go(number, "fell silent")

    def _let_go(self, number: int, how: str) -> None:
        guest = self._guests.pop(number)
        self._free = sorted([*self._free, *guest.numbers])
        self._note("left", of_replicas=guest.numbers, machine=guest.machine, how=how)
