"""`allreduce` with `overlap: 1`: what is learned is what a loop of plain torch learns with gradients that are a step
late; they travel while the next step is computed; and one that is under way survives a restart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from ranks import run_ranks
from runs import Running, SlowNet, regression
from toys import MaskedSquares
from tutti.config.agreement import SyncConfig
from tutti.core import ConfigError, TuttiError, read_events
from tutti.data import GlobalOrder
from tutti.parallel import Split, World
from tutti.sync import LateAllReduce, Ledger, Place, StaticTransport, Summing, check_sync
from tutti.sync.transport import Wait
from tutti.train.precision import LossScale
from tutti.train.step import Accumulator

SAMPLES, BATCH, STEPS = 150, 12, 20
ARGUMENTS: dict[str, Any] = {
    "loss": nn.MSELoss(),
    "data": regression(SAMPLES),
    "batch": BATCH,
    "steps": STEPS,
    "workers": 2,
    "sync": {"overlap": 1},
    "train__learning_rate": 0.01,
    "train__schedule": "constant",
    "train__warmup": 0,
    "train__weight_decay": 0.0,
    "train__clip": None,
    "train__precision": "fp32",
    "checkpoint__every": 5,
    "evaluate__every": 4,
    "validation": regression(20),
}


def net(seconds: float = 0.0) -> SlowNet:
    torch.manual_seed(0)
    return SlowNet(seconds)


def by_hand(ends: Sequence[int] = (STEPS,)) -> dict[str, Tensor]:
    """AdamW over the global order: the first step is none, the others take the gradient of the step before, computed a
    step further than the weights were then; the last one takes that of both batches that are left. `ends`: where it
    was the last one; then all begins anew."""
    model, (x, y) = net(), regression(SAMPLES)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, betas=(0.9, 0.95), weight_decay=0.0)
    order = GlobalOrder(0, lambda _: SAMPLES)
    late: list[Tensor] = []
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for step in range(ends[-1]):
        here = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        model.load_state_dict({name: 2 * tensor - before[name] for name, tensor in here.items()})
        found = order.locate(step * BATCH, (step + 1) * BATCH)
        numbers = torch.cat([torch.from_numpy(some) for _, some in found])
        loss = nn.functional.mse_loss(model(x[numbers]), y[numbers])
        new = list(torch.autograd.grad(loss, list(model.parameters())))
        model.load_state_dict(here)
        before = here
        if step + 1 in ends:
            late = [(one + other) / 2 for one, other in zip(late, new, strict=True)] if late else new
        if late:
            for parameter, gradient in zip(model.parameters(), late, strict=True):
                parameter.grad = gradient
            optimizer.step()
        late = new
        if step + 1 in ends:
            late, before = [], {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return model.state_dict()


def check(running: Running, ends: Sequence[int] = (STEPS,)) -> None:
    assert running.result is not None
    for name, expected in by_hand(ends).items():
        torch.testing.assert_close(running.result.model.state_dict()[name], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_learn_what_plain_torch_learns(workers: int, tmp_path: Path) -> None:
    running = Running(tmp_path / "run", model=net(), **ARGUMENTS | {"workers": workers})
    report = running.end(120)
    check(running)
    assert report["tokens"] == running.result.report["tokens"] == STEPS * BATCH  # type: ignore[union-attr]
    told = [event for event in read_events(running.run, "step") if "loss" in event]
    assert [event["step"] for event in told] == list(range(2, STEPS + 1))
    assert sum(event["targets"] for event in told) == STEPS * BATCH


@pytest.mark.distributed
def test_a_gradient_under_way_survives_a_restart(tmp_path: Path) -> None:
    running = Running(tmp_path / "run", model=net(0.05), **ARGUMENTS)
    running.until_step(8)
    running.kill(rank=1)
    report = running.end(120)
    assert report["state"] == "finished" and report["restarts"] == 1
    assert any(event["step"] == 5 for event in read_events(running.run, "resumed"))
    check(running)


@pytest.mark.distributed
def test_one_worker_goes_on_with_what_two_had_under_way(tmp_path: Path) -> None:
    alone = ARGUMENTS | {"watch__max_restarts": 0}
    first = Running(tmp_path / "run", model=net(0.05), **alone)
    first.until_step(8)
    first.kill(rank=1)
    with pytest.raises(TuttiError):
        first.end(120)
    running = Running(tmp_path / "run", model=net(), resume=True, **alone | {"workers": 1})
    running.end(120)
    assert not [event for event in read_events(running.run, "warning") if "left out" in event["message"]]
    check(running)


@pytest.mark.distributed
def test_a_run_that_was_stopped_goes_on_to_its_end(tmp_path: Path) -> None:
    alone = ARGUMENTS | {"workers": 1}
    first = Running(tmp_path / "run", model=net(0.05), **alone)
    first.until_step(6)
    first.stop(1)
    stopped = first.end(120)
    assert stopped["state"] == "interrupted" and 6 <= stopped["steps"] < STEPS
    running = Running(tmp_path / "run", model=net(), resume=True, **alone)
    report = running.end(120)
    assert (report["state"], report["steps"]) == ("finished", STEPS)
    check(running)


@pytest.mark.distributed
def test_a_finished_run_goes_on_for_one_step_with_nothing_left_of_the_last(tmp_path: Path) -> None:
    Running(tmp_path / "run", model=net(), **ARGUMENTS).end(120)
    more = Running(tmp_path / "run", model=net(), resume=True, **ARGUMENTS | {"steps": STEPS + 1})
    more.end(120)
    check(more, (STEPS, STEPS + 1))


LAYERS, WIDTH = 4, 8


class Diary(StaticTransport):
    """Notes when an all-reduce starts, and when it is waited for."""

    def __init__(self, group: dist.ProcessGroup | None, happened: list[str]) -> None:
        super().__init__(group)
        self._happened = happened

    def start_all_reduce(self, tensor: Tensor) -> Wait:
        self._happened.append("sent")
        wait = super().start_all_reduce(tensor)

        def noted() -> None:
            self._happened.append("awaited")
            wait()

        return noted


def make(
    rank: int, transport: StaticTransport, sync: SyncConfig, on_gradient: Callable[[], None] | None = None
) -> tuple[Accumulator, LateAllReduce, MaskedSquares]:
    torch.manual_seed(0)
    objective = MaskedSquares(nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS))))
    for parameter in objective.parameters() if on_gradient is not None else ():
        parameter.register_post_accumulate_grad_hook(lambda _: on_gradient())
    policy = LateAllReduce(
        transport,
        Place(rank, 2),
        Ledger(),
        batch=4,
        bucket_bytes=2 * 4 * WIDTH * WIDTH,
        everyone=dist.group.WORLD,
        summing=Summing.of(sync, transport),
    )
    accumulator = Accumulator(
        Split(objective, World.alone()),
        policy,
        nominal_targets=4,
        clip=None,
        context=nullcontext(),
        loss_scale=LossScale("fp32"),
        seed=0,
    )
    return accumulator, policy, objective


def compute(accumulator: Accumulator, policy: LateAllReduce, rank: int, step: int) -> None:
    policy.samples(step)
    dice = torch.Generator().manual_seed(10 * step + rank)
    x, y = (torch.randn(2, WIDTH, generator=dice) for _ in range(2))
    accumulator.run([{"x": x, "y": y, "counts": torch.ones(2)}], tokens=2, key=step, stop=False)


def what_happens(rank: int) -> list[str]:
    """Of three steps: each gradient's end, each all-reduce's start and the wait for it, each step's end."""
    happened: list[str] = []
    transport = Diary(dist.group.WORLD, happened)
    accumulator, policy, _ = make(rank, transport, SyncConfig(), lambda: happened.append("gradient"))
    policy.start(0, 3)
    for step in (1, 2, 3):
        compute(accumulator, policy, rank, step)
        happened.append("step")
    return happened


def test_gradients_travel_while_the_next_step_is_computed() -> None:
    sending = ["gradient", "gradient", "sent"] * 2
    # Nothing is waited for at the end of a step, but before the next one sends: by then half its backward is done.
    second = ["gradient", "gradient", "awaited", "awaited", "sent", "gradient", "gradient", "sent"]
    for happened in run_ranks(2, what_happens):
        assert happened == [*sending, "step", *second, "step", *second, "awaited", "awaited", "step"]


def learned(rank: int, codec: str) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Weights after nine steps, made at a stretch and in two parts between which all state goes through tensors; and
    before the first."""

    def train(first: int, until: int, before: dict[str, Tensor] | None) -> dict[str, Tensor]:
        sync = SyncConfig(codec=codec, overlap=1)
        accumulator, policy, objective = make(rank, StaticTransport(dist.group.WORLD), sync)
        parameters = dict(objective.named_parameters())

        def state() -> dict[str, Tensor]:
            weights = {name: parameter.detach() for name, parameter in parameters.items()}
            of_policy = {"policy": policy.tensors(), "owed": policy.owed()}
            return weights | {f"{of} {name}": t for of, some in of_policy.items() for name, t in some.items()}

        for name, tensor in state().items() if before is not None else ():
            tensor.copy_(before[name])
        policy.start(first - 1, 9)
        for step in range(first, until + 1):
            compute(accumulator, policy, rank, step)
            for parameter in parameters.values():
                if parameter.grad is not None:
                    parameter.data -= 0.02 * parameter.grad
        kept = {name: tensor.clone() for name, tensor in state().items()}
        policy.close()
        return kept

    at_a_stretch = train(1, 9, None)
    in_two = train(5, 9, train(1, 4, None))
    names = [name for name in at_a_stretch if not name.startswith(("policy", "owed"))]
    start = [
        p.detach().clone()
        for p in make(rank, StaticTransport(dist.group.WORLD), SyncConfig())[2].parameters()
    ]
    return [at_a_stretch[n] for n in names], [in_two[n] for n in names], start


@pytest.mark.parametrize("codec", ["fp32", "bf16", "int8", "powersgd"])
def test_all_that_is_under_way_is_in_its_tensors(codec: str) -> None:
    (first, in_two, start), (second, *_) = run_ranks(2, learned, codec)
    for one, other, parts, before in zip(first, second, in_two, start, strict=True):
        assert torch.equal(one, other), "replicas are equal"
        assert not torch.equal(one, before)
        torch.testing.assert_close(parts, one, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("sync", "more", "why"),
    [
        ({"overlap": 2}, {}, "one step late at most"),
        ({"overlap": 1, "implementation": "ddp"}, {}, "needs implementation: buckets"),
        ({"overlap": 1, "membership": "elastic"}, {}, "needs membership: fixed"),
        ({"overlap": 1}, {"precision": "fp16"}, "another loss scale"),
        ({"overlap": 1}, {"parts": 2}, "splits one over 2"),
        ({"overlap": 1, "policy": "gossip"}, {}, "allreduce and diloco, not of policy gossip"),
    ],
)
def test_what_cannot_be_late_is_refused(sync: dict[str, Any], more: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        check_sync(SyncConfig(**sync), **{"precision": "fp32"} | more)
