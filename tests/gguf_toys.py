"""What tests of GGUF files share: small models, and files that are read by gguf and by llama.cpp."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFReader
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from tutti.models.gguf import Weights, write_gguf

TEXT = "The king's 12 horses  didn't see\n\n\tthe été in Öland, 東京 🦙; they've   gone. " * 4
HELD = "The horses see the king 2 times; they didn't go to Öland.\n\n"


def drawn(kind: type[PreTrainedModel], config: Any) -> PreTrainedModel:
    """Weights that are large enough for what they do to be seen, and no norm or bias that does nothing."""
    torch.manual_seed(0)
    model = kind(config).eval()  # type: ignore[no-untyped-call]
    for parameter in model.parameters():
        change = 0.3 if parameter.dim() == 1 else 0.1
        parameter.data += change * torch.randn_like(parameter)
    return model


SHAPE = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "eos_token_id": 0,
    "bos_token_id": 0,
}


def tied_llama() -> PreTrainedModel:
    rope = {"rope_type": "default", "rope_theta": 50000.0}
    return drawn(LlamaForCausalLM, LlamaConfig(**SHAPE, tie_word_embeddings=True, rope_parameters=rope))


def written(model: PreTrainedModel, words: Path, path: Path, weights: Weights = "f32") -> GGUFReader:
    write_gguf(model, words, path, "toy", weights)
    return GGUFReader(path)


def said(reader: GGUFReader, name: str) -> Any:
    return reader.fields[name].contents()


def opened(path: Path, context: int = 64) -> Any:
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    return llama_cpp.Llama(
        str(path), n_ctx=context, n_threads=1, logits_all=True, verbose=False, flash_attn=False
    )
