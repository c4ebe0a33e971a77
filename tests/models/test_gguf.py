"""GGUF files: read by gguf, and computed by llama.cpp where it is installed (`pip install llama-cpp-python`)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf.quants import dequantize
from tokenizers import pre_tokenizers
from transformers import (
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from gguf_toys import HELD, SHAPE, TEXT, drawn, opened, said, tied_llama, written
from tutti import api
from tutti.cli import run as tutti_command
from tutti.config import load_config
from tutti.core import ModelError, RunError
from tutti.data.tokenizer import save_tokenizer, train_bpe, train_characters
from tutti.models.gguf import WEIGHTS, Weights, write_gguf


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE of 300 entries, as Tutti trains it."""
    directory = tmp_path_factory.mktemp("words")
    save_tokenizer(train_bpe([TEXT], 300, exactly=True), directory)
    return directory


def llama() -> PreTrainedModel:
    """Heads share keys, and are wider than the model divided by their number, as after heads were taken out."""
    config = LlamaConfig(
        **SHAPE, num_key_value_heads=2, head_dim=32, tie_word_embeddings=False, attention_bias=True
    )
    return drawn(LlamaForCausalLM, config)


def mistral() -> PreTrainedModel:
    return drawn(MistralForCausalLM, MistralConfig(**SHAPE, num_key_value_heads=2, sliding_window=None))


def qwen2() -> PreTrainedModel:
    return drawn(Qwen2ForCausalLM, Qwen2Config(**SHAPE, num_key_value_heads=2))


def qwen3() -> PreTrainedModel:
    return drawn(Qwen3ForCausalLM, Qwen3Config(**SHAPE, num_key_value_heads=2, head_dim=32))


def llama3() -> PreTrainedModel:
    """Slow turns are divided by 8, fast ones by 1, some by what lies between."""
    rope = {
        "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0,
        "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
    }  # fmt: skip
    return drawn(LlamaForCausalLM, LlamaConfig(**SHAPE, head_dim=32, rope_parameters=rope))


def stretched_llama() -> PreTrainedModel:
    rope = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 3.0}
    return drawn(LlamaForCausalLM, LlamaConfig(**SHAPE, rope_parameters=rope))


def yarn_qwen2() -> PreTrainedModel:
    rope = {
        "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32,
    }  # fmt: skip
    return drawn(Qwen2ForCausalLM, Qwen2Config(**SHAPE, num_key_value_heads=2, rope_parameters=rope))


def gpt2() -> PreTrainedModel:
    shape = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128, "n_inner": 96}
    return drawn(GPT2LMHeadModel, GPT2Config(vocab_size=300, eos_token_id=0, bos_token_id=0, **shape))


FAMILIES = [llama, tied_llama, mistral, qwen2, qwen3, gpt2, llama3, stretched_llama, yarn_qwen2]


def by_hand(name: str, tensor: np.ndarray, config: Any) -> np.ndarray:
    """The tensor as llama.cpp has it, by a loop over rows: the first half of a head's rows in even places."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": getattr(config, "num_key_value_heads", 0)}
    part = name.split(".")[-2]
    if config.model_type in ("llama", "mistral") and part in heads:
        width = len(tensor) // heads[part]
        moved = tensor.copy()
        for head in range(heads[part]):
            for row in range(width // 2):
                moved[head * width + 2 * row] = tensor[head * width + row]
                moved[head * width + 2 * row + 1] = tensor[head * width + width // 2 + row]
        return moved
    is_conv = config.model_type == "gpt2" and part in ("c_attn", "c_proj", "c_fc") and tensor.ndim == 2
    return tensor.T if is_conv else tensor


def factors_by_hand(config: Any) -> list[float]:
    """Llama 3's stretching, as its authors' code has it (meta-llama/llama-models, `apply_scaling`)."""
    rope, width = config.rope_parameters, config.head_dim
    seen, low, high = (
        rope["original_max_position_embeddings"],
        rope["low_freq_factor"],
        rope["high_freq_factor"],
    )
    found = []
    for at in range(0, width, 2):
        length = 2 * np.pi * rope["rope_theta"] ** (at / width)
        if length < seen / high:
            found.append(1.0)
        elif length > seen / low:
            found.append(rope["factor"])
        else:
            smooth = (seen / length - low) / (high - low)
            found.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    assert len(set(found)) > 2  # one between the two, too
    return found


#: transformers' names of the parts of a block, and llama.cpp's.
PARTS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}
OUTSIDE = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "transformer.wte": "token_embd",
    "transformer.wpe": "position_embd",
    "transformer.ln_f": "output_norm",
}


def their_name(name: str) -> str:
    module, _, kind = name.rpartition(".")
    if module in OUTSIDE:
        return f"{OUTSIDE[module]}.{kind}"
    _, _, number, part = module.split(".", 3)
    return f"blk.{number}.{PARTS[part]}.{kind}"


@pytest.mark.parametrize("make", FAMILIES)
def test_every_weight_is_where_llama_cpp_looks_for_it(make: Any, words: Path, tmp_path: Path) -> None:
    model = make()
    reader = written(model, words, tmp_path / "toy.gguf")
    found = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
    own = dict(model.named_parameters())
    factors = found.pop("rope_freqs.weight", None)
    if make is llama3:
        np.testing.assert_allclose(factors, factors_by_hand(model.config), rtol=1e-6)
    else:
        assert factors is None
    assert sorted(map(their_name, own)) == sorted(found)
    for name, parameter in own.items():
        expected = by_hand(name, parameter.detach().numpy(), model.config)
        np.testing.assert_array_equal(found[their_name(name)], expected, err_msg=name)
    kind = {"mistral": "llama"}.get(model.config.model_type, model.config.model_type)
    assert said(reader, "general.architecture") == kind
    assert said(reader, f"{kind}.block_count") == 2 and said(reader, f"{kind}.embedding_length") == 64
    assert said(reader, f"{kind}.context_length") == 128 and said(reader, f"{kind}.feed_forward_length") == 96
    assert said(reader, f"{kind}.attention.head_count") == 4
    if kind != "gpt2":
        width = getattr(model.config, "head_dim", None) or 16
        assert (
            said(reader, f"{kind}.attention.key_length")
            == said(reader, f"{kind}.rope.dimension_count")
            == width
        )
        assert said(reader, f"{kind}.rope.freq_base") == model.config.rope_parameters["rope_theta"]


@pytest.mark.parametrize("weights", ["f16", "q8_0", "q4_0"])
def test_fewer_bits_are_near(weights: Weights, words: Path, tmp_path: Path) -> None:
    """By the formats' definition: blocks of 32 numbers with one scale, the largest number over 127, or over −8."""
    model = tied_llama()
    tensors = {t.name: t for t in written(model, words, tmp_path / "toy.gguf", weights).tensors}
    norm = tensors["output_norm.weight"]
    np.testing.assert_array_equal(
        norm.data, dict(model.named_parameters())["model.norm.weight"].detach().numpy()
    )
    matrix = dict(model.named_parameters())["model.layers.0.mlp.down_proj.weight"].detach().numpy()
    stored = tensors["blk.0.ffn_down.weight"]
    found = dequantize(stored.data, stored.tensor_type)
    blocks = matrix.reshape(-1, 32)
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(1, keepdims=True), 1)
    step = {"f16": np.abs(blocks) * 2.0**-11, "q8_0": np.abs(largest) / 127, "q4_0": np.abs(largest) / 8}[
        weights
    ]
    apart = np.abs(found.reshape(-1, 32) - blocks)
    assert (apart <= step * (1 if weights != "q8_0" else 0.51) + 1e-4).all()
    assert weights == "f16" or apart.max() > 1e-4
    assert stored.n_bytes == matrix.size * {"f16": 2, "q8_0": 34 / 32, "q4_0": 18 / 32}[weights]


def test_the_tokenizer_is_that_of_the_model(words: Path, tmp_path: Path) -> None:
    reader = written(tied_llama(), words, tmp_path / "toy.gguf")
    tokenizer = json.loads((words / "tokenizer.json").read_text())
    names = {number: token for token, number in tokenizer["model"]["vocab"].items()}
    tokens = said(reader, "tokenizer.ggml.tokens")
    assert tokens == [names[number] for number in range(300)]
    assert said(reader, "tokenizer.ggml.token_type")[:2] == [3, 1]  # the end of a text, and a byte
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in tokenizer["model"]["merges"]]
    assert said(reader, "tokenizer.ggml.merges") == merges
    assert said(reader, "tokenizer.ggml.pre") == "gpt-2"
    assert said(reader, "tokenizer.ggml.eos_token_id") == 0 and not said(
        reader, "tokenizer.ggml.add_bos_token"
    )


def test_a_vocabulary_with_room_is_filled_up(words: Path, tmp_path: Path) -> None:
    model = drawn(LlamaForCausalLM, LlamaConfig(**SHAPE | {"vocab_size": 320}))
    reader = written(model, words, tmp_path / "toy.gguf")
    assert len(said(reader, "tokenizer.ggml.tokens")) == 320
    assert said(reader, "tokenizer.ggml.token_type")[300:] == [5] * 20  # unused


def test_what_llama_cpp_does_not_compute_is_refused(words: Path, tmp_path: Path) -> None:
    path = tmp_path / "toy.gguf"
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    yarn = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 64}
    llama3 = yarn | {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    for model, reason in (
        (LlamaForCausalLM(LlamaConfig(**SHAPE, rope_parameters=rope)), "rope_type dynamic"),
        (
            LlamaForCausalLM(LlamaConfig(**SHAPE, rope_parameters=yarn | {"beta_fast": 16})),
            "YaRN's beta_fast = 16",
        ),
        (Qwen2ForCausalLM(Qwen2Config(**SHAPE, rope_parameters=llama3)), "qwen2 with rope_type llama3"),
        (MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=16)), "sliding_window 16"),
        (LlamaForCausalLM(LlamaConfig(**SHAPE, hidden_act="relu")), "hidden_act relu"),
    ):
        with pytest.raises(ModelError, match=reason):
            write_gguf(model, words, path, "toy")
    save_tokenizer(train_characters([TEXT]), tmp_path / "characters")
    with pytest.raises(ModelError, match="is no byte-level BPE"):
        write_gguf(tied_llama(), tmp_path / "characters", path, "toy")
    spaced = train_bpe([TEXT], 300, exactly=True)
    spaced.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    save_tokenizer(spaced, tmp_path / "spaced")
    with pytest.raises(ModelError, match="puts a space before every text"):
        write_gguf(tied_llama(), tmp_path / "spaced", path, "toy")
    assert not path.exists() and not list(tmp_path.glob(".*"))


# llama.cpp ------------------------------------------------------------------------------------------------------


def their_logits(path: Path, ids: Sequence[int]) -> np.ndarray:
    """[S, V], of llama.cpp."""
    model = opened(path)
    model.eval(list(ids))
    return np.array(model.scores[: len(ids)], dtype=np.float64)


def mean_loss(logits: np.ndarray, ids: Sequence[int]) -> float:
    log = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    return float(-np.mean([log[at, ids[at + 1]] for at in range(len(ids) - 1)]))


@pytest.mark.parametrize("make", FAMILIES)
def test_llama_cpp_computes_the_same(make: Any, words: Path, tmp_path: Path) -> None:
    """Keys and values have 16 bits there: 0.2 % of the largest logit, and a loss within 0.002."""
    model = make()
    write_gguf(model, words, tmp_path / "toy.gguf", "toy", "f32")
    ids = AutoTokenizer.from_pretrained(words)(HELD)["input_ids"][:48]
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0].double().numpy()
    found = their_logits(tmp_path / "toy.gguf", ids)
    np.testing.assert_allclose(found, expected, atol=0.002 * np.abs(expected).max())
    assert mean_loss(found, ids) == pytest.approx(mean_loss(expected, ids), abs=2e-3)


def test_llama_cpp_cuts_text_the_same(words: Path, tmp_path: Path) -> None:
    write_gguf(tied_llama(), words, tmp_path / "toy.gguf", "toy")
    model, tokenizer = opened(tmp_path / "toy.gguf"), AutoTokenizer.from_pretrained(words)
    for text in (TEXT, HELD, "", "  x", "<|endoftext|>", "a\r\nb\u3000c"):
        theirs = model.tokenize(text.encode(), add_bos=True, special=False)
        assert theirs == tokenizer(text, split_special_tokens=True)["input_ids"], text
        assert model.detokenize(theirs).decode() == text


@pytest.mark.slow
@pytest.mark.parametrize("weights", WEIGHTS)
def test_a_run_goes_to_llama_cpp(
    weights: Weights, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a user would; perplexity of what was kept aside within 0.1 of transformers', with 4 bits within 10 %."""
    (tmp_path / "text.txt").write_text(TEXT * 60)
    settings = [
        *("name=tale", f"runs={tmp_path / 'runs'}", f"data.source={tmp_path / 'text.txt'}", "model=200K"),
        *(
            f"data.cache={tmp_path / 'cache'}",
            "data.sequence=32",
            "data.validation=0.1",
            "data.vocabulary=300",
        ),
        *(
            "train.steps=30",
            "train.batch=8",
            "train.learning_rate=3e-3",
            "train.precision=fp32",
            "replicas=1",
        ),
    ]
    api.train(load_config(None, settings), console=False)
    run = tmp_path / "runs" / "tale"
    assert tutti_command(["export", str(run), "--format", "gguf", "--weights", weights]) == 0
    assert f"model-{weights}.gguf" in capsys.readouterr().out
    tokenizer = AutoTokenizer.from_pretrained(run / "export")
    ids = tokenizer(HELD + TEXT)["input_ids"][:60]
    with torch.no_grad():
        from transformers import AutoModelForCausalLM

        logits = AutoModelForCausalLM.from_pretrained(run / "export")(torch.tensor([ids])).logits[0]
    expected = np.exp(mean_loss(logits.double().numpy(), ids))
    found = np.exp(mean_loss(their_logits(run / f"model-{weights}.gguf", ids), ids))
    assert found == pytest.approx(expected, **({"rel": 0.1} if weights == "q4_0" else {"abs": 0.1}))


@pytest.mark.parametrize("format", ["hugging_face", "onnx"])
def test_bits_of_a_gguf_file_are_of_no_other(format: Any, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="q4_0 is of a GGUF file") as refused:
        api.export(tmp_path, format=format, weights="q4_0")
    assert "--format gguf" in refused.value.hint


def test_only_causal_models_and_file_names_are_taken(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no name for a GGUF file"):
        api.export(tmp_path, tmp_path / "somewhere", format="gguf")
    with pytest.raises(RunError, match="no run"):
        api.export(tmp_path / "nothing", format="gguf")
