"""Which optimizer takes which parameter; the learning rate of one's own choice."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    RobertaConfig,
)

from tutti.config.training import TrainConfig
from tutti.train.muon import Muon
from tutti.train.optimizer import (
    Optimizers,
    auto_learning_rate,
    build_optimizers,
    hidden_matrices,
    relative_rate,
)


def llama(*, tied: bool) -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=16,
            hidden_size=8,
            intermediate_size=12,
            num_hidden_layers=2,
            num_attention_heads=2,
            tie_word_embeddings=tied,
            bos_token_id=0,
            eos_token_id=0,
        )
    )


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 8), nn.Linear(8, 2)
    )


def names_of(model: nn.Module, parameters: list[nn.Parameter]) -> set[str]:
    chosen = {id(parameter) for parameter in parameters}
    return {name for name, parameter in model.named_parameters() if id(parameter) in chosen}


def decays(model: nn.Module, optimizers: Optimizers) -> dict[str, float]:
    """Weight decay of every parameter by name; every parameter must be in exactly one group."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = [group for optimizer in optimizers.optimizers for group in optimizer.param_groups]
    entries = [
        (names[id(parameter)], group["weight_decay"]) for group in groups for parameter in group["params"]
    ]
    assert len(entries) == len(names) == len(dict(entries))
    return dict(entries)


@pytest.mark.parametrize("tied", [True, False])
def test_muon_takes_the_hidden_matrices_of_a_language_model(tied: bool) -> None:
    model = llama(tied=tied)
    expected = {name for name, p in model.named_parameters() if "proj" in name}
    assert len(expected) == 14
    assert names_of(model, hidden_matrices(model)) == expected


def test_learned_positions_are_no_hidden_matrix() -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=16, n_positions=8, n_embd=8, n_layer=1, n_head=2))
    names = names_of(model, hidden_matrices(model))
    assert names == {
        f"transformer.h.0.{m}.weight" for m in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    }


def test_elsewhere_the_last_linear_is_the_head_and_kernels_are_no_matrices() -> None:
    model = convolutions()
    assert names_of(model, hidden_matrices(model)) == {"3.weight"}
    assert hidden_matrices(nn.Sequential(nn.Conv1d(1, 2, 3))) == []


SMALL = {
    "vocab_size": 16, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2,
}  # fmt: skip


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor", "muon"])
@pytest.mark.parametrize(
    ("factory", "architecture", "head"),
    [
        (AutoModelForSequenceClassification, BertConfig(**SMALL), {"classifier", "bert.pooler.dense"}),
        (AutoModelForSequenceClassification, RobertaConfig(**SMALL), {"classifier.dense", "classifier.out_proj"}),
        (AutoModelForTokenClassification, BertConfig(**SMALL), {"classifier"}),
    ],
)  # fmt: skip
def test_a_head_learns_at_a_rate_of_its_own(
    factory: Any, architecture: Any, head: set[str], optimizer: Literal["adamw", "adafactor", "muon"]
) -> None:
    """And Muon, which is for matrices from states to states, does not take it."""
    model = factory.from_config(architecture)
    train = TrainConfig(head_rate=10.0, layer_decay=1.0 if optimizer == "muon" else 0.5, optimizer=optimizer)
    built = build_optimizers(model, train, 1e-2).optimizers
    rates = {id(p): group["lr"] for one in built for group in one.param_groups for p in group["params"]}
    found = {name: rates[id(parameter)] for name, parameter in model.named_parameters()}
    expected = {f"{part}.{which}" for part in head for which in ("weight", "bias")}
    assert {name for name, rate in found.items() if rate == pytest.approx(0.1)} == expected
    assert all(rate <= 1e-2 for name, rate in found.items() if name not in expected)
    in_muon = {id(p) for one in built if isinstance(one, Muon) for g in one.param_groups for p in g["params"]}
    assert not {name for name, p in model.named_parameters() if id(p) in in_muon} & expected
    assert bool(in_muon) == (optimizer == "muon")


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor", "muon"])
@pytest.mark.parametrize("model", [llama(tied=True), llama(tied=False), convolutions()])
def test_weight_decay_is_never_on_norms_and_biases(model: nn.Module, optimizer: str) -> None:
    optimizers = build_optimizers(model, TrainConfig(optimizer=optimizer, weight_decay=0.3), 1e-3)
    dimensions = {name: parameter.ndim for name, parameter in model.named_parameters()}
    assert decays(model, optimizers) == {name: 0.3 if n >= 2 else 0.0 for name, n in dimensions.items()}
    assert len(optimizers.optimizers) == (2 if optimizer == "muon" else 1)


def test_frozen_parameters_are_left_alone() -> None:
    model = convolutions()
    model[3].requires_grad_(False)
    optimizers = build_optimizers(model, TrainConfig(optimizer="muon"), 1e-3)
    assert not any(isinstance(optimizer, Muon) for optimizer in optimizers.optimizers)
    held = {id(p) for o in optimizers.optimizers for group in o.param_groups for p in group["params"]}
    assert id(model[3].weight) not in held


def test_a_lone_matrix_leaves_no_empty_optimizer() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].requires_grad_(False)
    assert [type(o) for o in build_optimizers(model, TrainConfig(optimizer="muon"), 1e-3).optimizers] == [
        Muon
    ]


def test_the_first_beta_is_muons_momentum_too() -> None:
    train = TrainConfig(optimizer="muon", betas=(0.8, 0.97))
    muon, adamw = build_optimizers(llama(tied=True), train, 0.02).optimizers
    assert muon.param_groups[0]["momentum"] == 0.8
    assert adamw.param_groups[0]["betas"] == (0.8, 0.97)


def test_the_learning_rate_is_a_share_of_the_peak_each_time() -> None:
    optimizers = build_optimizers(llama(tied=True), TrainConfig(optimizer="muon"), 0.02)
    for factor in (0.5, 0.1, 1.0):
        optimizers.set_learning_rate(factor)
        rates = {group["lr"] for optimizer in optimizers.optimizers for group in optimizer.param_groups}
        assert list(rates) == [pytest.approx(0.02 * factor)]


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor", "muon"])
def test_all_learn(optimizer: str) -> None:
    torch.manual_seed(0)
    model = llama(tied=True)
    rate = 0.1 if optimizer == "adafactor" else 0.02
    optimizers = build_optimizers(model, TrainConfig(optimizer=optimizer), rate)
    ids = torch.randint(16, (4, 12))
    losses = []
    for _ in range(60):
        loss = model(input_ids=ids, labels=ids).loss
        optimizers.zero_grad()
        loss.backward()
        optimizers.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor", "muon"])
def test_auto_falls_with_size_rises_as_the_root_of_the_batch_and_is_bounded(optimizer: str) -> None:
    rate, reason = auto_learning_rate(10_000_000, 8192, optimizer)
    assert "10M parameters" in reason
    assert "8192 tokens" in reason
    assert auto_learning_rate(10_000_000, 32768, optimizer)[0] == pytest.approx(2 * rate, rel=0.05)
    rates = [auto_learning_rate(10**n, 8192, optimizer)[0] for n in range(4, 13)]
    assert rates == sorted(rates, reverse=True)
    most = relative_rate(0.05) if optimizer == "adafactor" else 0.05
    assert auto_learning_rate(1, 10**12, optimizer)[0] <= most
    assert auto_learning_rate(10**12, 1, optimizer)[0] >= 1e-5
