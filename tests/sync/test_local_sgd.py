"""Local SGD against the mean of weights, written in NumPy."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from ranks import run_ranks
from tutti.sync import Ledger, LocalSGD, Place, StaticTransport, Totals

MEMBERS, EVERY, STEPS = 3, 2, 5
TARGETS = np.array([10.0, 30.0, 5.0])


def change(replica: int, step: int) -> float:
    return 0.1 * (replica + 1) / step


def train(rank: int) -> list[list[float]]:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    policy = LocalSGD(
        StaticTransport(torch.distributed.group.WORLD), Place(rank, MEMBERS), Ledger(), 6,
        every=EVERY, inside=StaticTransport(None), incarnation=0,
    )  # fmt: skip
    policy.attach(model)
    policy.start(0, STEPS)
    history = []
    for step in range(1, STEPS + 1):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += change(rank, step)
        totals = policy.before_step(Totals(1.0, int(TARGETS[rank]), 0, False))
        policy.after_step(step, STEPS, totals)
        history.append(torch.cat([p.detach().flatten() for p in model.parameters()]).tolist())
    return history


def test_at_a_meeting_all_take_the_mean_weighted_by_targets() -> None:
    torch.manual_seed(0)
    start = torch.cat([p.detach().flatten() for p in nn.Linear(3, 2).parameters()]).double().numpy()
    replicas = [start.copy() for _ in range(MEMBERS)]
    found = run_ranks(MEMBERS, train)
    for step in range(1, STEPS + 1):
        replicas = [weights + change(r, step) for r, weights in enumerate(replicas)]
        if step % EVERY == 0 or step == STEPS:
            mean = np.average(replicas, axis=0, weights=TARGETS)
            replicas = [mean.copy() for _ in range(MEMBERS)]
        for replica, weights in enumerate(replicas):
            np.testing.assert_allclose(found[replica][step - 1], weights, atol=1e-6)
