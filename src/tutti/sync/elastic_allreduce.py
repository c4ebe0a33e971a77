"""All-reduce whose members come and go: when one is lost in the middle of a step, the others make the step again, and
begin with that while they meet (`headstart`).

Between losses there is no word with the lighthouse: members learn from the sum that ends every step whether somebody
wants to come in. That sum is started when all gradients have arrived, so whoever has it knows that all have them.

A step's samples are given out by measured speed (`shares`); a newcomer listens until it has the run's state
(`joining`): it gives zeros, and the loop keeps the gradients that it gets.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor

from tutti.sync.allreduce import AllReduce
from tutti.sync.buckets import open_gate
from tutti.sync.headstart import HeadStart, WrongGuess
from tutti.sync.joining import Joining, Standing
from tutti.sync.ledger import Ledger, Range, cut
from tutti.sync.policy import Meeting, Place, Totals, local_part
from tutti.sync.rounds import Handover
from tutti.sync.shares import Shares
from tutti.sync.summing import Summing
from tutti.sync.transport import LaterPhase, PeerLost, StaticTransport, Transport

T = TypeVar("T")

#: What a member came for, when the roll is called.
_STEP, _EVALUATION = 0, 1
#: Whoever hears of a loss from others notices himself within this time who it is.
_NOTICED_SECONDS = 0.05


class ElasticAllReduce(AllReduce):
    """`inside`: the parts of this replica. `handover`: what a newcomer is given, and what is done with it."""

    def __init__(
        self,
        transport: Transport,
        place: Place,
        ledger: Ledger,
        batch: int,
        *,
        bucket_bytes: int,
        inside: StaticTransport,
        handover: Handover,
        summing: Summing,
        measured_shares: bool,
    ) -> None:
        super().__init__(
            transport, place, ledger, batch, bucket_bytes=bucket_bytes, everyone=None, summing=summing
        )
        self._inside = inside
        self._joining = Joining(transport, *handover)
        self._shares = Shares(measured=measured_shares)
        #: Those who have the run's state, and compute: their ranks, their replicas, their samples in this step.
        self._ranks: list[int] = []
        self._current: list[int] = []
        self._counts: list[int] = []
        self._must_meet = True
        self._caught_up = False
        self._news: Meeting | None = None
        self._told: tuple[list[int], list[int]] = ([], [])
        self._ledger_before = ledger.state()
        self._began = 0.0
        #: Replicas of the group, by rank.
        self._replicas: list[int] = []
        #: While members meet: who is thought to be left, and has which share.
        self._guess: list[int] = []
        self._head_start: HeadStart | None = None

    @property
    def behind(self) -> bool:  # type: ignore[override]
        return self._joining.behind

    @property
    def leads(self) -> bool:
        return bool(self._ranks) and self.transport.rank == self._ranks[0]

    def start(self, step: int, last_step: int) -> Meeting | None:
        self._joining.version = step
        self._gather(_STEP)
        return self._tell(self._joining.version)

    # A step --------------------------------------------------------------------------------------------------

    def make_step(self, step: int, work: Callable[[int], T]) -> tuple[int, T]:
        while True:
            self._begin_step()
            step = self._joining.version + 1
            try:
                result = work(step)
                self._end_head_start()
            except (WrongGuess, LaterPhase) as error:
                self._have_nothing()
                self._end_head_start()
                if isinstance(error, LaterPhase):
                    raise
                continue
            except PeerLost:
                self._end_head_start()
                self._forget()
                continue
            if self._counts_for_all():
                return step, result

    def _begin_step(self) -> None:
        """Have the members with whom the step is made, or an idea of who they are."""
        self._guess = self._survivors() if self._must_meet else []
        if not self._guess:
            self._gather(_STEP)
            return
        self._head_start = HeadStart(lambda: self._gather(_STEP), self._guessed_right)
        if self._buckets is not None:
            self._buckets.gate = self._head_start.check

    def _end_head_start(self) -> None:
        if self._head_start is None:
            return
        head_start, self._head_start = self._head_start, None
        if self._buckets is not None:
            self._buckets.gate = open_gate
        head_start.end()

    def _survivors(self) -> list[int]:
        """The replicas that will be left, where that can be known and is worth knowing; in order."""
        # Parts of a replica go through a backward pass together: they would have to guess together.
        if self.place.parts > 1 or not self._computes or not self.transport.broken:
            return []
        deadline = time.perf_counter() + _NOTICED_SECONDS
        while not self.transport.lost and time.perf_counter() < deadline:
            time.sleep(0.002)
        gone = {self._replicas[rank] for rank in self.transport.lost}
        left = [replica for replica in self._current if replica not in gone]
        return left if gone and self.place.replica in left else []

    def _guessed_right(self) -> bool:
        guessed, self._guess = self._guess, []
        return (
            self._computes
            and guessed == self._current
            and self._counts == self._shares.counts(self._samples_of_step, self._current)
        )

    @property
    def _samples_of_step(self) -> int:
        return self.batches.at(self._step_ranges[0])

    def samples(self, step: int) -> list[Range]:
        self._began = time.perf_counter()
        if self.behind:
            return []
        if self._step_ranges[0] != step:
            self._ledger_before = self.ledger.state()
            self._step_ranges = (step, self.ledger.take(self.batches.at(step)))
        if self._guess:
            members = self._guess
            self._counts = self._shares.after_loss(self._samples_of_step, members)
        elif self._computes:
            members = self._current
            self._counts = self._shares.counts(self._samples_of_step, members)
        else:
            return []
        place = members.index(self.place.replica)
        first = sum(self._counts[:place])
        return cut(self._step_ranges[1], first, first + self._counts[place])

    @contextmanager
    def micro_batch(self, *, last: bool) -> Iterator[None]:
        if (
            self._head_start is None and self.transport.broken and self.place.parts == 1
        ):  # more parts go through a backward pass together
            raise PeerLost("a member was lost: what this step computes will not count")
        with super().micro_batch(last=last):
            yield

    def before_step(self, totals: Totals) -> Totals:
        seconds = time.perf_counter() - self._began
        if self._head_start is not None:
            seconds -= self._head_start.waited_seconds
        assert self._buckets is not None
        self._buckets.start_rest()
        self._buckets.finish()
        measured = torch.zeros(1 + self.transport.size, dtype=torch.float64, device=self._device)
        measured[0] = float(self.transport.knocked or self._joining.failed or self._caught_up)
        if self.place.part == 0 and self._computes:
            measured[1 + self.transport.rank] = seconds
        vector = torch.cat([totals.vector(self._device), measured])
        self._inside.all_reduce(vector)
        self.transport.all_reduce(vector)
        summed, (wanted, *all_seconds) = vector[: Totals.SIZE], vector[Totals.SIZE :].tolist()
        self._must_meet = wanted > 0
        if self._computes:
            for rank, replica, samples in zip(self._ranks, self._current, self._counts, strict=True):
                self._shares.note(replica, samples, all_seconds[rank])
        return Totals.of(summed)

    def after_step(self, step: int, last_step: int, totals: Totals) -> Meeting | None:
        if self.behind:
            self._joining.listen()
        else:
            self._joining.version = step
        news = self._tell(step)
        if news is not None:
            news.stop = totals.stop
        return news

    def catch_up(self) -> int | None:
        if not self.behind:
            return None
        missing = torch.tensor(float(not self._joining.wait(0)))
        self._inside.all_reduce(missing)
        if missing:
            return None
        self._joining.receive()
        for behind in range(len(self._joining.missed)):
            self.ledger.take(self.batches.at(self._joining.copied + 1 + behind))
        self._joining.missed = []
        self._caught_up = True
        return self._joining.copied

    def sum_evaluation(self, measure: Callable[[int, int], Tensor]) -> Tensor:
        while True:
            together = self._gather(_EVALUATION)
            if not self._computes:
                sums = torch.zeros(self.evaluation_numbers, dtype=torch.float64, device=self._device)
            else:
                sums = measure(self._ranks.index(self.transport.rank), len(self._ranks))
                assert sums.numel() == self.evaluation_numbers
            self._inside.all_reduce(sums)
            if not together:
                return sums
            try:
                self.transport.all_reduce(sums)
            except PeerLost:
                self._forget()
                continue
            if self._counts_for_all():
                return sums

    @property
    def _computes(self) -> bool:
        """Whether the others count on this replica; one that has just caught up has to tell them first."""
        return self.transport.rank in self._ranks and not self.behind

    # Members -------------------------------------------------------------------------------------------------

    def _gather(self, errand: int) -> bool:
        """Meet and call the roll, if that is called for. Whether those with the run's state all came for `errand`.

        A newcomer that comes for a step and finds the others at an evaluation helps them to end it.
        """
        together = True
        while self._must_meet:
            self.transport.meet()
            mine = [*self._joining.standing.row(), self.place.replica, errand, self._milli_rate()]
            try:
                rows = [row.tolist() for row in self.transport.all_gather(torch.tensor(mine))]
            except PeerLost:
                self._forget()
                continue
            if not self._counts_for_all():
                continue
            self._caught_up = self._must_meet = False
            self._ranks = self._joining.attend([Standing.of(row) for row in rows])
            self._replicas = [row[3] for row in rows]
            self._current = [rows[rank][3] for rank in self._ranks]
            self._shares.begin({rows[rank][3]: rows[rank][5] / 1000 for rank in self._ranks})
            members = [row[3] for row in rows]
            if (members, self._current) != self._told:
                self._told = (members, self._current)
                self._news = Meeting(members=members)
            errands = {rows[rank][4] for rank in self._ranks}
            together = errands == {errand}
            if errand == _STEP and errands == {_EVALUATION}:
                self._help()
        return together

    def _help(self) -> None:
        nothing = torch.zeros(self.evaluation_numbers, dtype=torch.float64, device=self._device)
        try:
            self.transport.all_reduce(nothing)
        except PeerLost:
            self._forget()
        else:
            self._counts_for_all()

    def _counts_for_all(self) -> bool:
        """Whether what was exchanged counts for all parts of this replica."""
        counts = self.transport.commit()
        if counts:
            self._summing.keep()
        else:
            self._summing.drop()
            self._must_meet = True
        return counts

    def _have_nothing(self) -> None:
        """Of what was just tried."""
        if self._buckets is not None:
            self._buckets.abandon()
        self._summing.drop()

    def _forget(self) -> None:
        """Have nothing of what was just tried, nor a group."""
        self._have_nothing()
        self.transport.commit(good=False)
        self._must_meet = True

    def _milli_rate(self) -> int:
        return round(self._shares.rate(self.place.replica) * 1000)

    def _tell(self, step: int) -> Meeting | None:
        news, self._news = self._news, None
        if news is not None:
            self.rounds += 1
            news.step = step
        return news

    # State ---------------------------------------------------------------------------------------------------

    def give(self) -> dict[str, Any]:
        weights = {name: local_part(p.detach()) for name, p in self._parameters.items()}
        begun = (
            self._step_ranges[0] > self._joining.version
        )  # a step that is being made again has its samples
        return {
            "weights": weights,
            "ledger": self._ledger_before if begun else self.ledger.state(),
            "rounds": self.rounds,
        }

    def take(self, state: dict[str, Any]) -> None:
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                local_part(parameter).copy_(state["weights"][name])
        self.ledger.load_state(state["ledger"])
        self.rounds = state["rounds"]
        self._step_ranges = (0, [])
