"""Activations that are computed again instead of kept.

`full`: of every block only its input is kept. `selective`: what matrix products and attention gave is kept as well,
so that only cheap things (norms, activations, rotations) are computed again. (Korthikanti et al., arXiv 2205.05198.)
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

#: Operators whose results `selective` keeps.
DEAR = {
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.bmm.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops._c10d_functional.reduce_scatter_tensor.default,
    torch.ops._c10d_functional.all_to_all_single.default,
}


def recompute_blocks(blocks: Sequence[nn.Module], how: str) -> None:
    """Let each of `blocks` keep less of its forward pass: `none`, `selective` or `full`."""
    if how == "none":
        return
    contexts: dict[str, Any] = {} if how == "full" else {"context_fn": _keep_what_is_dear}
    for block in blocks:
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False, **contexts)


def _keep_what_is_dear() -> Any:
    return create_selective_checkpoint_contexts(_policy)  # type: ignore[no-untyped-call]


def _policy(_: Any, operator: Any, *__: Any, **___: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operator in DEAR else CheckpointPolicy.PREFER_RECOMPUTE
