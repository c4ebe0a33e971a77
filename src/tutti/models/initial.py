"""First weights of the presets: every matrix passes on the size of its input, and every block starts almost silent.

transformers draws all matrices with a deviation of 0.02, whatever their width. Here it is 1/√(inputs), and the
two matrices that write into the residual stream (`o_proj`, `down_proj`) get a fiftieth of it, so that the
model starts as embedding and head alone and its blocks join in as they learn (SkipInit, arXiv 2002.10444;
nanochat sets them to zero). Not quite zero, so that from the first step on every matrix has a gradient.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import nn

_RESIDUAL = ("o_proj.weight", "down_proj.weight")
_TABLES = ("embed_tokens.weight", "lm_head.weight")


@torch.no_grad()
def initialise(module: nn.Module, seed: int, name: str = "") -> None:
    """Draw the matrices of a Llama, or of its part `name`, anew (norms stay 1, tables keep transformers' 0.02).

    Each follows from `seed` and its own name, so it is the same whoever draws it.
    """
    for key, parameter in module.named_parameters(name):
        if parameter.ndim != 2 or key.endswith(_TABLES):
            continue
        deviation = 1 / math.sqrt(parameter.shape[1])
        dice = torch.Generator().manual_seed(number_of(seed, key))
        parameter.normal_(0.0, deviation / 50 if key.endswith(_RESIDUAL) else deviation, generator=dice)


def number_of(seed: int, name: str) -> int:
    """A seed that follows from `seed` and `name`, the same in every process."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()) >> 1
