"""DiLoCo against NumPy written from the paper's equation, and its accounts when a peer is lost."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ranks import run_ranks
from tutti.sync import DiLoCo, Ledger, PeerLost, Place, StaticTransport, Totals, positions

LEARNING_RATE, MOMENTUM, EVERY = 0.7, 0.9, 3


def make(transport: Any, replica: int, replicas: int) -> tuple[nn.Module, DiLoCo]:
    torch.manual_seed(1)
    model = nn.Linear(3, 2)
    policy = DiLoCo(
        transport,
        Place(replica, replicas),
        Ledger(),
        batch=5,
        every=EVERY,
        learning_rate=LEARNING_RATE,
        momentum=MOMENTUM,
        inside=StaticTransport(None),
        incarnation=0,
    )
    policy.attach(model)
    return model, policy


def local_change(replica: int, step: int) -> float:
    return 0.01 * (replica + 1) * (-1) ** step + 0.001 * step


def targets_of(replica: int) -> int:
    return 10 * (replica + 1)


def train(rank: int, replicas: int, steps: int) -> tuple[list[list[float]], list[list[int]], dict[str, Any]]:
    model, policy = make(StaticTransport(torch.distributed.group.WORLD), rank, replicas)
    policy.start(0, steps)
    weights, samples = [], []
    for step in range(1, steps + 1):
        samples.append(positions(policy.samples(step)).tolist())
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += local_change(rank, step)
        totals = policy.before_step(Totals(1.0, targets_of(rank), 0, False))
        policy.after_step(step, steps, totals)
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]).tolist())
    return weights, samples, policy.ledger.state()


def numpy_diloco(replicas: int, steps: int) -> list[np.ndarray]:
    """All replicas' weights after every step, in float64, from the equations."""
    torch.manual_seed(1)
    start = np.concatenate([p.detach().numpy().ravel() for p in nn.Linear(3, 2).parameters()]).astype(
        np.float64
    )
    agreed, momentum = start.copy(), np.zeros_like(start)
    local = [start.copy() for _ in range(replicas)]
    history = []
    for step in range(1, steps + 1):
        for replica in range(replicas):
            local[replica] += local_change(replica, step)
        if step % EVERY == 0 or step == steps:
            weights = np.array([targets_of(r) for r in range(replicas)], dtype=np.float64)
            delta = sum(w * (agreed - x) for w, x in zip(weights, local, strict=True)) / weights.sum()
            momentum = MOMENTUM * momentum + delta
            agreed = agreed - LEARNING_RATE * (delta + MOMENTUM * momentum)
            local = [agreed.copy() for _ in range(replicas)]
        history.append(np.stack(local))
    return history


@pytest.mark.parametrize("replicas", [1, 2, 3])
def test_weights_follow_the_equation_and_samples_balance(replicas: int) -> None:
    steps = 8
    results = run_ranks(replicas, train, replicas, steps)
    expected = numpy_diloco(replicas, steps)
    for replica, (weights, _, _) in enumerate(results):
        np.testing.assert_allclose(np.array(weights), np.stack(expected)[:, replica], rtol=2e-5, atol=1e-6)
    seen = [p for _, samples, _ in results for step in samples for p in step]
    assert sorted(seen) == list(range(5 * steps))
    assert all(ledger == {"cursor": 5 * steps, "returned": [], "loans": {}} for _, _, ledger in results)
    after_meeting = [weights[EVERY - 1] for weights, _, _ in results]
    assert all(weights == after_meeting[0] for weights in after_meeting), "replicas agree bit for bit"


class Unreliable(StaticTransport):
    """Alone, but the first exchange of every meeting is lost."""

    def __init__(self) -> None:
        super().__init__(None)
        self.votes: list[bool] = []
        self._lost = False

    def meet(self) -> bool:
        self._lost = not self.votes or self.votes[-1]
        return False

    def all_gather(self, tensor: Tensor) -> list[Tensor]:
        if self._lost:
            raise PeerLost("gone")
        return super().all_gather(tensor)

    def commit(self, *, good: bool = True) -> bool:
        self.votes.append(not self._lost)
        return not self._lost


def test_a_lost_exchange_is_repeated_and_counts_once() -> None:
    transport = Unreliable()
    model, policy = make(transport, 0, 1)
    policy.start(0, 6)
    before = [p.detach().clone() for p in model.parameters()]
    for step in range(1, 4):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.1
        meeting = policy.after_step(step, 6, Totals(1.0, 10, 0, False))
    assert transport.votes == [False, True, False, True]
    assert meeting is not None and meeting.committed == {"replica-0.0": [(0, 15)]}
    for now, old in zip(model.parameters(), before, strict=True):
        # Δ = −0.3 and m = Δ: θ = θ_old + η (1 + μ) 0.3
        torch.testing.assert_close(now.detach(), old + LEARNING_RATE * (1 + MOMENTUM) * 0.3)


def test_early_stop_returns_what_was_not_done() -> None:
    model, policy = make(StaticTransport(None), 0, 1)
    policy.start(0, 30)
    policy.after_step(1, 30, Totals(1.0, 10, 0, stop=True))
    # The lease of the round was 15; 5 are done, 10 came back and were leased again, with 5 new ones.
    assert policy.ledger.loans == {"replica-0.0": [(5, 20)]}
    assert model.training


def test_a_reborn_replica_is_not_its_former_self() -> None:
    _, policy = make(StaticTransport(None), 0, 1)
    policy.start(0, 30)
    policy._incarnation = 1
    meeting = policy._agree(0, stop=False)
    assert meeting.returned == {"replica-0.0": [(0, 15)]}
    assert meeting.leased == {"replica-0.1": [(0, 15)]}
