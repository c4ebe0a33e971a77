"""Llama and its kin in fewer steps say what transformers' modules say."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from tutti.models.quantized import QuantizedLinear, round_to_nearest
from tutti.serve.engine.cache import KeyValueSlots, Part, Turn
from tutti.serve.engine.lean import Lean

USUAL = {
    "vocab_size": 61,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
KIN: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama"},
    "llama with biases": {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "llama, tied": {"model_type": "llama", "tie_word_embeddings": True},
    "llama, far positions": {
        "model_type": "llama",
        "rope_parameters": {
            "rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
        },
    },
    "mistral": {"model_type": "mistral", "sliding_window": None},
    "qwen2": {"model_type": "qwen2"},
    "qwen3": {"model_type": "qwen3", "head_dim": 16},
}  # fmt: skip


def make(kind: str) -> Any:
    torch.manual_seed(0)
    settings = USUAL | KIN[kind]
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    model = AutoModelForCausalLM.from_config(config).float().eval()
    for parameter in model.parameters():  # biases and norms, too, are something
        nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.3)
    return model


def quantize(model: Any) -> None:
    for number, (name, module) in enumerate(list(model.named_modules())):
        if type(module) is nn.Linear:
            # Here and there as AWQ leaves it: those layers compute for themselves.
            before = torch.full((module.in_features,), 2.0) if number % 5 == 0 else None
            codes = round_to_nearest(module.weight.detach(), 8)
            model.set_submodule(name, QuantizedLinear(codes, module.bias, "dynamic", before))


@torch.inference_mode()
@pytest.mark.parametrize("bits", [32, 8])
@pytest.mark.parametrize("kind", sorted(KIN))
def test_it_says_what_the_modules_say(kind: str, bits: int) -> None:
    model = make(kind)
    if bits == 8:
        quantize(model)
    lean = Lean.of(model, 64)
    assert lean is not None
    ids = torch.randint(0, 61, (40,), generator=torch.Generator().manual_seed(1))
    expected = model(input_ids=ids[None], use_cache=False).logits[0]
    cache = KeyValueSlots(3, 64)
    found = lean.run(ids, Turn([], [Part(1, 0, 40)]), cache, range(40))
    # In whole numbers, what differs in the last digit may be rounded to the next one.
    tolerance = 2e-4 if bits == 32 else 0.01 * float(expected.abs().max())
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=2e-4)
    assert (found - expected).abs().median() < 2e-4
    if bits == 8:  # numbers are rounded by who else is in the pass, so pieces differ
        return
    cache = KeyValueSlots(3, 64)
    pieces = [lean.run(ids[:17], Turn([], [Part(2, 0, 17)]), cache, range(17))]
    for place in range(17, 40):
        pieces.append(lean.run(ids[place : place + 1], Turn([Part(2, place, 1)], []), cache, [0]))
    torch.testing.assert_close(torch.cat(pieces), expected, atol=2e-4, rtol=2e-4)


def test_what_is_not_done_here_is_left_to_the_modules() -> None:
    window = make("mistral")
    for layer in window.model.layers:
        layer.self_attn.sliding_window = 8
    assert Lean.of(window, 64) is None and Lean.of(window, 8) is not None
    assert Lean.of(make("llama").bfloat16(), 64) is None
    other = AutoConfig.for_model("gpt2", vocab_size=61, n_embd=32, n_layer=1, n_head=2)
    assert Lean.of(AutoModelForCausalLM.from_config(other), 64) is None
