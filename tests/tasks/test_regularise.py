"""Against learning by heart: each against its paper's equation, worked out apart."""

from __future__ import annotations

import re
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModelForSequenceClassification, ModernBertConfig

from encoders import write_encoder
from tutti.config import load_config
from tutti.config.task import RegulariseConfig, TaskConfig
from tutti.config.training import TrainConfig
from tutti.core.errors import ConfigError
from tutti.data.tokenizer import train_bpe, train_characters, with_separators
from tutti.models import find_blocks
from tutti.models.architecture import set_dropout
from tutti.starting.checks import check_tuning
from tutti.tasks import Labels, Record, RowEncoder, make_task
from tutti.tasks.augment import augmented
from tutti.tasks.classify import OneLabel, SeveralLabels
from tutti.tasks.dense import install
from tutti.tasks.dropout import quicken_dropout
from tutti.tasks.packing import ATTENTION
from tutti.train.optimizer import build_optimizers, depth_scales

BATCH = {
    "input_ids": torch.tensor([[2, 7, 9, 3, 0], [2, 11, 12, 13, 3]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]),
    "labels": torch.tensor([2, 0]),
}


@pytest.fixture
def model(tmp_path: Path) -> Any:
    return AutoModelForSequenceClassification.from_pretrained(write_encoder(tmp_path), num_labels=3)


def logits_of(model: Any, **inputs: Any) -> torch.Tensor:
    return model(attention_mask=BATCH["attention_mask"], **inputs).logits


def test_smoothed_labels(model: Any) -> None:
    objective = OneLabel(model.eval(), regularise=RegulariseConfig(label_smoothing=0.2))
    logits = logits_of(model, input_ids=BATCH["input_ids"])
    wanted = torch.tensor([[0.2 / 3, 0.2 / 3, 0.8 + 0.2 / 3], [0.8 + 0.2 / 3, 0.2 / 3, 0.2 / 3]])
    model.eval()
    objective.training = True  # the loss of training, without dropout
    torch.testing.assert_close(objective(BATCH).total, -(wanted * logits.log_softmax(1)).sum())
    torch.testing.assert_close(
        objective.eval()(BATCH).total, F.cross_entropy(logits, BATCH["labels"], reduction="sum")
    )


def test_r_drop_is_two_passes_and_how_far_they_are_apart(model: Any) -> None:
    objective = OneLabel(model, regularise=RegulariseConfig(r_drop=0.7)).train()
    seen: list[torch.Tensor] = []
    model.register_forward_hook(lambda *call: seen.append(call[2].logits))
    total, targets = objective(BATCH)
    one, other = seen[0].double().chunk(2)
    assert not torch.allclose(one, other)  # dropout differs
    p, q = one.softmax(1), other.softmax(1)
    divergences = (p * (p / q).log()).sum() + (q * (q / p).log()).sum()
    losses = sum(F.cross_entropy(z, BATCH["labels"], reduction="sum") for z in (one, other))
    torch.testing.assert_close(total.double(), losses / 2 + 0.7 / 4 * divergences)
    assert int(targets) == 2
    assert objective.added() == pytest.approx(float(0.7 / 4 * divergences), rel=1e-4)


def test_r_drop_counts_as_much_for_several_labels_as_for_one(model: Any) -> None:
    """The loss of a row is a mean over its labels, and so is how far two passes are apart."""
    objective = SeveralLabels(model, regularise=RegulariseConfig(r_drop=0.7)).train()
    batch = {**BATCH, "labels": torch.tensor([[0, 2], [1, -100]]), "weight": torch.ones(2)}
    seen: list[torch.Tensor] = []
    model.register_forward_hook(lambda *call: seen.append(call[2].logits))
    total, _ = objective(batch)
    one, other = seen[0].double().chunk(2)
    true = torch.tensor([[1.0, 0, 1], [0, 1, 0]], dtype=torch.float64)
    losses = sum(
        F.binary_cross_entropy_with_logits(z, true, reduction="none").mean(1).sum() for z in (one, other)
    )
    p, q = one.sigmoid(), other.sigmoid()
    apart = (p - q) * (p.logit() - q.logit())  # of yes; that of no is the same
    divergences = (apart.sum(1) / 3).sum()
    torch.testing.assert_close(total.double(), losses / 2 + 0.7 / 4 * divergences)


def test_fgm_also_where_the_table_does_not_learn(model: Any) -> None:
    model.eval()
    free, frozen = (OneLabel(model, regularise=RegulariseConfig(adversarial=0.5)) for _ in range(2))
    free.training = frozen.training = True
    expected = free(BATCH).total
    for parameter in model.base_model.parameters():
        parameter.requires_grad_(False)
    total = frozen(BATCH).total
    torch.testing.assert_close(total, expected)
    total.backward()
    assert any(parameter.grad is not None for parameter in model.parameters())


def test_fgm_pushes_embeddings_where_it_hurts(model: Any) -> None:
    model.eval()
    objective = OneLabel(model, regularise=RegulariseConfig(adversarial=0.5))
    objective.training = True
    total, _ = objective(BATCH)
    total.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()

    embedded = model.get_input_embeddings()(BATCH["input_ids"]).detach().requires_grad_()
    F.cross_entropy(logits_of(model, inputs_embeds=embedded), BATCH["labels"], reduction="sum").backward()
    push = torch.stack([0.5 * g / g.norm() for g in embedded.grad])
    model.zero_grad()
    table = model.get_input_embeddings()(BATCH["input_ids"])
    clean = F.cross_entropy(logits_of(model, inputs_embeds=table), BATCH["labels"], reduction="sum")
    hurt = F.cross_entropy(logits_of(model, inputs_embeds=table + push), BATCH["labels"], reduction="sum")
    assert hurt > clean
    torch.testing.assert_close(total, (clean + hurt) / 2)
    ((clean + hurt) / 2).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("settings", [{"r_drop": 1.0}, {"adversarial": 0.5}])
def test_in_bf16_without_padding_and_with_dropout_it_is_nearly_the_same(
    model: Any, settings: dict[str, float]
) -> None:
    """As a run computes it. Where FGM pushes, the way back is gone within the way there."""
    quicken_dropout(model)
    assert install(model, find_blocks(model), ATTENTION)
    objective = OneLabel(model, regularise=RegulariseConfig(**settings)).train()
    totals = []
    for context in (nullcontext(), torch.autocast("cpu", torch.bfloat16)):
        torch.manual_seed(0)
        with context:
            total, _ = objective(BATCH)
        total.backward()
        assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
        totals.append(float(total))
    assert totals[1] == pytest.approx(totals[0], rel=0.05) and totals[1] != totals[0]


@pytest.mark.parametrize("settings", [{"r_drop": 1.0}, {"adversarial": 0.5}, {"label_smoothing": 0.1}])
def test_rows_one_by_one_add_up(model: Any, settings: dict[str, float]) -> None:
    """Without dropout: what a micro-batch computes does not depend on which rows are in it."""
    model.eval()
    objective = OneLabel(model, regularise=RegulariseConfig(**settings))
    objective.training = True
    together = objective(BATCH).total
    apart = sum(objective({k: v[at : at + 1] for k, v in BATCH.items()}).total for at in range(2))
    torch.testing.assert_close(together, torch.as_tensor(apart))


def test_words_left_out_and_moved() -> None:
    row = {
        "input_ids": [2, 10, 11, 12, 13, 14, 3],
        "words": [-1, 0, 0, 1, 2, 3, -1],
        "labels": [1],
        "cut": [0],
    }
    assert augmented(row, 0.0, 0.0, np.random.default_rng(0)) == row
    everything = augmented(row, 1.0, 0.0, np.random.default_rng(0))
    assert len({word for word in everything["words"] if word >= 0}) == 1
    turned = augmented(row, 0.0, 1.0, np.random.default_rng(0))
    assert turned["words"] == [-1, 1, 0, 0, 3, 2, -1] and turned["input_ids"] == [2, 12, 10, 11, 14, 13, 3]
    left = [
        len({w for w in augmented(row, 0.3, 0.0, np.random.default_rng(n))["words"] if w >= 0})
        for n in range(400)
    ]
    assert np.mean(left) == pytest.approx(0.7 * 4, abs=0.15)
    assert augmented(row, 0.3, 0.3, np.random.default_rng([1, 2])) == augmented(
        row, 0.3, 0.3, np.random.default_rng([1, 2])
    )


@pytest.mark.parametrize("kind", ["bpe", "characters"])
def test_what_is_left_out_and_moved_are_words_whatever_the_tokens(kind: str) -> None:
    """Of a pair: no word goes from one text to the other."""
    sides = ("my card was swallowed by the machine", "machine of the bank, swallowed")
    texts = list(sides) * 4
    own = train_characters(texts) if kind == "characters" else train_bpe(texts, 300, exactly=False)
    encoder = RowEncoder(with_separators(own), 128, 0, types=False)
    task = make_task(TaskConfig(kind="classify"))
    examples = [task.example(Record("x", {"text": sides[0], "pair": sides[1]}), labelled=False)]
    (row,) = task.rows(examples, Labels((), ()), encoder)[0]
    assert len({word for word in row["words"] if word >= 0}) == 7 + 6
    changed = 0
    for seed in range(50):
        some = augmented(row, 0.3, 0.0, np.random.default_rng(seed))["input_ids"]
        said = encoder.tokenizer.decode(some, skip_special_tokens=False)
        first, second = (side.replace(",", " ,").split() for side in re.split(r"<\|.*?\|>", said)[1:3])
        for left, side in ((first, sides[0]), (second, sides[1])):
            words = iter(side.replace(",", " ,").split())
            assert all(word in words for word in left), "in order, each whole"
        moved = augmented(row, 0.0, 0.3, np.random.default_rng(seed))["input_ids"]
        assert sorted(moved) == sorted(row["input_ids"])
        changed += some != row["input_ids"] and moved != row["input_ids"]
    assert changed > 40


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_learning_rates_fall_with_depth(model: Any, optimizer: Literal["adamw", "adafactor"]) -> None:
    scales = depth_scales(model, 0.5)
    by_name = {name: scales[id(p)] for name, p in model.named_parameters()}
    assert by_name["bert.embeddings.word_embeddings.weight"] == 0.125
    assert by_name["bert.encoder.layer.0.output.dense.weight"] == 0.25
    assert by_name["bert.encoder.layer.1.output.dense.bias"] == 0.5
    assert by_name["bert.pooler.dense.weight"] == by_name["classifier.weight"] == 1.0
    optimizers = build_optimizers(model, TrainConfig(layer_decay=0.5, optimizer=optimizer), 1e-2)
    optimizers.set_learning_rate(0.1)
    (only,) = optimizers.optimizers
    rates = {id(p): group["lr"] for group in only.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        assert rates[id(parameter)] == pytest.approx(1e-3 * by_name[name]), name
    assert depth_scales(model, 1.0) == {} and depth_scales(nn.Linear(2, 2), 0.5) == {}


@pytest.mark.parametrize(
    "words", [(), ("model={size: 300K, dropout: 0.1}",), ("tune={method: lora, dropout: 0.1}", "model=x")]
)
def test_r_drop_asks_for_something_that_is_left_out(words: tuple[str, ...]) -> None:
    """ModernBERT has no dropout: its two passes would be one."""
    config = load_config(None, ["task=classify", "regularise.r_drop=1", *words])
    architecture = ModernBertConfig(
        vocab_size=20, hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2,
    )  # fmt: skip
    if config.model.dropout:
        set_dropout(architecture, config.model.dropout)
    model = AutoModelForSequenceClassification.from_config(architecture)
    if words:
        check_tuning(config, model)
        return
    with pytest.raises(ConfigError, match=r"modernbert has no dropout.*\n.*set model\.dropout"):
        check_tuning(config, model)
