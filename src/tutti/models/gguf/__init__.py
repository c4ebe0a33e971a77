"""Causal language models as GGUF files, which llama.cpp and what is built on it open."""

from tutti.models.gguf.file import WEIGHTS, Weights, gguf_library, write_gguf

__all__ = ["WEIGHTS", "Weights", "gguf_library", "write_gguf"]
