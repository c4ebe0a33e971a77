"""How copies of a model agree: the contract that every policy keeps.

The training loop asks, once per step:

    positions = policy.samples(step)             which positions of the global order this rank computes
    with policy.micro_batch(last=…): backward    gradients are sums over targets ÷ `nominal_targets`
    totals = policy.before_step(totals)          afterwards the gradient is the one to step with
    …the optimizer steps…
    meeting = policy.after_step(step, …)         perhaps the replicas agree now

A policy that `owns_step` is asked for `make_step` instead of having the optimizer step, after `before_step`.

A policy knows names, shapes and placement of the parameters, and nothing else about the model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from tutti.sync.batches import BatchSizes
from tutti.sync.ledger import Ledger, Range
from tutti.sync.transport import Transport

T = TypeVar("T")


@dataclass(frozen=True)
class Place:
    """Where this rank stands: replica `replica` of `replicas` (as configured), part `part` of `parts`."""

    replica: int
    replicas: int
    part: int = 0
    parts: int = 1


@dataclass
class Totals:
    """What one step summed up: over this rank at first, over everybody concerned after `before_step`. `enough`: it is
    to stop because patience is at its end."""

    loss: float
    targets: int
    tokens: int
    stop: bool
    enough: bool = False

    #: How many numbers `vector` has.
    SIZE: ClassVar[int] = 5

    def vector(self, device: torch.device) -> Tensor:
        """As float64 [SIZE], to be summed over ranks; counts stay exact up to 2^53."""
        values = [self.loss, float(self.targets), float(self.tokens), float(self.stop), float(self.enough)]
        return torch.tensor(values, dtype=torch.float64, device=device)

    @classmethod
    def of(cls, vector: Tensor) -> Totals:
        """Read back what `vector` made, summed or not."""
        loss, targets, tokens, stop, enough = vector.tolist()
        return cls(loss, targets=round(targets), tokens=round(tokens), stop=stop > 0, enough=enough > 0)


@dataclass
class Meeting:
    """What happened when the replicas agreed: the ledger's entries, for the events."""

    members: list[int]
    healed: bool = False
    step: int = 0
    stop: bool = False
    committed: dict[str, list[Range]] = field(default_factory=dict)
    returned: dict[str, list[Range]] = field(default_factory=dict)
    leased: dict[str, list[Range]] = field(default_factory=dict)
    divergence: float = 0.0

    def after(self, earlier: Meeting) -> Meeting:
        """Both as one, where a meeting was held right after another."""
        for mine, theirs in (
            (self.committed, earlier.committed),
            (self.returned, earlier.returned),
            (self.leased, earlier.leased),
        ):
            for member, ranges in theirs.items():
                mine[member] = [*ranges, *mine.get(member, [])]
        self.healed |= earlier.healed
        return self


@dataclass(frozen=True)
class StepMade:
    """What came of a gradient that a policy made the step with itself.

    push: its number among all, None where it does not count. norm: of the gradient that was stepped with, before
    clipping (0: it is still being added up). seconds: how long that took.
    """

    step: int
    push: int | None
    norm: float
    seconds: float


def local_part(tensor: Tensor) -> Tensor:
    """The part of `tensor` that lives on this rank (the whole tensor unless it is sharded)."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def placed_like(local: Tensor, parameter: Tensor) -> Tensor:
    """`local` as a tensor placed like `parameter`, sharing memory."""
    if not isinstance(parameter, DTensor):
        return local
    return DTensor.from_local(
        local, parameter.device_mesh, parameter.placements, shape=parameter.shape, stride=parameter.stride()
    )


def named_trainable(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters that are trained, each once, in the order of registration."""
    return ((name, p) for name, p in module.named_parameters() if p.requires_grad)


class Policy(ABC):
    """Base of all policies. `batch` is the global number of samples of a step; `batches`: of each, where they grow."""

    #: Replicas differ between meetings: evaluation and checkpoints wait for one.
    drifts = False
    #: This replica came late and does not have the run's state yet: it listens, and must not step.
    behind = False
    #: Meetings so far.
    rounds = 0
    #: What `before_step` leaves is the gradient of an earlier step, and of the first one none.
    late = False
    #: The optimizer's step is made by `push`, somewhere else.
    owns_step = False
    #: Numbers that an evaluation sums: whoever helps without having measured gives as many zeros.
    evaluation_numbers = 3

    def __init__(self, transport: Transport, place: Place, ledger: Ledger, batch: int) -> None:
        self.transport = transport
        self.place = place
        self.ledger = ledger
        self.batches = BatchSizes(batch)

    @property
    def batch(self) -> int:
        """Samples of a step, when the batch has grown."""
        return self.batches.batch

    def attach(self, objective: nn.Module) -> nn.Module:
        """Take charge of `objective`'s gradients; the result is what the loop calls instead of it."""
        return objective

    def resume_at(self, step: int) -> None:  # noqa: B027 - most are always the same
        """Before the state after `step` is loaded: be what it was saved by."""

    @abstractmethod
    def start(self, step: int, last_step: int) -> Meeting | None:
        """Before the first step (`step` of `last_step` were made before): agree on where to begin."""

    @abstractmethod
    def samples(self, step: int) -> list[Range]:
        """What this replica trains on in `step`; every part of the replica gets the same answer."""

    def micro_batch(self, *, last: bool) -> AbstractContextManager[None]:
        """Around forward and backward of one micro-batch; `last`: gradients are complete afterwards."""
        return nullcontext()

    @abstractmethod
    def before_step(self, totals: Totals) -> Totals:
        """Finish the gradient. Returns the totals that it is to be divided by and reported with."""

    def push(self, totals: Totals) -> StepMade:
        """Have the step made that the finished gradient is for; afterwards the weights are those to go on with."""
        raise NotImplementedError

    def settle(self) -> int | None:
        """Before the run's state is evaluated or saved by the leading replica: bring it here, where it is elsewhere.

        Returns the step that it is of, if that may be another one than this replica's.
        """
        return None

    @abstractmethod
    def after_step(self, step: int, last_step: int, totals: Totals) -> Meeting | None:
        """After the optimizer's step number `step` of `last_step`: agree, if it is time to."""

    @property
    def leads(self) -> bool:
        """Whether this replica evaluates, saves and speaks for the others."""
        return self.transport.rank == 0

    def make_step(self, step: int, work: Callable[[int], T]) -> tuple[int, T]:
        """`work(step)`, which computes the gradient of step number `step`, until it counts; the step that was made,
        which is another for a replica that came late, and what `work` returned."""
        return step, work(step)

    def catch_up(self) -> int | None:
        """Take the run's state if this replica is `behind` and it has arrived: number of the step after which it
        was copied. What was listened to since has to be done again."""
        return None

    def consensus(self) -> AbstractContextManager[None]:
        """Inside, parameters are the weights that all agree on: those that are evaluated and saved."""
        return nullcontext()

    @abstractmethod
    def sum_evaluation(self, measure: Callable[[int, int], Tensor]) -> Tensor:
        """`measure(part, parts)`, a vector, summed over the replicas that share the work."""

    def give(self) -> dict[str, Any]:
        """What a newcomer needs of the policy."""
        raise NotImplementedError

    def take(self, state: dict[str, Any]) -> None:
        """Be where the donor of `state` was."""
        raise NotImplementedError

    def zero_gradients(self, objective: nn.Module) -> None:
        """Forget the gradients of the former step."""
        for _, parameter in named_trainable(objective):
            parameter.grad = None

    def tensors(self) -> dict[str, Tensor]:
        """The policy's own tensors that a checkpoint holds, by parameter name."""
        return {}

    def owed(self) -> dict[str, Tensor]:
        """What this replica's codec lost and still has to send, by parameter name."""
        return {}

    def figures(self) -> dict[str, float]:
        """What there is to say of the last step: fields of its event."""
        return {}

    def sent_bytes(self) -> int:
        """Bytes sent to other replicas so far."""
        return self.transport.meter.sent

    def close(self) -> None:
        """Leave the other replicas."""
        self.transport.close()


def load_named(target: dict[str, Tensor], source: dict[str, Any]) -> None:
    """Copy every tensor of `source` into its namesake in `target`."""
    for name, tensor in target.items():
        local_part(tensor).copy_(local_part(source[name]))
