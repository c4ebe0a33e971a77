"""What a step takes without its exchanges, by a clock that counts forward passes instead of seconds."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from toys import Numbers, make_objective
from tutti.config.agreement import SyncConfig
from tutti.config.schema import Config
from tutti.config.training import TrainConfig
from tutti.parallel import Split, World
from tutti.sync.probe import Mirror
from tutti.train import pace
from tutti.train.optimizer import build_optimizers
from tutti.train.settings import settings_of

BATCH = 24


def config(micro_batch: int) -> Config:
    return Config(
        train=TrainConfig(
            steps=1000, batch=BATCH, micro_batch=micro_batch, learning_rate=0.01, warmup=0, precision="fp32"
        ),
        evaluate={"every": 1, "samples": 1},
        checkpoint={"every": 1},
    )


@pytest.mark.parametrize(("micro_batch", "of_a_replica"), [(12, 1), (6, 2), (1, 12), (5, 3)])
def test_a_step_is_reckoned_up_from_a_few_micro_batches(
    monkeypatch: pytest.MonkeyPatch, micro_batch: int, of_a_replica: int
) -> None:
    objective, passes = make_objective(), [0]
    objective.model.register_forward_pre_hook(lambda *_: passes.__setitem__(0, passes[0] + 1))
    monkeypatch.setattr(pace.Clock, "mark", lambda self: float(passes[0]))
    world = World(1, 2, 0, 1, torch.device("cpu"), True)
    settings = settings_of(config(micro_batch), world.device)
    found = pace.Pacing(
        SimpleNamespace(train_data=Numbers(), tokens_per_sample=1),  # type: ignore[arg-type]
        Split(objective, world),
        build_optimizers(objective.model, TrainConfig(), 0.01),
        settings,
        SyncConfig(bucket_mb=100 / 1e6),  # of at most 25 numbers: several buckets
        Mirror(2),
    ).measure()
    assert found.seconds == of_a_replica, "half of the batch, in micro-batches"
    assert passes[0] <= 2 * 11, "no more than two passes a step, and ten steps and one to warm up"
    shapes = [shape for bucket in found.buckets for shape in bucket.shapes]
    trained = [tuple(p.shape) for p in objective.parameters()]
    assert sorted(shapes) == sorted(trained) and len(found.buckets) > 2
