"""Rotary positions that are stretched, so that a model sees further than it was first trained to.

`linear` (Chen et al. 2023, arXiv 2306.15595) and `yarn` (Peng et al. 2023, arXiv 2309.00071) are numbers in the file.
Llama 3's own way divides slow frequencies more than fast ones: by a tensor of the file, which llama.cpp asks of its
`llama` alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

#: What llama.cpp takes YaRN's bounds and scale of attention to be.
_YARN = {
    "beta_fast": (32, None),
    "beta_slow": (1, None),
    "truncate": (True, None),
    "attention_factor": (None,),
    "mscale": (None,),
    "mscale_all_dim": (None,),
}
#: The tensor's name in the file.
FREQUENCIES = "rope_freqs.weight"


def why_not_stretched(kind: str, rope: Mapping[str, Any]) -> str | None:
    """Why a model of `kind` with these `rope_parameters` is not written, in words; None: it is."""
    way = rope.get("rope_type", "default")
    if way == "yarn":
        odd = [key for key, usual in _YARN.items() if rope.get(key) not in usual]
        return f"YaRN's {odd[0]} = {rope[odd[0]]}" if odd else None
    if way in ("default", "linear") or (way == "llama3" and kind in ("llama", "mistral")):
        return None
    return f"rope_type {way}"


def say_stretched(writer: Any, rope: Mapping[str, Any]) -> None:
    """Tell `writer` how positions are stretched."""
    import gguf

    way = rope.get("rope_type", "default")
    if way not in ("linear", "yarn"):
        return
    writer.add_rope_scaling_type(gguf.RopeScalingType(way))
    writer.add_rope_scaling_factor(float(rope["factor"]))
    if way == "yarn":
        writer.add_rope_scaling_orig_ctx_len(int(rope["original_max_position_embeddings"]))


def frequency_factors(config: Any) -> Tensor | None:
    """What every frequency [head width ÷ 2] is divided by; None: no tensor says it."""
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") != "llama3":
        return None
    stretched, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    width = 2 * len(stretched)
    plain = float(rope["rope_theta"]) ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    return (plain / stretched.double()).float()
