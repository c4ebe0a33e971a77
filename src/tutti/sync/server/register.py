"""Who trains with the server, on which samples, and who may go on: the server's accounts, without any tensor.

A run has `steps` × `batch` samples, and every one is counted exactly once. A replica borrows positions of the global
order (a *lease*), pushes the gradient of all of them, and waits for leave to go on:

    staleness 0    A step is over when the gradients of `batch` samples are in. The live replicas share its samples out
                   evenly; what a dead one leaves undone is lent to one that waits, within the same step.
    staleness s    Each push is an update of its own, of a fixed share of the batch. A replica's clock counts its
                   pushes; one that is more than s ahead of the slowest live one waits (SSP: Ho et al. 2013).
    unbounded      The same, and nobody waits.

A push belongs to step ⌊samples counted before it ÷ batch⌋ + 1, whose learning rate it takes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from tutti.sync.ledger import Ledger, Range

#: How long the first replica to come waits for the others that come with it, at the start and after a restart.
_GATHER_SECONDS = 5.0

#: `note(kind, member, lease, ranges)`: an entry of the ledger.
Note = Callable[[str, str, int, list[Range]], None]


@dataclass
class Loan:
    """Samples that a member trains on. `in_sum`: their gradient lies in the sum of the open step."""

    member: str
    samples: int
    in_sum: bool = False


@dataclass
class Member:
    """A live replica. `lease`: the number of its loan, or of what it pushed last; `waits`: for leave to go on."""

    replica: int
    incarnation: int
    clock: int = 0
    lease: int = 0
    waits: bool = True


@dataclass
class Result:
    """What came of a push: its number among all, the step that it belongs to, and the norm of its gradient."""

    lease: int
    push: int
    step: int
    norm: float


@dataclass
class Leave:
    """What a member may do now: train on `lease`, or, with `ranges` empty, end."""

    name: str
    lease: int
    ranges: list[Range] = field(default_factory=list)


def member_name(replica: int, incarnation: int) -> str:
    """As events have it."""
    return f"replica-{replica}.{incarnation}"


class Register:
    """The accounts. `staleness`: None when unbounded; `replicas`: as configured, and so many may come together."""

    def __init__(
        self, *, batch: int, steps: int, replicas: int, staleness: int | None, min_replicas: int, note: Note
    ) -> None:
        self.ledger = Ledger()
        self.members: dict[str, Member] = {}
        self.loans: dict[int, Loan] = {}
        #: The last push of every member that ever was, for those that ask after an answer was lost.
        self.results: dict[str, Result] = {}
        self.counted = 0
        self.pushes = 0
        self.leases = 0
        self.stopping = False
        self._batch = batch
        self._goal = steps * batch
        self._replicas = replicas
        self._staleness = staleness
        self._min_replicas = min_replicas
        self._note = note
        self._first_came: float | None = None
        self._begun = False

    @property
    def step(self) -> int:
        """Whole steps that were made."""
        return self.counted // self._batch

    @property
    def over(self) -> bool:
        """Whether every sample of the run is counted."""
        return self.counted >= self._goal

    @property
    def synchronous(self) -> bool:
        """Whether pushes are summed up before a step."""
        return self._staleness == 0

    # Members -----------------------------------------------------------------------------------------------

    def join(self, replica: int, incarnation: int) -> None:
        """A replica is there (again), holds the present weights and wants work."""
        name = member_name(replica, incarnation)
        for other in [n for n, member in self.members.items() if member.replica == replica]:
            self.lose(other)
        if self._first_came is None:
            self._first_came = time.monotonic()
        slowest = min((member.clock for member in self.members.values()), default=0)
        self.members[name] = Member(replica, incarnation, clock=slowest)

    def lose(self, name: str) -> None:
        """A member died or left: what it has not pushed returns."""
        self.members.pop(name, None)
        for number in [n for n, loan in self.loans.items() if loan.member == name and not loan.in_sum]:
            self._return(number)

    @property
    def roll(self) -> list[int]:
        """The replicas that are alive."""
        return sorted(member.replica for member in self.members.values())

    def result_of(self, name: str, lease: int) -> Result | None:
        """What came of the push of `lease` by `name`; None: it does not count. In the sum of the open step, it will."""
        result = self.results.get(name)
        if result is not None and result.lease == lease:
            return result
        loan = self.loans.get(lease)
        if loan is None or loan.member != name or not loan.in_sum:
            return None
        return Result(lease, self.pushes + 1, self.due_step, 0.0)

    # Pushes ------------------------------------------------------------------------------------------------

    def owes(self, name: str, lease: int) -> bool:
        """Whether `name` has this lease and has not pushed its gradient."""
        loan = self.loans.get(lease)
        return loan is not None and loan.member == name and not loan.in_sum

    def take_in(self, name: str, lease: int) -> None:
        """The gradient of `lease` has arrived."""
        self.loans[lease].in_sum = True
        self.members[name].waits = True

    def is_due(self) -> bool:
        """Whether there is something in to step with."""
        gathered = sum(loan.samples for loan in self.loans.values() if loan.in_sum)
        return gathered == self._open_samples() if self.synchronous else gathered > 0

    @property
    def due_step(self) -> int:
        """The step that the coming update belongs to."""
        return self.counted // self._batch + 1

    def commit(self, norm: float) -> None:
        """An update was made of everything that was in."""
        self.pushes += 1
        step = self.due_step
        for number in [n for n, loan in self.loans.items() if loan.in_sum]:
            loan = self.loans.pop(number)
            committed, _ = self.ledger.settle(str(number), loan.samples)
            self.counted += loan.samples
            self._note("commit", loan.member, number, committed)
            self.results[loan.member] = Result(number, self.pushes, step, norm)
            if loan.member in self.members:
                self.members[loan.member].clock += 1

    def refuse(self, norm: float) -> None:
        """The gradient that is in has no finite `norm`: it is not stepped with, and whoever sent it learns so."""
        for number in [n for n, loan in self.loans.items() if loan.in_sum]:
            member = self.loans[number].member
            self.results[member] = Result(number, self.pushes, self.due_step, norm)
            self._return(number)

    # Leave to go on ------------------------------------------------------------------------------------------

    def leaves(self) -> list[Leave]:
        """Everyone who may go on now, from the slowest; they wait no more."""
        waiting = sorted((m.clock, m.replica, name) for name, m in self.members.items() if m.waits)
        names = [name for _, _, name in waiting]
        if self.over or (self.stopping and not self.loans):
            return [self._end(name) for name in names]
        if not names or not self._may_begin():
            return []
        sizes = self._even_shares(names) if self.synchronous else self._own_shares(names)
        return [self._lend(name, size) for name, size in sizes if size > 0]

    def _may_begin(self) -> bool:
        came = len(self.members)
        if not self._begun and self._first_came is not None:
            waited = time.monotonic() - self._first_came
            self._begun = came >= self._replicas or waited > _GATHER_SECONDS
        return self._begun and (came >= self._min_replicas or self.stopping)

    def _open_samples(self) -> int:
        """Samples that the open step has in all (synchronous)."""
        return min(self._batch - self.counted % self._batch, self._goal - self.counted)

    def _even_shares(self, names: list[str]) -> list[tuple[str, int]]:
        lent = sum(loan.samples for loan in self.loans.values())
        if self.stopping and not lent:
            return []
        # Who has pushed gets more of this step only if somebody died; a new step begins with all who are alive.
        left, count = self._open_samples() - lent, len(names)
        names = sorted(names, key=lambda name: self.members[name].replica)
        return [(name, left * (i + 1) // count - left * i // count) for i, name in enumerate(names)]

    def _own_shares(self, names: list[str]) -> list[tuple[str, int]]:
        if self.stopping:
            return []
        left = self._goal - self.counted - sum(loan.samples for loan in self.loans.values())
        slowest = min(member.clock for member in self.members.values())
        shares = []
        for name in names:
            member = self.members[name]
            if self._staleness is not None and member.clock - slowest > self._staleness:
                continue
            share = self._batch // self._replicas + (member.replica < self._batch % self._replicas)
            shares.append((name, min(share, left)))
            left -= min(share, left)
        return shares

    def _lend(self, name: str, samples: int) -> Leave:
        self.leases += 1
        ranges = self.ledger.lease(str(self.leases), samples)
        self.loans[self.leases] = Loan(name, samples)
        member = self.members[name]
        member.lease, member.waits = self.leases, False
        self._note("lease", name, self.leases, ranges)
        return Leave(name, self.leases, ranges)

    def _end(self, name: str) -> Leave:
        self.members[name].waits = False
        return Leave(name, 0)

    def _return(self, number: int) -> None:
        loan = self.loans.pop(number)
        _, returned = self.ledger.settle(str(number), 0)
        self._note("return", loan.member, number, returned)

    # State -------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """JSON values: all but the members, who have to come again."""
        return {
            "ledger": self.ledger.state(),
            "loans": {str(number): loan.member for number, loan in self.loans.items()},
            "counted": self.counted,
            "pushes": self.pushes,
            "leases": self.leases,
            "results": {name: asdict(result) for name, result in self.results.items()},
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Be where `state` was, with every loan returned: nobody knows what became of the borrowers."""
        self.ledger.load_state(state["ledger"])
        self.counted, self.pushes, self.leases = state["counted"], state["pushes"], state["leases"]
        self.results = {name: Result(**result) for name, result in state["results"].items()}
        self._return_everything(state["loans"])

    def begin_at(self, step: int, ledger: dict[str, Any]) -> None:
        """Begin where a checkpoint of `step` was made, with every loan returned."""
        self.ledger.load_state(ledger)
        self._return_everything({})
        # Between two steps there may be some pushes more; other policies' ledgers and steps may go apart.
        before = self.ledger.cursor - sum(stop - start for start, stop in self.ledger.returned)
        self.counted = before if before // self._batch == step else step * self._batch

    def _return_everything(self, borrowers: dict[str, str]) -> None:
        for number, ranges in sorted(self.ledger.loans.items()):
            lease = int(number) if number.isdecimal() else 0
            self._note("return", borrowers.get(number, number), lease, ranges)
        self.ledger.return_loans()
