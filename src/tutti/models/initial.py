"""First weights of the presets: every matrix passes on the size of its input, and every block starts almost silent.

transformers draws all matrices with a deviation of 0.02, whatever their width. Here it is 1/√(inputs), and the
two matrices that write into the residual stream (`o_proj`, `down_proj`) get a fiftieth of it, so that the
model starts as embedding and head alone and its blocks join in as they learn (SkipInit, arXiv 2002.10444;
nanochat sets them to zero). Not quite zero, so that from the first step on every matrix has a gradient.
"""

from __future__ import annotations

import math

import torch
from transformers import PreTrainedModel

_RESIDUAL = ("o_proj.weight", "down_proj.weight")
_TABLES = ("embed_tokens.weight", "lm_head.weight")


@torch.no_grad()
def initialise(model: PreTrainedModel, seed: int) -> None:
    """Draw the matrices of a Llama anew from `seed` (norms stay 1, tables keep transformers' 0.02)."""
    dice = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.ndim != 2 or name.endswith(_TABLES):
            continue
        deviation = 1 / math.sqrt(parameter.shape[1])
        parameter.normal_(0.0, deviation / 50 if name.endswith(_RESIDUAL) else deviation, generator=dice)
