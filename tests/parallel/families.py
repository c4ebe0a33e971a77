"""Tiny models of the families that layouts are held to, made from their configurations."""

from __future__ import annotations

from typing import Any

from transformers import BertConfig, GemmaConfig, GPT2Config, LlamaConfig, MistralConfig, Qwen3Config

from tutti.models.blueprint import Blueprint

VOCABULARY = 64
_ENDS: dict[str, Any] = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
_SHAPE: dict[str, Any] = {
    **_ENDS, "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4,
    "intermediate_size": 64,
}  # fmt: skip
_GROUPED: dict[str, Any] = {**_SHAPE, "num_key_value_heads": 4}

FAMILIES: dict[str, Any] = {
    "llama": LlamaConfig(**_GROUPED, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**_GROUPED, head_dim=8, tie_word_embeddings=False),
    "gpt2": GPT2Config(
        **_ENDS, vocab_size=VOCABULARY, n_embd=32, n_layer=4, n_head=4, n_positions=32,
        resid_pdrop=0.0, attn_pdrop=0.0, embd_pdrop=0.0,
    ),
    "gemma": GemmaConfig(**_GROUPED, head_dim=8),
    "mistral": MistralConfig(**_GROUPED, sliding_window=6),
    "bert": BertConfig(
        **_SHAPE, is_decoder=True, max_position_embeddings=32,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    ),
}  # fmt: skip


def blueprint(family: str) -> Blueprint:
    """Of a family's tiny model, with the first weights of seed 0."""
    return Blueprint(FAMILIES[family], seed=0, end_token=0)
