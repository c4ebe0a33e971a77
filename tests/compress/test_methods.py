"""Ways to round and to take out, beside NumPy written from their papers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    PreTrainedModel,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)
from transformers.pytorch_utils import Conv1D

from tutti.compress.parts import check_parts
from tutti.compress.prune import drop_heads, drop_layers, narrow_feed_forward, zero_smallest
from tutti.compress.quantize.awq import awq
from tutti.compress.quantize.gptq import gptq
from tutti.compress.quantize.inputs import Enough, Inputs, observe_inputs
from tutti.compress.recipes import Recipe
from tutti.core import ModelError
from tutti.models import find_blocks
from tutti.models.quantized import round_to_nearest

IDS = (torch.arange(40) * 37 % 90).view(4, 10)


def inputs_and_weight(tokens: int = 400, columns: int = 64, rows: int = 24) -> tuple[np.ndarray, np.ndarray]:
    """Inputs that hang together and are of unlike size, as a network's are."""
    random = np.random.default_rng(0)
    mixed = random.normal(size=(tokens, columns // 4)) @ random.normal(size=(columns // 4, columns))
    x = (mixed + 0.3 * random.normal(size=(tokens, columns))) * random.lognormal(0, 1, columns)
    return x.astype(np.float32), random.normal(size=(rows, columns)).astype(np.float32)


def error(found: np.ndarray, weight: np.ndarray, x: np.ndarray) -> float:
    return float((((found - weight) @ x.T) ** 2).sum())


@pytest.mark.parametrize("zeros", [0.0, 0.5])
def test_gptq_is_optimal_brain_surgery_column_by_column(zeros: float) -> None:
    """From the papers' equations: the inverse of what is left, taken anew after each column, not a Cholesky factor; and
    what pruning took out is not there again, in whole numbers neither."""
    x, weight = inputs_and_weight()
    size = np.abs(weight) * np.linalg.norm(x, axis=0)
    there = size.argsort(1).argsort(1) >= zeros * weight.shape[1]
    weight *= there
    group = 32
    codes = gptq(torch.from_numpy(weight), torch.from_numpy(x.T @ x), group)
    hessian = (x.T @ x).astype(np.float64)
    hessian += 0.01 * hessian.diagonal().mean() * np.eye(len(hessian))
    left = weight.astype(np.float64).copy()
    for column in range(left.shape[1]):
        if column % group == 0:
            part = (left * there)[:, column : column + group]
            low, high = np.minimum(part.min(1), 0), np.maximum(part.max(1), 0)
            scale = ((high - low) / 15).astype(np.float16).astype(np.float64)
            zero = np.clip(np.rint(-low / scale), 0, 15)
        rounded = scale * (np.clip(np.rint(left[:, column] / scale) + zero, 0, 15) - zero) * there[:, column]
        inverse = np.linalg.inv(hessian[column:, column:])
        apart = left[:, column] - rounded
        left[:, column:] -= np.outer(apart, inverse[0] / inverse[0, 0])
        left[:, column] = rounded
    # A column that lies on the border of two codes may fall either way, and moves those behind it.
    same = np.isclose(codes.weight().numpy(), left, atol=1e-3 * np.abs(weight).max())
    assert same.mean() > 0.98
    assert not codes.weight().numpy()[~there].any()
    nearest = round_to_nearest(torch.from_numpy(weight), 4, group).weight().numpy()
    assert error(codes.weight().numpy(), weight, x) < 0.5 * error(nearest, weight, x)


def test_a_batch_ends_when_all_has_been_seen() -> None:
    """What is seen is the same; what comes behind is not computed, unless a layer computes twice."""
    model, others = llama(3), (torch.arange(60) * 53 % 90).view(3, 2, 10)
    layers = [module for module in model.model.layers[1].modules() if isinstance(module, nn.Linear)]
    last: list[int] = []
    model.model.layers[2].register_forward_hook(lambda *_: last.append(1))

    def batches(*, twice: bool = False) -> Iterator[object]:
        with torch.no_grad():
            for ids in others:
                with suppress(Enough):
                    model(ids)
                    _ = model(ids) if twice else None
                yield ids

    found = observe_inputs(layers, batches)
    assert len(last) == 1
    whole = observe_inputs(layers, lambda: batches(twice=True))
    assert len(last) == 1 + 6
    for layer in layers:
        assert whole[id(layer)].count == 2 * found[id(layer)].count == 2 * 60
        torch.testing.assert_close(whole[id(layer)].products, 2 * found[id(layer)].products)


def test_awq_protects_what_large_inputs_meet() -> None:
    x, weight = inputs_and_weight()
    observed = Inputs(torch.from_numpy(x.T @ x), torch.from_numpy(np.abs(x).sum(0)), len(x))
    codes, before = awq(torch.from_numpy(weight), observed, 32)
    found = codes.weight().numpy() * before.numpy()
    nearest = round_to_nearest(torch.from_numpy(weight), 4, 32).weight().numpy()
    assert error(found, weight, x) < 0.8 * error(nearest, weight, x)
    sizes = np.log(np.abs(x).mean(0))
    slope = np.polyfit(sizes, -np.log(before.numpy()), 1)[0]
    assert 0 < slope < 1  # s = (mean |x|)^α


def llama(layers: int = 3) -> LlamaForCausalLM:
    torch.manual_seed(1)
    shape = {"vocab_size": 90, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": layers}
    return LlamaForCausalLM(LlamaConfig(**shape, num_attention_heads=2, num_key_value_heads=2)).eval()


def bert(layers: int = 3) -> BertForSequenceClassification:
    torch.manual_seed(1)
    shape = {"vocab_size": 90, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": layers}
    return BertForSequenceClassification(BertConfig(**shape, num_attention_heads=2)).eval()


def modern_bert(layers: int = 3) -> ModernBertForSequenceClassification:
    torch.manual_seed(1)
    shape = {"vocab_size": 90, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": layers}
    config = ModernBertConfig(
        **shape, num_attention_heads=2, pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1
    )
    return ModernBertForSequenceClassification(config).eval()


FAMILIES = [llama, bert, modern_bert]


def running(model: PreTrainedModel) -> Iterator[object]:
    with torch.no_grad():
        yield model(IDS)


@pytest.mark.parametrize("criterion", ["magnitude", "wanda"])
def test_the_smallest_weights_of_each_row_become_zero(criterion: str) -> None:
    model = llama(1)
    layer = model.model.layers[0].mlp.down_proj
    given = observe_inputs([layer], lambda: running(model))[id(layer)]
    x: list[torch.Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _, args: x.append(args[0].flatten(0, 1)))
    next(running(model))
    handle.remove()
    seen, before = x[0].numpy(), layer.weight.detach().numpy().copy()
    np.testing.assert_allclose(given.norm.numpy(), np.sqrt((seen**2).sum(0)), rtol=1e-4)
    score = np.abs(before) * (np.sqrt((seen**2).sum(0)) if criterion == "wanda" else 1.0)
    # The layers before it are thinned as well; its own inputs are those of the whole block, unchanged.
    zero_smallest(model, 0.5, criterion, lambda: running(model))  # type: ignore[arg-type]
    expected = before.copy()
    np.put_along_axis(expected, np.argsort(score, 1)[:, :32], 0.0, 1)
    np.testing.assert_array_equal(layer.weight.detach().numpy(), expected)


@pytest.mark.parametrize("make", FAMILIES)
def test_a_layer_that_changes_nothing_is_the_one_that_goes(make: object) -> None:
    model = make()  # type: ignore[operator]
    _pass_on(find_blocks(model)[1])
    smaller = drop_layers(model, 2, lambda: running(model))
    assert smaller.config.num_hidden_layers == 2 == len(find_blocks(smaller))
    with torch.no_grad():
        torch.testing.assert_close(smaller(IDS).logits, model(IDS).logits, rtol=1e-4, atol=1e-4)
    assert len(find_blocks(model)) == 3


def smol(layers: int = 4) -> SmolLM3ForCausalLM:
    torch.manual_seed(1)
    shape = {"vocab_size": 90, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": layers}
    config = SmolLM3Config(
        **shape, num_attention_heads=2, num_key_value_heads=2, no_rope_layers=[1, 0, 1, 1], pad_token_id=0,
        bos_token_id=1, eos_token_id=2, initializer_range=0.4,
    )  # fmt: skip
    return SmolLM3ForCausalLM(config).eval()


def gpt_neo() -> GPTNeoForCausalLM:
    torch.manual_seed(1)
    config = GPTNeoConfig(
        vocab_size=90, hidden_size=32, num_layers=4, attention_types=[[["global", "local"], 2]], num_heads=2,
        window_size=3, max_position_embeddings=32, bos_token_id=1, eos_token_id=2, initializer_range=0.4,
    )  # fmt: skip
    return GPTNeoForCausalLM(config).eval()


@pytest.mark.parametrize("make", [smol, gpt_neo])
def test_layers_that_stay_keep_their_own_settings(
    make: Callable[[], PreTrainedModel], tmp_path: Path
) -> None:
    model = make()
    _pass_on(find_blocks(model)[0])
    smaller = drop_layers(model, 3, lambda: running(model))
    smaller.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    with torch.no_grad():
        expected = model(IDS).logits
        for one in (smaller, again):
            torch.testing.assert_close(one(IDS).logits, expected, rtol=1e-4, atol=1e-4)


def test_layers_whose_settings_follow_from_their_number_stay() -> None:
    torch.manual_seed(1)
    shape = {"vocab_size": 90, "n_embd": 32, "n_layer": 3, "n_head": 2, "n_positions": 32}
    config = GPT2Config(
        **shape, scale_attn_by_inverse_layer_idx=True, bos_token_id=1, eos_token_id=2, initializer_range=0.4
    )
    model = GPT2LMHeadModel(config).eval()
    _pass_on(find_blocks(model)[0])
    with pytest.raises(ModelError, match="does not say of each layer what it is like"):
        drop_layers(model, 2, lambda: running(model))


def _pass_on(block: nn.Module) -> None:
    """Make a block give what it is given (nearly, where a norm stands at its end)."""
    for name, module in block.named_modules():
        if isinstance(module, nn.Linear | Conv1D) and name.endswith(
            ("o_proj", "down_proj", "output.dense", "attn.Wo", "mlp.Wo", "out_proj", "c_proj")
        ):
            nn.init.zeros_(module.weight)


@pytest.mark.parametrize("make", FAMILIES)
def test_channels_that_add_nothing_are_the_ones_that_go(make: object) -> None:
    model = make()  # type: ignore[operator]
    dead = torch.arange(64) % 2 == 1
    for block in find_blocks(model):
        for module in block.modules():
            if isinstance(module, nn.Linear) and module.in_features == 64:
                module.weight.data[:, dead] = 0
    smaller = narrow_feed_forward(model, 0.5, lambda: running(model))
    assert smaller.config.intermediate_size == 32
    with torch.no_grad():
        torch.testing.assert_close(smaller(IDS).logits, model(IDS).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("groups", [4, 2])
def test_heads_that_add_nothing_are_the_ones_that_go(groups: int, tmp_path: object) -> None:
    """Four heads of 8, each with keys of its own or two with the same; biases too."""
    torch.manual_seed(1)
    shape = {"vocab_size": 90, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    config = LlamaConfig(**shape, num_attention_heads=4, num_key_value_heads=groups, attention_bias=True)
    model = LlamaForCausalLM(config).eval()
    dead = [1, 2] if groups == 4 else [0, 1]
    for block in model.model.layers:
        for name in ("q_proj", "k_proj", "v_proj"):
            getattr(block.self_attn, name).bias.data.normal_()
        for head in dead:
            block.self_attn.o_proj.weight.data[:, head * 8 : head * 8 + 8] = 0
    smaller = drop_heads(model, 0.5, lambda: running(model))
    left = smaller.config
    assert (left.num_attention_heads, left.num_key_value_heads, left.head_dim) == (2, groups // 2, 8)
    with torch.no_grad():
        torch.testing.assert_close(smaller(IDS).logits, model(IDS).logits, rtol=1e-4, atol=1e-4)
    smaller.save_pretrained(tmp_path)
    again = LlamaForCausalLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(again(IDS).logits, smaller(IDS).logits)


def test_a_model_without_linear_layers_in_blocks_is_said() -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=90, n_embd=32, n_layer=1, n_head=2, n_positions=32))
    with pytest.raises(ModelError, match="no linear layers in blocks"):
        zero_smallest(model, 0.5, "magnitude", lambda: iter(()))


def test_heads_that_the_architecture_does_not_take_are_named_before() -> None:
    shape = {"vocab_size": 90, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    model = LlamaForCausalLM(LlamaConfig(**shape, num_attention_heads=8, head_dim=4))
    with pytest.raises(ModelError, match=r"cannot have 6 of its 8 heads(.|\n)*0.125, 0.25, 0.5"):
        drop_heads(model, 0.75, lambda: running(model))


def test_heads_whose_width_follows_from_their_number_stay() -> None:
    with pytest.raises(ModelError, match="how wide its heads are"):
        drop_heads(bert(), 0.5, lambda: iter(()))


@pytest.mark.parametrize("make", FAMILIES)
def test_what_is_left_is_an_ordinary_model(make: object, tmp_path: object) -> None:
    model = make()  # type: ignore[operator]
    smaller = narrow_feed_forward(
        drop_layers(model, 1, lambda: running(model)), 0.25, lambda: running(copy.deepcopy(model))
    )
    smaller.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(again(IDS).logits, smaller(IDS).logits)


@pytest.mark.parametrize(
    ("cut", "said"),
    [
        (
            lambda model: drop_layers(model, 3, None),
            r"3 layers, which are all to stay: none would go(.|\n)*keep 1 to 2",
        ),
        (
            lambda model: drop_heads(model, 0.9, None),
            r"0\.9 of 4 heads, in groups of 2, are all(.|\n)*can have: 0\.5",
        ),
        (
            lambda model: narrow_feed_forward(model, 0.9, None),
            r"0\.9 of 64 channels, in multiples of 16, are all(.|\n)*channels:0\.75",
        ),
    ],
    ids=["layers", "heads", "channels"],
)
def test_what_would_take_nothing_out_is_said(cut: Callable[[PreTrainedModel], object], said: str) -> None:
    """Before: what is cut would learn again for hours, and stand in the table as if it were smaller."""
    shape = {"vocab_size": 90, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3}
    model = LlamaForCausalLM(LlamaConfig(**shape, num_attention_heads=4, num_key_value_heads=2))
    with pytest.raises(ModelError, match=said):
        cut(model)


def test_which_share_really_stays_is_said() -> None:
    """Of 64 channels in multiples of 16, and of 2 heads."""
    assert (
        check_parts(llama(), Recipe.of("channels:0.6+heads:0.6"))
        == "0.5 of the heads stay, 0.5 of the channels stay"
    )
    assert check_parts(llama(), Recipe.of("layers:1+channels:0.3+heads:0.5")) == "0.25 of the channels stay"
    assert check_parts(llama(), Recipe.of("wanda:0.3+int8")) == ""


def test_more_layers_than_there_are_cannot_stay() -> None:
    with pytest.raises(ModelError, match="3 layers, of which 4 are to stay"):
        drop_layers(bert(), 4, lambda: iter(()))
