"""Packed documents never see each other; the objective equals unmodified transformers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from tutti.core import ModelError
from tutti.tasks import CausalLanguageModelling
from tutti.tasks.manner import run_model
from tutti.tasks.packing import Rows, is_plain, unpack

V, S, CUT = 96, 24, 11
_LIKE_LLAMA: dict[str, Any] = {
    "vocab_size": V,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": _LIKE_LLAMA,
    "qwen3": _LIKE_LLAMA,
    "mistral": _LIKE_LLAMA | {"sliding_window": 5},
    "gemma": _LIKE_LLAMA,
    "gemma2": _LIKE_LLAMA | {"sliding_window": 5},
    "gemma3_text": _LIKE_LLAMA
    | {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]},
    "granite": _LIKE_LLAMA | {"logits_scaling": 4.0},
    "gpt2": {"vocab_size": V, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64},
    "bloom": {"vocab_size": V, "hidden_size": 32, "n_layer": 2, "n_head": 2},
    "mamba": {"vocab_size": V, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
}


def _model(kind: str) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **ARCHITECTURES[kind]))
    with torch.no_grad():
        for parameter in model.parameters():  # far from the start, where everything is nearly linear
            if parameter.ndim == 2:
                parameter.mul_(3)
    return model.eval()


def _batch(first_document: int = 0) -> dict[str, Tensor]:
    """Two samples; the first holds two documents, of which `first_document` chooses the first one's tokens."""
    ids = torch.randint(V, (2, S), generator=torch.Generator().manual_seed(5))
    ids[0, :CUT] = torch.randint(V, (CUT,), generator=torch.Generator().manual_seed(100 + first_document))
    positions = torch.arange(S).repeat(2, 1)
    positions[0, CUT:] = torch.arange(S - CUT)
    labels = ids.roll(-1, 1)
    labels[0, CUT - 1] = labels[:, -1] = -100
    return {"input_ids": ids, "labels": labels, "position_ids": positions}


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_loss_and_gradients_are_those_of_documents_alone(kind: str) -> None:
    model, batch = _model(kind), _batch()
    documents = [
        (batch["input_ids"][0, :CUT], batch["labels"][0, :CUT]),
        (batch["input_ids"][0, CUT:], batch["labels"][0, CUT:]),
        (batch["input_ids"][1], batch["labels"][1]),
    ]
    expected = sum(
        F.cross_entropy(model(input_ids=ids[None], use_cache=False).logits[0], labels, reduction="sum")
        for ids, labels in documents
    )
    parameters = list(model.parameters())
    wanted = torch.autograd.grad(expected, parameters)
    objective = CausalLanguageModelling(model)
    result = objective(batch)
    torch.testing.assert_close(result.total, expected, rtol=1e-5, atol=1e-5)
    assert result.targets == (batch["labels"] != -100).sum() == objective.count_targets(batch)
    for got, want in zip(torch.autograd.grad(result.total, parameters), wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=2e-4, atol=2e-5 * want.abs().max().item() + 1e-6)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_first_document_leaves_second_bit_identical(kind: str) -> None:
    objective = CausalLanguageModelling(_model(kind))
    seen = []
    for first_document in (1, 2):
        batch = _batch(first_document)
        batch["labels"][0, :CUT] = -100  # only the second document is learned from
        objective.zero_grad()
        result = objective(batch)
        result.total.backward()
        gradients = [p.grad.clone() for p in objective.parameters() if p.grad is not None]
        seen.append((result.total.detach(), gradients, _second_document(objective, batch)))
    assert torch.equal(seen[0][0], seen[1][0])
    assert torch.equal(seen[0][2], seen[1][2])
    assert all(torch.equal(one, other) for one, other in zip(seen[0][1], seen[1][1], strict=True))


def _second_document(objective: CausalLanguageModelling, batch: dict[str, Tensor]) -> Tensor:
    """Logits of the second document, by the way that the objective takes."""
    ids, positions = batch["input_ids"], batch["position_ids"]
    with torch.no_grad():
        if objective.manner.unpack:
            rows, _ = unpack(ids, batch["labels"], positions, -100)
            return run_model(objective.model, Rows.of(rows, rows, None)).logits[1, : S - CUT]
        return run_model(objective.model, Rows.of(ids, ids, positions)).logits[0, CUT:]


@pytest.mark.parametrize("kind", ["llama", "mistral", "gpt2"])
def test_without_boundaries_nothing_changes(kind: str) -> None:
    model, batch = _model(kind), _batch()
    batch["position_ids"] = torch.arange(S).repeat(2, 1)
    logits = model(input_ids=batch["input_ids"], use_cache=False).logits
    expected = F.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), reduction="sum")
    objective = CausalLanguageModelling(model)
    torch.testing.assert_close(objective(batch).total, expected)
    del batch["position_ids"]
    torch.testing.assert_close(objective(batch).total, expected)


def test_plain_batches_need_no_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    objective = CausalLanguageModelling(_model("llama"))
    seen: list[tuple[bool, bool]] = []
    attention = F.scaled_dot_product_attention

    def watch(*args: Any, **kwargs: Any) -> Tensor:
        seen.append((kwargs.get("attn_mask") is None, bool(kwargs.get("is_causal"))))
        return attention(*args, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", watch)
    batch = _batch()
    objective(batch)
    assert set(seen) == {(False, False)}
    seen.clear()
    objective(batch | {"position_ids": torch.arange(S).repeat(2, 1)})
    assert set(seen) == {(True, True)}


def test_traced_as_a_whole_it_gives_the_same() -> None:
    objective = CausalLanguageModelling(_model("mistral"))
    compiled = torch.compile(
        objective, backend="eager"
    )  # the tracing is what could go wrong; code is slow to make
    packed = _batch()
    plain = packed | {"position_ids": torch.arange(S).repeat(2, 1)}
    for batch in (plain, packed, plain):
        torch.testing.assert_close(compiled(batch).total, objective(batch).total)


def test_notices() -> None:
    assert CausalLanguageModelling(_model("llama")).notice == ""
    assert "separate rows" in CausalLanguageModelling(_model("mamba")).notice
    assert "logits" in CausalLanguageModelling(_model("gemma2")).notice
    assert "logits" in CausalLanguageModelling(_model("granite")).notice


def test_dropout_and_mode_survive_the_trial() -> None:
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt2", **ARCHITECTURES["gpt2"])).train()
    before = torch.random.get_rng_state()
    assert CausalLanguageModelling(model).model.training
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_model_that_cannot_run_is_refused() -> None:
    model = _model("llama")
    model.model.layers[0].self_attn.q_proj = torch.nn.Linear(7, 7)
    with pytest.raises(ModelError, match="cannot be run"):
        CausalLanguageModelling(model)


def test_bfloat16_autocast_is_near() -> None:
    objective = CausalLanguageModelling(_model("llama"))
    batch = _batch()
    exact = objective(batch).total
    with torch.autocast("cpu", torch.bfloat16):
        near = objective(batch).total
    assert near.dtype == torch.float32
    torch.testing.assert_close(near, exact, rtol=0.05, atol=0)


def test_unpack() -> None:
    positions = torch.tensor([[0, 1, 2, 0], [0, 0, 1, 2]])
    ids = torch.arange(8).view(2, 4)
    rows, labels = unpack(ids, ids + 10, positions, -100)
    assert rows.tolist() == [[0, 1, 2], [3, 0, 0], [4, 0, 0], [5, 6, 7]]
    assert labels.tolist() == [[10, 11, 12], [13, -100, -100], [14, -100, -100], [15, 16, 17]]
    assert is_plain(None) and is_plain(torch.arange(4)[None]) and not is_plain(positions)
