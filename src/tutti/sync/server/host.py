"""The server's loop: hears replicas, keeps the accounts, steps the weights, answers.

Everything happens on one thread, one message after the other. Members are known by replica and incarnation; a replica
of several ranks counts as having said something when all its parts have, and all get answers of one moment.

Who is alive: ZeroMQ's own threads exchange heartbeats with every replica, also while that computes, and give up a
connection that was silent for a second; a process that is killed loses it at once. A probe that cannot be routed says
so here.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import zmq
from torch import Tensor

from tutti.core.events import EventWriter, read_events
from tutti.sync.codecs import Corrupt
from tutti.sync.ledger import Range
from tutti.sync.server.centre import BETWEEN, Spec
from tutti.sync.server.clients import Client
from tutti.sync.server.memory import ServerMemory
from tutti.sync.server.messages import Message, frames_of
from tutti.sync.server.register import Leave, Register, member_name
from tutti.sync.server.rules import Rules
from tutti.sync.server.weights import Weights

#: A connection that was silent for so long is gone; how often it is looked after.
HEARTBEAT_TIMEOUT_MS, HEARTBEAT_MS = 1000, 300
_PROBE_SECONDS = 0.25
#: The server's number among the events' ranks.
SERVER_RANK = -2
#: Parts of one replica say the same thing at about the same time, or one of them is lost.
_TOGETHER_SECONDS = 20.0


class Host:
    """`socket`: a bound ROUTER. `run`: its directory, for events. `stop_requested`: asked several times a second."""

    def __init__(
        self,
        socket: zmq.Socket[bytes],
        rules: Rules,
        memory: ServerMemory,
        run: Path,
        stop_requested: Callable[[], bool],
        progress: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._socket = socket
        self._rules = rules
        self._memory = memory
        self._run = run
        self._events = EventWriter(run / "events", SERVER_RANK, replica=-1)
        self._stop_requested = stop_requested
        self._progress = progress
        self.register = Register(
            batch=rules.batch,
            steps=rules.steps,
            replicas=rules.replicas,
            staleness=rules.staleness,
            min_replicas=rules.min_replicas,
            note=self._note,
        )
        self._clients: dict[str, Client] = {}
        self._specs: dict[int, Spec] = {}
        self._weights: Weights | None = None
        self._giver: str | None = None
        self._sums: list[Tensor] = []
        self._targets = 0
        self._probed = 0.0
        self._members: list[int] = []
        self._unsaved = False

    def run(self) -> None:
        """Until asked to stop, and every replica has left."""
        self._restore()
        while not (self._stop_requested() and not self._clients):
            self.register.stopping |= self._stop_requested()
            if self._socket.poll(50):
                self._hear_all()
            self._look_after()
            self._go_on()
        self._memory.forget()

    # Hearing -----------------------------------------------------------------------------------------------

    def _hear_all(self) -> None:
        """Everything that has come, before anybody is judged to be silent."""
        while True:
            try:
                route, *frames = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            message = Message.of(frames)
            if message is not None and message.names_its_sender:
                self._hear(route, message)
            self._go_on()

    def _hear(self, route: bytes, message: Message) -> None:
        fields = message.fields
        replica, incarnation, part = fields["replica"], fields["incarnation"], fields["part"]
        name = member_name(replica, incarnation)
        if message.kind == "join":
            self._hear_join(route, name, message)
            return
        client = self._clients.get(name)
        if client is None or client.routes.get(part) != route:
            if message.kind != "leave":
                self._send(route, "join", serial=fields["serial"])
            return
        if message.kind == "leave":
            self._lose(name)
        elif message.kind == "waiting":
            self._send(route, "patience" if self._has(client, message) else "again", serial=fields["serial"])
        elif message.kind == "push" and not self._read_gradient(client, part, message):
            self._send(route, "again", serial=fields["serial"])
        elif message.kind in ("push", "fetch", "state"):
            self._put(client, part, message)

    def _hear_join(self, route: bytes, name: str, message: Message) -> None:
        fields = message.fields
        spec = Spec(**fields["spec"])
        known = self._specs.setdefault(fields["part"], spec)
        if spec != known:
            self._send(
                route, "refuse", reason="it holds other parameters than the replicas that came before it"
            )
            return
        client = self._clients.get(name)
        if client is None or client.joined:  # joined: it begins anew, whatever we thought
            self._lose(name)
            client = self._clients[name] = Client(fields["replica"], fields["incarnation"])
        client.routes[fields["part"]] = route
        self._put(client, fields["part"], message)

    def _has(self, client: Client, waiting: Message) -> bool:
        """Whether what is waited for an answer to has arrived."""
        after, serial = waiting.fields.get("after"), waiting.fields["serial"]
        said = client.said.get(waiting.fields["part"])
        if said is None or said.fields["serial"] != serial:
            return False
        # The state to begin with is an answer itself: asked for with the join's number, and a join from then on.
        return said.kind == after or (after == "state" and self._weights is not None)

    def _put(self, client: Client, part: int, message: Message) -> None:
        """Keep what one part said until all have said it."""
        if not client.said:
            client.since = time.monotonic()
        client.said[part] = message

    def _read_gradient(self, client: Client, part: int, message: Message) -> bool:
        """Whether the push arrived whole."""
        if part in client.gradients:
            return True
        try:
            assert self._weights is not None  # a replica pushes what it computed with them
            client.gradients[part] = self._weights.decode(part, message.payload)
        except Corrupt:
            return False
        message.payload = b""
        return True

    # Going on ----------------------------------------------------------------------------------------------

    def _go_on(self) -> None:
        """Do whatever can be done with what was heard."""
        for client in list(self._clients.values()):
            kinds = {message.kind for message in client.said.values()}
            if len(client.said) < self._rules.parts or len(kinds) > 1:
                continue
            kind = kinds.pop()
            if kind == "state":
                self._begin(client)
            elif kind == "fetch":
                self._give_state(client)
            elif kind == "join" and not client.joined:
                self._admit(client)
            elif kind == "push" and client.gradients:
                self._take_in(client)
        if self._weights is not None:
            for leave in self.register.leaves():
                self._let_go(leave)
        if self._unsaved and self._memory.is_due:
            self._save()

    def _admit(self, client: Client) -> None:
        if self._weights is not None:
            client.joined = True
            self.register.join(client.replica, client.incarnation)
            self._note_members()
        elif self._giver not in self._clients and client.said[0].fields.get("gives", True):
            self._giver = client.name
            for part, route in client.routes.items():
                self._send(route, "give", serial=client.said[part].fields["serial"])

    def _begin(self, client: Client) -> None:
        """The first state of the run."""
        client_state = {part: safetensors.torch.load(said.payload) for part, said in client.said.items()}
        facts = client.said[0].fields
        client.said.clear()
        if self._weights is not None:
            return
        self._make_weights().centre.load(
            {f"{part}{BETWEEN}{n}": t for part, state in client_state.items() for n, t in state.items()}
        )
        self._events.write("serving", push=self.register.pushes, step=facts["step"], restored=False)
        self.register.begin_at(facts["step"], facts["ledger"])
        self._save()
        client.said = {part: Message("join", {"serial": facts["serial"]}) for part in client.routes}

    def _make_weights(self) -> Weights:
        self._weights = Weights(self._rules, [self._specs[part] for part in range(self._rules.parts)])
        return self._weights

    def _take_in(self, client: Client) -> None:
        """A replica's gradient is in whole: step, or add it up."""
        said = client.said[0].fields
        gradients = [client.gradients[part] for part in range(self._rules.parts)]
        client.gradients = {}
        self.register.stopping |= said["stop"]
        if not self.register.owes(client.name, said["lease"]):
            # It says it twice: our answer was lost.
            self._dismiss(client)
            return
        self.register.take_in(client.name, said["lease"])
        self._targets += said["targets"]
        if self._sums:
            torch._foreach_add_(self._sums, gradients)
        else:
            self._sums = gradients
        if self.register.is_due():
            self._step(client)

    def _step(self, last: Client) -> None:
        """`last`: whose gradient was the last one that this step waited for."""
        assert self._weights is not None
        compensates = self._weights.keeps_views and not self.register.synchronous
        computed_at = last.views if compensates else None
        factor = self._rules.factor(self.register.due_step)
        norm = self._weights.centre.step(self._sums, self._targets, factor, computed_at)
        self._sums, self._targets = [], 0
        if math.isfinite(norm):
            self.register.commit(norm)
            self._progress(self.register.step)
            self._unsaved = True
        else:
            self.register.refuse(norm)

    # Answers -----------------------------------------------------------------------------------------------

    def _let_go(self, leave: Leave) -> None:
        """Answer a push or a join: what came of it, the weights, and what is next."""
        assert self._weights is not None
        client, register = self._clients[leave.name], self.register
        asked = client.said[0]
        result = register.result_of(client.name, asked.fields["lease"]) if "lease" in asked.fields else None
        whole = self._weights.goes_whole(client)
        fields: dict[str, Any] = {
            "serial": asked.fields["serial"],
            "result": None if result is None else asdict(result),
            "lease": leave.lease,
            "ranges": leave.ranges,
            "step": register.step,
            "members": register.roll,
            "stop": register.stopping and not register.over,
            "whole": whole,
        }
        for part, route in sorted(client.routes.items()):
            self._send(route, "go", self._weights.packet_for(client, part, whole=whole), **fields)
        client.said.clear()

    def _give_state(self, client: Client) -> None:
        assert self._weights is not None
        register = self.register
        fields = {"step": register.step, "ledger": register.ledger.state()}
        for part, route in client.routes.items():
            payload = self._weights.state_for(client, part)
            self._send(route, "state", payload, serial=client.said[part].fields["serial"], **fields)
        client.said.clear()

    def _send(self, route: bytes, kind: str, payload: bytes | Tensor = b"", **fields: Any) -> bool:
        """Whether there is a connection to send on."""
        try:
            self._socket.send_multipart([route, *frames_of(kind, payload, **fields)], zmq.NOBLOCK)
        except zmq.ZMQError as error:
            if error.errno not in (zmq.EHOSTUNREACH, zmq.EAGAIN):
                raise
            return error.errno == zmq.EAGAIN
        return True

    # Who is there --------------------------------------------------------------------------------------------

    def _look_after(self) -> None:
        now = time.monotonic()
        if now - self._probed < _PROBE_SECONDS:
            return
        self._probed = now
        for name, client in list(self._clients.items()):
            if not all(self._send(route, "probe") for route in client.routes.values()):
                self._lose(name)
            elif 0 < len(client.said) < self._rules.parts and now - client.since > _TOGETHER_SECONDS:
                for route in client.routes.values():
                    self._send(route, "refuse", reason="its ranks do not speak together", lost=True)
                self._lose(name)

    def _lose(self, name: str) -> None:
        if self._clients.pop(name, None) is not None:
            self.register.lose(name)
            self._note_members()

    def _dismiss(self, client: Client) -> None:
        """Have it join again."""
        for part, route in client.routes.items():
            self._send(route, "join", serial=client.said[part].fields["serial"])
        self._lose(client.name)

    def _note_members(self) -> None:
        if self.register.roll != self._members:
            self._members = self.register.roll
            self._events.write("membership", step=self.register.step, replicas=self._members, divergence=0.0)

    def _note(self, kind: str, member: str, lease: int, ranges: list[Range]) -> None:
        push = self.register.pushes
        self._events.write(
            kind, step=self.register.step, round=lease, member=member, ranges=ranges, push=push
        )

    # Memory --------------------------------------------------------------------------------------------------

    def _save(self) -> None:
        assert self._weights is not None
        facts = {
            "register": self.register.state(),
            "specs": [self._specs[part].json() for part in range(self._rules.parts)],
        }
        self._memory.write(self._weights.centre.state(), facts)
        self._unsaved = False

    def _restore(self) -> None:
        """Go on where a server of this run was killed, if one was."""
        found = self._memory.read()
        if found is None:
            return
        tensors, facts = found
        self._specs = {part: Spec(**spec) for part, spec in enumerate(facts["specs"])}
        self._make_weights().centre.load(tensors)
        pushes, counted = facts["register"]["pushes"], facts["register"]["counted"]
        step = counted // self._rules.batch
        for (member, lease), ranges in _lost_commits(self._run, pushes).items():
            self._events.write("undone", step=step, round=lease, member=member, ranges=ranges, push=pushes)
        self._events.write("serving", push=pushes, step=step, restored=True)
        self.register.load_state(facts["register"])


def _lost_commits(run: Path, push: int) -> dict[tuple[str, int], list[Range]]:
    """What the former server of `run` counted after it had saved `push`, by member and lease."""
    lost: dict[tuple[str, int], list[Range]] = {}
    for event in read_events(run):
        if event["rank"] != SERVER_RANK:
            continue
        if event["kind"] == "serving":
            lost = {}
        elif event["kind"] == "commit" and event["push"] > push:
            lost[event["member"], event["round"]] = event["ranges"]
    return lost
