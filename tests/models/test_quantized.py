"""Weights in whole numbers, beside NumPy's arithmetic; saved and read again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)
from transformers.models.gemma3.modeling_gemma3 import Gemma3TextScaledWordEmbedding

from tutti.compress.quantize import Scheme, quantize
from tutti.core import ModelError
from tutti.models.quantized import (
    Codes,
    QuantizedEmbedding,
    QuantizedLinear,
    load_quantized,
    round_to_nearest,
    save_quantized,
)
from tutti.models.quantized.choose import tables_of
from tutti.models.quantized.codes import pack_halves, unpack_halves


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 9), st.integers(1, 6), st.floats(1e-6, 1e4))
def test_eight_bits_are_off_by_half_a_step_at_most(rows: int, columns: int, size: float) -> None:
    weight = (draw(rows, columns) * size).numpy()
    codes = round_to_nearest(torch.from_numpy(weight), 8)
    scale = np.maximum(np.abs(weight).max(1, keepdims=True), 1e-12) / 127
    assert np.abs(codes.weight().numpy() - weight).max() <= 0.501 * scale.max()
    np.testing.assert_array_equal(codes.code.numpy(), np.clip(np.rint(weight / scale), -127, 127))


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 5), st.sampled_from([8, 32, 64]), st.floats(1e-3, 1e3), st.floats(-2, 2))
def test_four_bits_in_groups_reach_from_the_smallest_to_the_largest(
    rows: int, group: int, size: float, shift: float
) -> None:
    weight = (draw(rows, 64) + shift) * size
    codes = round_to_nearest(weight, 4, group)
    grouped = weight.view(rows, -1, group).numpy()
    low, high = np.minimum(grouped.min(2), 0), np.maximum(grouped.max(2), 0)
    scale = ((high - low) / 15).astype(np.float16).astype(np.float32)
    found = codes.weight().view(rows, -1, group).numpy()
    # Half a step of rounding, and what the rounded zero and the rounded scale move the ends by.
    assert (np.abs(found - grouped).max(2) <= 1.05 * scale).all()
    assert codes.code.max() <= 15
    assert torch.equal(unpack_halves(pack_halves(codes.code)), codes.code)


def test_columns_that_are_in_no_group_are_refused() -> None:
    with pytest.raises(ValueError, match="60 columns do not fall into groups of 32"):
        round_to_nearest(draw(4, 60), 4, 32)


@pytest.mark.parametrize("codes", [round_to_nearest(draw(24, 64), 8), round_to_nearest(draw(24, 64), 4, 32)])
def test_a_layer_computes_with_its_codes(codes: Codes) -> None:
    x, bias, before = draw(3, 5, 64, seed=1), draw(24, seed=2), draw(64, seed=3).abs()
    weight = codes.weight().numpy()
    expected = (x.numpy() * before.numpy()) @ weight.T + bias.numpy()
    exact = QuantizedLinear(codes, bias, "weights", before)(x)
    np.testing.assert_allclose(exact.numpy(), expected, rtol=1e-4, atol=1e-4)
    # Inputs in 255 steps, too: an error of rounding, in proportion to the largest numbers.
    dynamic = QuantizedLinear(codes, bias, "dynamic", before)(x).numpy()
    assert np.abs(dynamic - expected).max() < 0.03 * np.abs(expected).max()
    assert QuantizedLinear(codes, None, "dynamic")(x.bfloat16()).dtype is torch.bfloat16


def test_a_table_gives_the_rows_of_its_weights() -> None:
    for codes in (round_to_nearest(draw(10, 64), 8), round_to_nearest(draw(10, 64), 4, 32)):
        ids = torch.tensor([[3, 0], [9, 3]])
        assert torch.equal(QuantizedEmbedding(codes)(ids), codes.weight()[ids])


def encoder() -> BertForSequenceClassification:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=2000,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=128,
        num_labels=3,
        max_position_embeddings=16,
    )
    return BertForSequenceClassification(config).eval()


def writer() -> LlamaForCausalLM:
    torch.manual_seed(0)
    shape = {"vocab_size": 2000, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    return LlamaForCausalLM(
        LlamaConfig(**shape, num_attention_heads=2, num_key_value_heads=2, tie_word_embeddings=True)
    ).eval()


def gpt2() -> GPT2LMHeadModel:
    """Its matrices are the wrong way round."""
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=2000, n_embd=64, n_layer=2, n_head=2, n_positions=32)).eval()


@pytest.mark.parametrize("make", [encoder, writer, gpt2])
@pytest.mark.parametrize("scheme", [Scheme(), Scheme(4, tables=4), Scheme(arithmetic="weights")])
def test_a_model_that_was_saved_is_the_same_again(tmp_path: Path, make: object, scheme: Scheme) -> None:
    model = make()  # type: ignore[operator]
    ids = torch.arange(12).view(2, 6) * 31
    before = model(ids).logits.detach()
    whole = 4 * sum(parameter.numel() for parameter in model.parameters())
    quantize(model, scheme, list)
    logits = model(ids).logits
    path = tmp_path / "model.safetensors"
    save_quantized(model, path)
    assert whole / path.stat().st_size > (3.0 if scheme.bits == 8 else 4.5)
    fresh = make()  # type: ignore[operator]
    for parameter in fresh.parameters():
        nn.init.zeros_(parameter)
    load_quantized(fresh, path)
    assert torch.equal(fresh(ids).logits, logits)
    cosine = nn.functional.cosine_similarity(before.flatten(), logits.flatten(), 0)
    assert cosine > (0.999 if scheme.bits == 8 else 0.9)


def test_a_file_that_is_damaged_or_of_another_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    model = encoder()
    quantize(model, Scheme(), list)
    save_quantized(model, path)
    with pytest.raises(ModelError, match=r"does not fit the config\.json"):
        load_quantized(writer(), path)
    content = path.read_bytes()
    path.write_bytes(content[:-100])
    with pytest.raises(ModelError, match="is damaged"):
        load_quantized(encoder(), path)
    encoder().save_pretrained(tmp_path / "plain")
    with pytest.raises(ModelError, match="holds no quantized model"):
        load_quantized(encoder(), tmp_path / "plain" / "model.safetensors")


def test_tables_that_do_more_than_look_up_stay_as_they_are() -> None:
    """Gemma 3 multiplies what it finds, BART counts its places from 2: as whole numbers they would be plain tables."""
    table = Gemma3TextScaledWordEmbedding(2000, 64, 0, embed_scale=8.0)
    model = nn.Sequential(table, nn.Linear(64, 8))
    ids = torch.arange(6)[None]
    before = model(ids)
    assert tables_of(model) == {}
    quantize(model, Scheme(8, tables=8), list)
    assert model[0] is table and torch.equal(model(ids), before)
    assert list(tables_of(nn.Sequential(nn.Embedding(2000, 64)))) == ["0"]
