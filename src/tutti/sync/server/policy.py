"""Policy `server`: the weights and the optimizer live at a server; replicas send gradients and get weights.

A replica pushes the gradient of the samples that it was lent and waits for leave to go on, which brings the weights and
the next samples. Who may go on when is the server's business: `register`. What it does with a gradient: `centre`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import safetensors.torch
import torch
from torch import Tensor, nn

from tutti.core.types import module_device
from tutti.sync.codecs import Codec, ErrorFeedback
from tutti.sync.ledger import Ledger, Range
from tutti.sync.policy import (
    Meeting,
    Place,
    Policy,
    StepMade,
    Totals,
    local_part,
    named_trainable,
    placed_like,
)
from tutti.sync.server.centre import BETWEEN, Spec
from tutti.sync.server.link import Link, Unknown
from tutti.sync.server.messages import Message
from tutti.sync.server.wire import Wire, has_debts
from tutti.sync.transport import StaticTransport, Transport, Wait


class Kept(Protocol):
    """The optimizer that a replica has for checkpoints: it never steps."""

    def groups(self) -> list[dict[str, Any]]:
        """What the server needs to have the same one."""

    def state(self) -> dict[str, Tensor]:
        """Live tensors (this rank's parts) by `parameter/value`; made if they are not there."""

    def forget(self) -> None:
        """Let go of the state."""


class Members(Transport):
    """Who is alive, as the server said last. Replicas exchange nothing among themselves."""

    def __init__(self, replica: int) -> None:
        super().__init__()
        self._replica = replica
        self.replicas = [replica]

    @property
    def rank(self) -> int:
        return self.replicas.index(self._replica) if self._replica in self.replicas else 0

    @property
    def size(self) -> int:
        return len(self.replicas)

    def start_all_reduce(self, tensor: Tensor) -> Wait:
        raise NotImplementedError

    def all_gather(self, tensor: Tensor) -> list[Tensor]:
        raise NotImplementedError

    def all_to_all(
        self, outgoing: Sequence[Tensor], incoming: Sequence[int], largest: int | None = None
    ) -> list[Tensor]:
        raise NotImplementedError


class ParameterServer(Policy):
    """A replica's side. `inside`: the parts of this replica; `codec`, `feedback_decay`, `squeeze`: how gradients and
    weights travel."""

    drifts = True
    owns_step = True

    def __init__(
        self,
        place: Place,
        ledger: Ledger,
        batch: int,
        *,
        link: Link,
        kept: Kept,
        inside: StaticTransport,
        codec: Codec,
        feedback_decay: float,
        squeeze: bool,
        returned: bool,
        gives: bool = True,
    ) -> None:
        """`returned`: this replica has been there before, and died. `gives`: the run may begin with what it has."""
        self._members = Members(place.replica)
        super().__init__(self._members, place, ledger, batch)
        self._link = link
        self._kept = kept
        self._inside = inside
        self._codec = codec
        self._squeeze = squeeze
        self._returned = returned
        self._gives = gives
        self._feedback = ErrorFeedback(feedback_decay) if has_debts(codec) else None
        self._lease, self._ranges = 0, list[Range]()
        self._meeting: Meeting | None = None
        self._step = 0
        self._is_settled = False

    def attach(self, objective: nn.Module) -> nn.Module:
        self._device = module_device(objective)
        self._parameters = dict(named_trainable(objective))
        sizes = [local_part(p.detach()).numel() for p in self._parameters.values()]
        self._wire = Wire(list(self._parameters), sizes, self._codec, squeeze=self._squeeze)
        return objective

    def describe(self, shares: list[float], scale: float) -> None:
        """Say how much this rank's copies count in the norm, and what makes a gradient a sum: see `Spec`."""
        shapes = [list(local_part(p.detach()).shape) for p in self._parameters.values()]
        self._spec = Spec(list(self._parameters), shapes, shares, self._kept.groups(), scale)

    def start(self, step: int, last_step: int) -> Meeting | None:
        self._step = step
        self._join()
        self._kept.forget()
        assert self._meeting is not None
        self._meeting.healed = self._returned
        return self._meeting

    def samples(self, step: int) -> list[Range]:
        return self._ranges

    def before_step(self, totals: Totals) -> Totals:
        vector = totals.vector(self._device)
        self._inside.all_reduce(vector)
        return Totals.of(vector)

    def push(self, totals: Totals) -> StepMade:
        began = time.perf_counter()
        self._kept.forget()
        packet, errors = self._encode()
        lease, ranges = self._lease, self._ranges
        try:
            reply = self._link.ask(
                "push", packet, lease=lease, targets=totals.targets, stop=bool(totals.stop)
            )
            self._obey(reply)
        except Unknown:
            reply = self._join(lease)
        result = reply.fields["result"]
        if self._feedback is not None and result is not None:
            self._feedback.errors.update(errors)
        seconds = time.perf_counter() - began
        if result is None:
            return StepMade(self._step + 1, None, 0.0, seconds)
        assert ranges, "a result belongs to a lease"
        return StepMade(result["step"], result["push"], float(result["norm"]), seconds)

    def after_step(self, step: int, last_step: int, totals: Totals) -> Meeting | None:
        return self._meeting

    def sum_evaluation(self, measure: Callable[[int, int], Tensor]) -> Tensor:
        sums = measure(0, 1)
        self._inside.all_reduce(sums)
        return sums

    def settle(self) -> int:
        """Have the server's weights, optimizer and ledger as they are at one moment; the step that they are of."""
        if self._is_settled:
            return self._step
        try:
            reply = self._link.ask("fetch")
        except Unknown:
            self._join()
            reply = self._link.ask("fetch")
        state = safetensors.torch.load(reply.payload)
        self._write(state.pop("weights"))
        for name, tensor in self._kept.state().items():
            tensor.copy_(state[f"optimizer{BETWEEN}{name}"])
        self.ledger.load_state(reply.fields["ledger"])
        self._step = int(reply.fields["step"])
        self._is_settled = True
        return self._step

    def owed(self) -> dict[str, Tensor]:
        if self._feedback is None:
            return {}
        found = {}
        for name, parameter in self._parameters.items():
            local = local_part(parameter.detach())
            error = self._feedback.error(name, torch.zeros(local.numel()))
            found[name] = placed_like(error.view(local.shape), parameter)
        return found

    def sent_bytes(self) -> int:
        """Of what the server sent to this rank as well: nobody else counts it."""
        return self._link.meter.sent

    def close(self) -> None:
        self._link.close()

    # With the server -----------------------------------------------------------------------------------------

    def _join(self, lease: int | None = None) -> Message:
        """Be there (again), after a push of `lease` to which no answer came; give the server the state if it has none.

        What is owed by the codec is forgotten unless the run begins here: it was of other weights."""
        pending: dict[str, Any] = {} if lease is None else {"lease": lease}
        while True:
            try:
                reply = self._link.ask("join", spec=self._spec.json(), gives=self._gives, **pending)
                if reply.kind == "give":
                    reply = self._link.answer(
                        "state", self._own_state(), step=self._step, ledger=self.ledger.state()
                    )
            except Unknown:
                continue
            break
        if self._feedback is not None and self._returned:
            self._feedback.errors.clear()
        self._obey(reply)
        return reply

    def _own_state(self) -> bytes:
        weights = torch.cat([local_part(p.detach()).reshape(-1).float() for p in self._parameters.values()])
        state = {"weights": weights}
        if self._step > 0:
            state |= {f"optimizer{BETWEEN}{name}": tensor for name, tensor in self._kept.state().items()}
        return safetensors.torch.save({n: t.detach().cpu().clone() for n, t in state.items()})

    def _obey(self, reply: Message) -> None:
        """Take the weights and the lease, and remember who is there."""
        self._is_settled = False
        fields = reply.fields
        if fields["whole"]:
            self._write(self._wire.read_whole(reply.payload))
        else:
            self._write(self._wire.decode(reply.payload), add=True)
        self._lease, self._ranges = fields["lease"], [(start, stop) for start, stop in fields["ranges"]]
        self._members.replicas = fields["members"]
        self._step = fields["step"]
        self._meeting = Meeting(members=fields["members"], step=self._step, stop=fields["stop"])

    @torch.no_grad()
    def _write(self, flat: Tensor, *, add: bool = False) -> None:
        pieces = torch.split(flat, [local_part(p).numel() for p in self._parameters.values()])
        for parameter, piece in zip(self._parameters.values(), pieces, strict=True):
            local = local_part(parameter)
            values = piece.view(local.shape).to(local.device)
            local.add_(values) if add else local.copy_(values)

    def _encode(self) -> tuple[Tensor, dict[str, Tensor]]:
        """The packet of the gradients with what is owed, and what will be owed then."""
        flats = []
        for name, parameter in self._parameters.items():
            if parameter.grad is None:
                flat = torch.zeros(local_part(parameter.detach()).numel())
            else:
                flat = local_part(parameter.grad).detach().reshape(-1).float().cpu()
            flats.append(flat if self._feedback is None else self._feedback.of(name).correct(flat))
        values = torch.cat(flats)
        packet, read = self._wire.encode(values)
        if self._feedback is None:
            return packet, {}
        errors = torch.split(values - read, [len(flat) for flat in flats])
        return packet, dict(zip(self._parameters, errors, strict=True))
