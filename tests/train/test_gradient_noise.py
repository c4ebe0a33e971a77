"""The gradient noise scale where the covariance is known: the loss ½ |w − x|² has the gradients w − x."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import tutti
from ranks import run_ranks
from toys import Numbers, make_objective, reference_gradients
from tutti.config import LayoutConfig
from tutti.core import read_events
from tutti.observe.history import Step
from tutti.observe.noise import gradient_noise, noise_sentence
from tutti.parallel import Arithmetic, apply_layout, arrange
from tutti.sync import AllReduce, Ledger, Place, StaticTransport, share
from tutti.train.feed import Feed
from tutti.train.precision import LossScale
from tutti.train.step import Accumulator, Gradient

WIDTH, SAMPLES, BATCH, SCALE = 1000, 2000, 32, 50.0


def cloud() -> Tensor:
    """Samples whose covariance has the trace 50 |mean|², so that at w = 0 the noise scale is 50 but for chance."""
    generator = torch.Generator().manual_seed(0)
    spread = torch.linspace(0.1, 2.0, WIDTH)
    x = torch.randn(SAMPLES, WIDTH, generator=generator) * spread
    mean = torch.ones(WIDTH) * (spread.square().sum() / (SCALE * WIDTH)).sqrt()
    return x + mean


def known(x: Tensor) -> float:
    """tr Σ ÷ |G|² at w = 0, in NumPy."""
    values = x.double().numpy()
    return float(values.var(axis=0).sum() / (values.mean(axis=0) ** 2).sum())


def looked(step: int, x: np.ndarray, small: int, generator: np.random.Generator) -> Step:
    chosen = x[generator.permutation(len(x))[:BATCH]]
    part, whole = (float(np.linalg.norm(some.mean(axis=0))) for some in (chosen[:small], chosen))
    return Step(step, 0.0, 0, 1.0, 0.0, 0.0, 0.0, None, looks=((part, small, whole, BATCH),))


def test_both_estimates_are_unbiased() -> None:
    x, generator = cloud(), np.random.default_rng(1)
    found = gradient_noise(looked(10 * n, x.numpy(), 8, generator) for n in range(1, 41))
    assert found is not None and found.samples == pytest.approx(known(x), rel=0.15)
    assert (found.batch, found.measured) == (BATCH, 40)
    assert found.course[-1] == (400, found.samples) and len(found.course) <= 12
    assert gradient_noise(looked(n, x.numpy(), 8, generator) for n in range(4)) is None  # that is too few


class Point(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return self.w - x


def half_squares(difference: Tensor, _: Tensor) -> Tensor:
    return difference.square().sum(1).mean() / 2


@pytest.mark.parametrize("sync", ["allreduce", "local_sgd"])
def test_a_run_tells_it(tmp_path: Path, sync: str) -> None:
    """Of two replicas with one micro-batch each, the one that speaks cuts its own in two."""
    x = cloud()
    result = tutti.fit(
        Point(), half_squares, (x, torch.zeros(SAMPLES)), steps=200, batch=BATCH, name="noise",
        runs=str(tmp_path), console=False, replicas=2, sync__policy=sync, sync__shares="even",
        train__learning_rate=1e-12,
        train__micro_batch=BATCH, train__precision="fp32", train__weight_decay=0.0,
    )  # fmt: skip
    noise = result.report["gradient_noise"]
    assert noise["samples"] == pytest.approx(known(x), rel=0.2)
    assert noise["batch"] == (BATCH if sync == "allreduce" else BATCH / 2)
    told = [e for e in read_events(tmp_path / "noise", "step") if "first_norm" in e]
    assert {event["step"] for event in told} == set(range(10, 201, 10))
    assert {event["first_samples"] for event in told} == {BATCH / 4}
    assert noise_sentence(noise) in (tmp_path / "noise" / "report.md").read_text()


def gradient_on(rank: int, shard: int, zero: int) -> Gradient:
    world = arrange(LayoutConfig(shard=shard, zero=zero), torch.device("cpu"), 0, 1)
    policy = AllReduce(
        StaticTransport(None), Place(0, 1, rank, shard), Ledger(), 24, bucket_bytes=100,
        everyone=dist.group.WORLD if shard > 1 else None,
    )  # fmt: skip
    accumulator = Accumulator(
        apply_layout(make_objective(), world, Arithmetic()), policy, nominal_targets=7, clip=None,
        context=nullcontext(), loss_scale=LossScale("fp32"), seed=0,
    )  # fmt: skip
    feed = Feed(Numbers(), 5, torch.device("cpu"))
    portion = feed.load(share([(0, 24)], rank, shard), 4, 24 // shard // 4)
    return accumulator.run(portion.micro_batches, 0, 0, stop=False, apart=True)


@pytest.mark.parametrize("shard", [1, 2])
def test_the_first_part_is_the_gradient_of_its_samples(shard: int) -> None:
    """Of shards the first micro-batches of both ranks together."""
    order = Feed(Numbers(), 5, torch.device("cpu")).load([(0, 24)], 24, 1).ids[0][1]
    first = [sample for rank in range(shard) for sample in order[rank * 24 // shard :][:4]]
    expected = reference_gradients(Numbers(), make_objective(), first)
    norm = float(torch.stack([g.norm() for g in expected.values()]).norm())
    found = run_ranks(2, gradient_on, 2, 3) if shard == 2 else [gradient_on(0, 1, 3)]
    for gradient in found:
        assert gradient.first is not None
        assert gradient.first.norm == pytest.approx(norm, rel=1e-5)
        assert gradient.first.targets == sum(i % 3 for i in first)


def test_gradients_that_are_summed_at_the_end_are_not_looked_at() -> None:
    assert all(gradient.first is None for gradient in run_ranks(2, gradient_on, 2, 1))


@pytest.mark.parametrize(
    ("scale", "batch", "said"),
    [
        (
            96.0,
            32,
            "takes 1.3× the fewest; one of 64 would take 0.62× the steps and 1.2× the samples",
        ),
        (
            8.0,
            32,
            "takes 5× the fewest; one of 16 would take 1.2× the steps and 0.6× the samples",
        ),
        (None, 32, "a larger batch would lose next to no samples"),
        (0.2, 4, "far more than the gradient needs"),
    ],
)
def test_what_it_means_is_said(scale: float | None, batch: int, said: str) -> None:
    """By hand: steps go with 1 + scale ÷ batch, samples with 1 + batch ÷ scale."""
    assert noise_sentence({"samples": scale, "batch": batch}).endswith(said)
