"""A replica that comes back from a checkpoint as far as everybody is lends samples as everybody does."""

from __future__ import annotations

import torch
from torch import nn

from tutti.sync import Ledger, Place, StaticTransport
from tutti.sync.joining import Standing
from tutti.sync.local_sgd import LocalSGD
from tutti.sync.minutes import Entry, Minutes

EVERY, BATCH = 5, 9


def member(replica: int) -> LocalSGD:
    policy = LocalSGD(
        StaticTransport(None), Place(replica, 3), Ledger(), batch=BATCH, every=EVERY,
        inside=StaticTransport(None), incarnation=0, measured_shares=True,
    )  # fmt: skip
    torch.manual_seed(0)
    policy.attach(nn.Linear(2, 2))
    policy._last_step = 1000
    return policy


def meet(step: int, incarnations: list[int], milliseconds: list[int], ledger: Ledger) -> Minutes:
    """Everybody who had a loan has done it, in so long."""
    roll = []
    for replica, (life, took) in enumerate(zip(incarnations, milliseconds, strict=True)):
        entry = Entry(Standing(0, True, False), replica, life, 0, step, False, took, True, [1])
        entry.samples = sum(stop - start for start, stop in ledger.loans.get(entry.name, []))
        roll.append(entry)
    return Minutes(roll, [0, 1, 2])


def test_who_comes_from_a_checkpoint_of_this_very_round_shares_out_as_the_others_do() -> None:
    stayed = member(0)
    for number in range(6):
        stayed._conclude(meet(EVERY * number, [0, 0, 0], [50, 50, 150], stayed.ledger))
    counts = [sum(b - a for a, b in stayed.ledger.loans[f"replica-{n}.0"]) for n in range(3)]
    assert counts[2] < counts[0], "by now the slow one has less to do"

    reborn = member(1)
    reborn.ledger.load_state(stayed.ledger.state())  # what a checkpoint has
    for number in range(6, 10):
        minutes = meet(EVERY * number, [0, 1, 0], [50, 50, 150], stayed.ledger)
        stayed._conclude(minutes)
        reborn._conclude(minutes)
        assert reborn.ledger.state() == stayed.ledger.state()
    assert stayed.ledger.loans["replica-2.0"] != [] and "replica-1.0" not in stayed.ledger.loans
