"""Models from a size, an architecture and a directory; whatever is wrong is said in one message."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tutti.config.model import ModelConfig
from tutti.core import ModelError
from tutti.models import build_model, choose_preset, find_blocks, parse_size
from tutti.models.presets import readable

TINY: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": TINY,
    "qwen3": TINY | {"head_dim": 16},
    "mistral": TINY,
    "gemma": TINY | {"head_dim": 16},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 16},
}


def _build(vocabulary: int = 64, sequence: int = 32, seed: int = 0, **model: Any) -> tuple[Any, list[str]]:
    return build_model(ModelConfig(**model), vocabulary=vocabulary, sequence=sequence, seed=seed, end_token=3)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    torch.manual_seed(7)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=64, max_position_embeddings=32, **TINY))
    model.save_pretrained(tmp_path / "llama")
    return tmp_path / "llama"


@pytest.mark.parametrize("vocabulary", [65, 512, 4096, 16384])
@pytest.mark.parametrize("dial", ["800K", "1.5M", "5M", "15M"])
def test_size_is_met_by_the_model_that_is_built(dial: str, vocabulary: int) -> None:
    preset = choose_preset(dial, vocabulary)
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, **preset.settings(256)))
    actual = sum(parameter.numel() for parameter in model.parameters())
    assert actual == preset.parameters
    assert abs(actual / parse_size(dial) - 1) <= 0.15
    assert (
        preset.width % 32 == 0 and preset.width % preset.heads == 0 and preset.heads % preset.key_heads == 0
    )


def test_every_dial_is_met_or_the_nearest_is_named() -> None:
    for vocabulary in (65, 4096, 50257, 128256):
        for step in range(120):
            dial = f"{10 ** (4.7 + step * 0.06) / 1e3:.1f}K"
            try:
                parameters = choose_preset(dial, vocabulary).parameters
            except ModelError as error:
                assert parse_size(dial) < 2 * 32 * vocabulary
                offered = error.hint.split("model.size: ")[1].split(",")[0]
                parameters, dial = choose_preset(offered, vocabulary).parameters, offered
            assert abs(parameters / parse_size(dial) - 1) <= 0.15


def test_size_too_small_for_the_vocabulary() -> None:
    with pytest.raises(ModelError, match=r"no model of about 100K .* vocabulary of 50257") as caught:
        _build(vocabulary=50257, size="100K")
    assert "1.62M" in caught.value.hint


def test_size_says_what_was_chosen() -> None:
    model, choices = _build(size="100K")
    assert "2 layers, width 64" in choices[0] and "model.size = 100K" in choices[0]
    assert model.config.vocab_size == 64 and model.config.eos_token_id == 3 and model.config.pad_token_id == 3
    assert model.dtype == torch.float32
    assert len(find_blocks(model)) == 2


@pytest.mark.parametrize("origin", [{"size": "100K"}, {"config": {"model_type": "gpt2"} | FAMILIES["gpt2"]}])
def test_weights_follow_from_the_seed_alone(origin: dict[str, Any]) -> None:
    torch.manual_seed(1)
    one, _ = _build(**origin)
    state = torch.random.get_rng_state()
    threads = torch.get_num_threads()
    torch.manual_seed(2)
    torch.set_num_threads(2)
    same, _ = _build(**origin)
    torch.set_num_threads(threads)
    other, _ = _build(seed=1, **origin)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    torch.manual_seed(1)
    assert torch.equal(state, torch.random.get_rng_state()), "the caller's random state moved"


@pytest.mark.parametrize("family", FAMILIES)
def test_any_architecture(family: str) -> None:
    model, choices = _build(config={"model_type": family} | FAMILIES[family])
    assert model.config.vocab_size == 64 and model.get_input_embeddings().weight.shape[0] == 64
    assert model(torch.arange(32)[None]).logits.shape == (1, 32, 64)
    if family == "gpt2":
        assert any("max_position_embeddings = 32" in choice for choice in choices)


@pytest.mark.parametrize(
    ("config", "problem", "hint"),
    [
        ({"model_type": "lama"}, "model_type 'lama'", "llama"),
        ({"hidden_size": 32}, "no model_type", "llama"),
        ({"model_type": "llama", "hiden_size": 32}, "hiden_size", "hidden_size"),
        ({"model_type": "gpt2", "n_head": 5, "n_embd": 32}, "gpt2", "numbers"),
        ({"model_type": "llama", "hidden_size": "big"}, "llama configuration", "value"),
        ({"model_type": 3}, "model_type 3", ""),
    ],
)
def test_bad_configurations(config: dict[str, Any], problem: str, hint: str) -> None:
    with pytest.raises(ModelError) as caught:
        _build(config=config)
    assert problem in caught.value.problem and hint in caught.value.hint


def test_dropout_where_there_is_some() -> None:
    model, choices = _build(config={"model_type": "gpt2"} | FAMILIES["gpt2"], dropout=0.25)
    assert model.config.resid_pdrop == model.config.attn_pdrop == model.config.embd_pdrop == 0.25
    assert any("model.dropout = 0.25" in choice for choice in choices)
    model, choices = _build(config={"model_type": "gpt2"} | FAMILIES["gpt2"])
    assert model.config.resid_pdrop == 0.0 and any("model.dropout = 0:" in choice for choice in choices)
    model, _ = _build(config={"model_type": "gpt2", "resid_pdrop": 0.3} | FAMILIES["gpt2"])
    assert model.config.resid_pdrop == 0.3 and model.config.attn_pdrop == 0.0


def test_weights_of_a_directory(directory: Path) -> None:
    model, choices = _build(path=str(directory))
    plain = AutoModelForCausalLM.from_pretrained(directory)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))
    assert "weights of" in choices[0] and model.generation_config.eos_token_id == 3


def test_architecture_of_a_directory(directory: Path) -> None:
    model, choices = _build(path=str(directory), from_scratch=True, vocabulary=100, sequence=50)
    assert model.config.vocab_size == 100 and model.config.max_position_embeddings == 50
    assert "new weights" in choices[0]


def _no_config(directory: Path) -> None:
    (directory / "config.json").unlink()


def _broken_config(directory: Path) -> None:
    (directory / "config.json").write_text("{", encoding="utf-8")


def _foreign_config(directory: Path) -> None:
    (directory / "config.json").write_text(
        '{"model_type": "no_such", "auto_map": {"AutoConfig": "evil.py"}}', encoding="utf-8"
    )


def _odd_config(directory: Path) -> None:
    content = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    (directory / "config.json").write_text(json.dumps(content | {"hidden_size": "wide"}), encoding="utf-8")


def _no_weights(directory: Path) -> None:
    (directory / "model.safetensors").unlink()


def _pickled_weights(directory: Path) -> None:
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")


def _torn_weights(directory: Path) -> None:
    content = (directory / "model.safetensors").read_bytes()
    (directory / "model.safetensors").write_bytes(content[: len(content) // 2])


def _other_weights(directory: Path) -> None:
    content = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    (directory / "config.json").write_text(json.dumps(content | {"num_hidden_layers": 3}), encoding="utf-8")


def _wider_config(directory: Path) -> None:
    content = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    (directory / "config.json").write_text(json.dumps(content | {"hidden_size": 64}), encoding="utf-8")


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (_no_config, "no config.json"),
        (_broken_config, "no JSON"),
        (_foreign_config, "no_such"),
        (_odd_config, "cannot be used"),
        (_no_weights, "no weights"),
        (_pickled_weights, "pickle"),
        (_torn_weights, "cannot be loaded"),
        (_other_weights, "do not fit"),
        (_wider_config, "weights in"),
    ],
)
def test_damaged_directories(directory: Path, damage: Any, problem: str) -> None:
    damage(directory)
    with pytest.raises(ModelError, match=problem) as caught:
        _build(path=str(directory))
    assert caught.value.hint


def test_missing_directory(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no directory"):
        _build(path=str(tmp_path / "nowhere"))


def test_weights_of_another_tokenizer_are_refused(directory: Path) -> None:
    with pytest.raises(ModelError, match="another tokenizer") as caught:
        _build(path=str(directory), vocabulary=100)
    assert "data.tokenizer" in caught.value.hint and "from_scratch" in caught.value.hint
    assert _build(path=str(directory), vocabulary=60)[0].config.vocab_size == 64  # padded


def test_the_tokenizer_beside_the_weights_decides(directory: Path) -> None:
    from tokenizers import Tokenizer, models

    tokenizer = Tokenizer(models.WordLevel({str(i): i for i in range(50)}, unk_token="0"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(directory)
    assert _build(path=str(directory), vocabulary=50)
    with pytest.raises(ModelError, match="50 entries, the data's has 60"):
        _build(path=str(directory), vocabulary=60)


def test_a_sample_longer_than_the_context_of_the_weights(directory: Path) -> None:
    with pytest.raises(ModelError, match="sees 32 tokens at once") as caught:
        _build(path=str(directory), sequence=33)
    assert "32 or less" in caught.value.hint


def test_blocks_of_any_module() -> None:
    assert find_blocks(torch.nn.Linear(2, 2)) == []
    blocks = torch.nn.ModuleList([torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)])
    module = torch.nn.ModuleDict({"few": torch.nn.ModuleList([torch.nn.Linear(2, 2)]), "many": blocks})
    assert find_blocks(module) == list(blocks)
    assert readable(999_999) == "1000K" and readable(12_345_678) == "12.3M" and readable(12) == "12"
