"""Training that knows of the rounding to come."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2ForSequenceClassification

from tutti.compress.quantize import Scheme, quantize
from tutti.config.task import TuneConfig
from tutti.models.quantized import (
    Bits,
    QuantizedEmbedding,
    QuantizedLinear,
    round_to_nearest,
    train_quantized,
    without_rounding,
)
from tutti.models.quantized.aware import rounded

IDS = torch.arange(24).view(4, 6) * 53 % 2000
LABELS = torch.tensor([0, 1, 2, 1])


def encoder() -> BertForSequenceClassification:
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    config = BertConfig(vocab_size=2000, **shape, num_labels=3, hidden_dropout_prob=0.0)
    config.attention_probs_dropout_prob = 0.0
    return BertForSequenceClassification(config)


@pytest.mark.parametrize("bits", [8, 4])
def test_layers_compute_with_what_will_be_written(bits: Bits) -> None:
    model = encoder().eval()
    written = copy.deepcopy(model)
    # Weights alone, so that only inputs are left, which both round in 255 or 256 steps.
    quantize(written, Scheme(bits, "dynamic", tables=bits), list)
    names = list(model.state_dict())
    assert train_quantized(model, bits) == 2 * 6 + 1
    assert list(model.state_dict()) == names
    with torch.no_grad():
        expected, found = written(IDS).logits, model(IDS).logits
    plain = encoder().eval()(IDS).logits.detach()
    assert (found - expected).abs().max() < 0.3 * (plain - expected).abs().max() + 0.01
    kinds = [type(module) for module in written.modules()]
    assert kinds.count(QuantizedLinear) == 12
    assert kinds.count(QuantizedEmbedding) == 1


def gpt2() -> GPT2ForSequenceClassification:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=2000, n_embd=64, n_layer=2, n_head=2, n_positions=32, num_labels=3, pad_token_id=0,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    return GPT2ForSequenceClassification(config)


@pytest.mark.parametrize("bits", [8, 4])
def test_so_do_layers_whose_matrices_are_turned(bits: Bits) -> None:
    model = gpt2().eval()
    written = copy.deepcopy(model)
    quantize(written, Scheme(bits, "dynamic", tables=bits), list)
    assert train_quantized(model, bits) == 2 * 4 + 1
    with torch.no_grad():
        expected, found = written(IDS).logits, model(IDS).logits
    plain = gpt2().eval()(IDS).logits.detach()
    assert (found - expected).abs().max() < 0.3 * (plain - expected).abs().max() + 0.01
    kinds = [type(module) for module in written.modules()]
    assert (kinds.count(QuantizedLinear), kinds.count(QuantizedEmbedding)) == (8, 1)


@pytest.mark.parametrize("bits", [8, 4])
def test_gradients_pass_through_the_rounding(bits: Bits) -> None:
    weight = torch.randn(6, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(1))
    seen = rounded(weight, bits)
    torch.testing.assert_close(
        seen.detach(), round_to_nearest(weight.detach(), bits, 32 if bits == 4 else None).weight()
    )
    (x @ seen.T).square().sum().backward()
    assert weight.grad is not None
    expected: Tensor = 2 * (x @ seen.detach().T).T @ x
    torch.testing.assert_close(weight.grad, expected, rtol=1e-4, atol=1e-3)


def test_rounding_changes_less_after_such_a_training() -> None:
    def change(aware: bool) -> float:
        """How far rounding moves what a model says that was trained to say it."""
        model = encoder().train()
        if aware:
            train_quantized(model, 4)
        optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
        for _ in range(30):
            optimizer.zero_grad()
            F.cross_entropy(model(IDS).logits, LABELS).backward()
            optimizer.step()
        plain = encoder().eval()
        plain.load_state_dict(model.state_dict())
        quantize(plain, Scheme(4, tables=4), list)
        model.eval()
        with torch.no_grad():
            return float((plain(IDS).logits - model(IDS).logits).abs().mean())

    assert change(aware=True) < 0.5 * change(aware=False)


@pytest.mark.parametrize("make", [encoder, gpt2])
@pytest.mark.parametrize("bits", [8, 4])
def test_what_is_handed_on_is_an_ordinary_model_that_is_rounded_as_one(
    make: Callable[[], nn.Module], bits: Bits
) -> None:
    ordinary = make().eval()
    assert without_rounding(ordinary) is ordinary
    rounds = copy.deepcopy(ordinary)
    train_quantized(rounds, bits)
    found = without_rounding(rounds)
    assert [type(module) for module in found.modules()] == [type(module) for module in ordinary.modules()]
    with torch.no_grad():
        expected = ordinary(IDS).logits
        assert torch.equal(found(IDS).logits, expected)
        assert not torch.equal(rounds(IDS).logits, expected), "it goes on learning as it did"
        written = [
            quantize(model, Scheme(bits, tables=bits), list)(IDS).logits for model in (found, ordinary)
        ]
    assert torch.equal(*written)
    assert sum(isinstance(module, QuantizedEmbedding) for module in found.modules()) == 1


def test_adapters_cannot_be_trained_so() -> None:
    with pytest.raises(ValueError, match="quantize needs layers that learn themselves, not lora"):
        TuneConfig(method="lora", quantize="int8")
