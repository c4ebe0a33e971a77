"""The state of model and optimizers: names, lazily made state, tied weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoint_workers import network, optimizers_of, train, whole
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from tutti.core import Batch, CheckpointError, LossSum, Objective
from tutti.train.checkpoints import Checkpointer, apply_state, gather_state, load

MAKERS: dict[str, Callable[[nn.Module], list[Optimizer]]] = {
    "adamw": lambda model: [AdamW(model.parameters(), lr=0.01, weight_decay=0.5)],
    "fused": lambda model: [AdamW(model.parameters(), lr=0.01, fused=True)],
    "tensor rate": lambda model: [AdamW(model.parameters(), lr=torch.tensor(0.01))],
    "adafactor": lambda model: optimizers_of(model, "adafactor"),
    "muon": lambda model: optimizers_of(model, "muon"),
    "sgd": lambda model: [SGD(model.parameters(), lr=0.01)],
    "momentum": lambda model: [SGD(model.parameters(), lr=0.01, momentum=0.9)],
}


class Toy(Objective):
    def forward(self, batch: Batch) -> LossSum:
        return LossSum(self.model(batch["x"]).sum(), torch.tensor(len(batch["x"])))


@pytest.mark.parametrize("maker", MAKERS.values(), ids=MAKERS.keys())
def test_looking_at_the_state_before_the_first_step_changes_nothing(
    maker: Callable[..., list[Optimizer]],
) -> None:
    looked, untouched = network(), network()
    watched, plain = maker(looked), maker(untouched)
    before = whole(looked.state_dict())
    looked[0].weight.grad = torch.ones_like(looked[0].weight)  # a gradient that waits for its step
    state = gather_state(looked, watched)
    assert torch.equal(looked[0].weight.grad, torch.ones(7, 5))
    looked.zero_grad()
    for name, value in looked.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(values["step"] == 0 for values in state["optimizer"].values() if "step" in values)
    assert [group["lr"] for optimizer in watched for group in optimizer.param_groups] == [
        group["lr"] for optimizer in plain for group in optimizer.param_groups
    ]
    train(looked, watched, range(3))
    train(untouched, plain, range(3))
    for one, other in zip(looked.parameters(), untouched.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("maker", MAKERS.values(), ids=MAKERS.keys())
def test_resuming_is_going_on(maker: Callable[..., list[Optimizer]], steps: int, tmp_path: Path) -> None:
    straight = network()
    straight_optimizers = maker(straight)
    train(straight, straight_optimizers, range(steps))
    Checkpointer(tmp_path, keep=1).save(steps, gather_state(straight, straight_optimizers), {}, wait=True)
    train(straight, straight_optimizers, range(steps, steps + 3))

    resumed = network(seed=9)
    resumed_optimizers = maker(resumed)
    state = gather_state(resumed, resumed_optimizers)
    load(tmp_path / f"step-{steps}", state)
    apply_state(resumed, resumed_optimizers, state)
    train(resumed, resumed_optimizers, range(steps, steps + 3))
    for one, other in zip(resumed.parameters(), straight.parameters(), strict=True):
        assert torch.equal(one, other)


def test_names_are_those_of_the_bare_model(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    bare = gather_state(model, AdamW(model.parameters()))
    objective = Toy(model)
    model[0] = torch.compile(model[0], backend="eager")  # one block of it
    compiled = torch.compile(objective, backend="eager")
    state = gather_state(compiled, AdamW(model.parameters()))
    assert list(state["model"]) == list(bare["model"])
    assert list(state["optimizer"]) == list(bare["optimizer"])


def test_a_parameter_without_gradients_until_now_has_state_too() -> None:
    model = network()
    optimizer = AdamW(model.parameters(), lr=0.01)
    model[0](torch.ones(1, 5)).sum().backward()
    optimizer.step()  # only the first layer has state
    trained = copy.deepcopy(optimizer.state[model[0].weight])
    state = gather_state(model, optimizer)
    assert set(state["optimizer"]) == {name for name, _ in model.named_parameters()}
    assert state["optimizer"]["4.weight"]["step"] == 0
    assert state["optimizer"]["0.weight"]["step"] == 1
    assert torch.equal(state["optimizer"]["0.weight"]["exp_avg"], trained["exp_avg"])


def test_frozen_parameters_are_saved_without_optimizer_state() -> None:
    model = network()
    model[0].requires_grad_(False)
    state = gather_state(model, AdamW(model.parameters()))
    assert "0.weight" in state["model"]
    assert "0.weight" not in state["optimizer"]


def test_the_grouping_of_parameters_does_not_matter(tmp_path: Path) -> None:
    model = network()
    one = AdamW(model.parameters(), lr=0.01)
    train(model, [one], range(2))
    Checkpointer(tmp_path, keep=1).save(2, gather_state(model, one), {}, wait=True)
    other = network(seed=3)
    parameters = list(other.parameters())
    several = [
        AdamW([{"params": parameters[3:]}, {"params": parameters[:2]}], lr=0.5),
        AdamW([parameters[2]]),
    ]
    state = gather_state(other, several)
    load(tmp_path / "step-2", state)
    assert torch.equal(several[1].state[parameters[2]]["exp_avg"], one.state[model[2].weight]["exp_avg"])
    assert several[0].param_groups[0]["lr"] == 0.5, "hyper-parameters belong to the configuration"


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 4)
        self.head = nn.Linear(4, 11, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("scale", torch.ones(3))
        self.register_buffer("cache", torch.ones(3), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.embedding(x))


def test_tied_weights_are_saved_once(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, other = Tied(), Tied()
    state = gather_state(model, AdamW(model.parameters()))
    assert set(state["model"]) == {"scale", "embedding.weight"}
    assert set(state["optimizer"]) == {"embedding.weight"}
    Checkpointer(tmp_path, keep=1).save(1, state, {}, wait=True)
    optimizer = AdamW(other.parameters())
    found = whole(gather_state(other, optimizer))  # not live: copied in by apply_state
    load(tmp_path / "step-1", found)
    apply_state(other, optimizer, found)
    assert torch.equal(other.head.weight, model.embedding.weight)
    assert other.head.weight is other.embedding.weight


def test_the_state_of_another_model_is_refused() -> None:
    model = network()
    other = nn.Linear(5, 7)
    with pytest.raises(CheckpointError, match="another model"):
        apply_state(other, AdamW(other.parameters()), gather_state(model, AdamW(model.parameters())))
    with pytest.raises(CheckpointError, match="another model"):
        apply_state(model, SGD(model.parameters()), gather_state(model, AdamW(model.parameters())))
