"""Masked language modelling: loss, gradients and right guesses are those of plain transformers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    AlbertConfig,
    AutoModelForMaskedLM,
    BertConfig,
    DistilBertConfig,
    ElectraConfig,
    ModernBertConfig,
    RobertaConfig,
)

from tutti.core import ModelError
from tutti.tasks import chunked_loss
from tutti.tasks.masked import MaskedLanguageModelling

SHAPE = {"vocab_size": 90, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
         "num_attention_heads": 4, "max_position_embeddings": 40, "pad_token_id": 0}  # fmt: skip
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
ARCHITECTURES = {
    "bert": BertConfig(**SHAPE, **STILL),
    "roberta": RobertaConfig(**SHAPE, **STILL),
    "modernbert": ModernBertConfig(**SHAPE, bos_token_id=2, eos_token_id=3, local_attention=8),
    "distilbert": DistilBertConfig(vocab_size=90, dim=32, hidden_dim=48, n_layers=2, n_heads=4, dropout=0.0,
                                   attention_dropout=0.0),
    "albert": AlbertConfig(**SHAPE, **STILL, embedding_size=16),
    "electra": ElectraConfig(**SHAPE, **STILL, embedding_size=16),
}  # fmt: skip


def model_of(name: str) -> Any:
    torch.manual_seed(0)
    return AutoModelForMaskedLM.from_config(ARCHITECTURES[name])


def batch_of() -> dict[str, torch.Tensor]:
    dice = torch.Generator().manual_seed(1)
    ids = torch.randint(4, 90, (5, 20), generator=dice)
    labels = torch.where(torch.rand(5, 20, generator=dice) < 0.3, ids, -100)
    labels[3] = -100  # a row with nothing to guess
    return {"input_ids": torch.where(labels == -100, ids, 1), "labels": labels}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_it_is_the_loss_of_transformers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked_loss, "_ELEMENTS_CPU", 90 * 7)  # several chunks
    batch, plain, model = batch_of(), model_of(name), model_of(name)
    expected = plain(**batch).loss
    expected.backward()
    objective = MaskedLanguageModelling(model)
    objective.train()
    total, targets = objective(batch)
    count = int((batch["labels"] != -100).sum())
    assert int(targets) == objective.count_targets(batch) == count
    (total / count).backward()
    assert float(total.detach()) == pytest.approx(count * float(expected.detach()), rel=1e-5)
    gradients = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
    theirs = {key: p.grad for key, p in plain.named_parameters() if p.grad is not None}
    assert gradients.keys() == theirs.keys()
    for key, gradient in theirs.items():
        torch.testing.assert_close(gradients[key], gradient, rtol=1e-4, atol=1e-6, msg=key)


@pytest.mark.parametrize("name", ["bert", "modernbert"])
def test_logits_of_hidden_tokens_alone_are_computed(name: str) -> None:
    objective, batch, seen = MaskedLanguageModelling(model_of(name)), batch_of(), []
    head = objective.model.get_output_embeddings()  # type: ignore[operator]
    head.register_forward_hook(lambda _module, _inputs, output: seen.append(output.shape))
    objective(batch)
    assert seen == [(5, 20, 32)]  # handed on as it was: the matrix is used for hidden tokens, never on [B, S]


@pytest.mark.parametrize("name", ["bert", "electra", "modernbert"])
def test_answers_are_right_guesses_and_hidden_tokens(name: str) -> None:
    batch, model = batch_of(), model_of(name)
    objective = MaskedLanguageModelling(model).eval()
    guesses = model(input_ids=batch["input_ids"]).logits.argmax(-1)
    batch["labels"][0, :4] = guesses[0, :4]  # some that it does guess
    objective.answers = []
    with torch.no_grad():
        objective(batch)
    hidden = batch["labels"] != -100
    right = ((guesses == batch["labels"]) & hidden).sum(1)
    assert objective.answers[0].tolist() == torch.stack([right, hidden.sum(1)], 1).float().tolist()


def test_a_model_that_cannot_be_run_is_refused() -> None:
    broken = model_of("bert")
    broken.bert.embeddings.position_embeddings = torch.nn.Embedding(2, 32)
    with pytest.raises(ModelError, match="BertForMaskedLM cannot be run"):
        MaskedLanguageModelling(broken)
