"""What llama.cpp calls the architectures that are written for it, and how their weights differ from transformers'.

Its `llama` turns neighbouring numbers of a query or key where transformers turns numbers half a head apart, so their
rows change places: row i of a head's first half becomes row 2i, row i of its second half row 2i + 1. GPT-2's matrices
are the wrong way round in transformers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tutti.core import ModelError
from tutti.models.gguf.stretched import say_stretched, why_not_stretched

_REFUSED = (
    "the export of the run is an ordinary Hugging Face directory: llama.cpp's own convert_hf_to_gguf.py knows more "
    "architectures"
)


@dataclass(frozen=True)
class Architecture:
    """`name`: of gguf's MODEL_ARCH. `turns_neighbours`: see the module's head. `says`: writes what there is to be
    known of a configuration, beside the numbers that all have."""

    name: str
    turns_neighbours: bool
    says: Callable[[Any, Any], None]

    def tensor(self, name: str, tensor: Tensor, config: Any) -> Tensor:
        """`tensor`, of transformers' `name`, as llama.cpp has it."""
        module, _, _ = name.rpartition(".")
        if self.turns_neighbours and module.endswith("q_proj"):
            return _neighbours(tensor, config.num_attention_heads)
        if self.turns_neighbours and module.endswith("k_proj"):
            return _neighbours(tensor, config.num_key_value_heads)
        if self.name == "GPT2" and module.endswith(("c_attn", "c_proj", "c_fc")) and tensor.dim() == 2:
            return tensor.t()
        return tensor


def architecture_of(config: Any) -> Architecture:
    """That of a transformers configuration.

    Raises:
        ModelError: it is none that is written here, or computes in a way that llama.cpp's does not.
    """
    kind = config.model_type
    if kind not in _KNOWN:
        raise ModelError(f"a {kind} is not written as GGUF here, but {', '.join(_KNOWN)}", _REFUSED)
    rope = getattr(config, "rope_parameters", None) or {}
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    odd = None
    if (stretched := why_not_stretched(kind, rope)) is not None:
        odd = stretched
    elif window is not None and window < config.max_position_embeddings:
        odd = f"sliding_window {window}"
    elif kind == "gpt2" and (config.scale_attn_by_inverse_layer_idx or not config.scale_attn_weights):
        odd = "attention of another scale"
    elif kind == "gpt2" and config.activation_function not in ("gelu_new", "gelu_pytorch_tanh"):
        odd = f"activation_function {config.activation_function}"
    elif kind != "gpt2" and config.hidden_act != "silu":
        odd = f"hidden_act {config.hidden_act}"
    if odd is not None:
        raise ModelError(f"a {kind} with {odd} is not written as GGUF here", _REFUSED)
    return _KNOWN[kind]


def _neighbours(rows: Tensor, heads: int) -> Tensor:
    """Rows of `heads` [heads · width, …], the halves of each head side by side."""
    return rows.view(heads, 2, -1, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


def _say_llama(writer: Any, config: Any) -> None:
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_rope_dimension_count(width)
    writer.add_rope_freq_base(float(config.rope_parameters["rope_theta"]))
    say_stretched(writer, config.rope_parameters)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_feed_forward_length(config.intermediate_size)


def _say_gpt2(writer: Any, config: Any) -> None:
    writer.add_layer_norm_eps(config.layer_norm_epsilon)
    writer.add_feed_forward_length(config.n_inner or 4 * config.hidden_size)


#: By transformers' model_type.
_KNOWN = {
    "llama": Architecture("LLAMA", True, _say_llama),
    "mistral": Architecture("LLAMA", True, _say_llama),
    "qwen2": Architecture("QWEN2", False, _say_llama),
    "qwen3": Architecture("QWEN3", False, _say_llama),
    "gpt2": Architecture("GPT2", False, _say_gpt2),
}
