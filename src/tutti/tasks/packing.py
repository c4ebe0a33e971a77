"""Documents packed into one sample never see each other, whatever the architecture.

A batch says where documents are by `position_ids` that restart at 0. Three ways lead to the same numbers:

- **plain**: no document begins inside any sample (the usual case with long documents). Attention is causal,
  no mask exists, and the fastest kernel runs.
- **mask**: the architecture's own mask (full, sliding window, chunked …) and "same document", as transformers
  builds it from `position_ids`; one mask a batch, shared by all layers.
- **unpack**: for architectures that ignore `position_ids` (state-space models, ALiBi): every document becomes
  a row of its own. Slower, and right for anything that is causal.

Why Tutti registers its own attention (`tutti`, in transformers' public AttentionInterface) instead of `sdpa`:
while torch.compile traces, transformers cannot look at values, so it would build a mask for plain batches
too; and on CPUs whose matrix units know no bfloat16, torch's attention is 2.5-4 times as fast in fp32
(forward and backward; measured on AVX-512 without AMX), so there it runs in fp32 whatever the precision of the rest.

Shapes: B samples, S tokens, H heads, D width of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

#: Name of the attention under which models train.
ATTENTION = "tutti"

_plain = False


class causal_only:
    """`with causal_only(plain):` — while `plain`, masks of unpadded batches are left to the kernel.

    A class, not `@contextmanager`: torch.compile follows it without a graph break.
    """

    def __init__(self, plain: bool) -> None:
        self.plain = plain

    def __enter__(self) -> None:
        global _plain
        self.before, _plain = _plain, self.plain

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        global _plain
        _plain = self.before


@torch.compiler.disable  # type: ignore[untyped-decorator]
def is_plain(position_ids: Tensor | None) -> bool:
    """Whether no document begins inside a sample of `position_ids` [B, S]. (One small sync on accelerators.)"""
    if position_ids is None:
        return True
    counting = torch.arange(position_ids.shape[1], device=position_ids.device)
    return bool((position_ids == counting).all())


def unpack(input_ids: Tensor, labels: Tensor, position_ids: Tensor, ignored: int) -> tuple[Tensor, Tensor]:
    """Every document of `input_ids`, `labels` [B, S] as a row of its own, padded on the right: [documents, longest]."""
    first = position_ids == 0
    first[:, 0] = True
    row = first.flatten().cumsum(0) - 1
    starts = first.flatten().nonzero().squeeze(1)
    column = torch.arange(row.numel(), device=row.device) - starts[row]
    shape = (int(row[-1]) + 1, int(column.max()) + 1)
    ids = input_ids.new_zeros(shape).index_put_((row, column), input_ids.flatten())
    return ids, labels.new_full(shape, ignored).index_put_((row, column), labels.flatten())


def _mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Tensor] | None = None,
    attention_mask: Tensor | None = None,
    local_size: int | None = None,
    use_vmap: bool = False,
    **rest: Any,
) -> Tensor | None:
    """transformers' mask for SDPA, or None (causal, by the kernel) where a plain batch needs no more."""
    window_covers_all = local_size is None or kv_length <= local_size
    if _plain and attention_mask is None and window_covers_all and not use_vmap and q_length == kv_length:
        return None
    if mask_function is not None:
        rest["mask_function"] = mask_function
    mask: Tensor | None = sdpa_mask(
        batch_size=batch_size,
        q_length=q_length,
        kv_length=kv_length,
        q_offset=q_offset,
        kv_offset=kv_offset,
        attention_mask=attention_mask,
        local_size=local_size,
        use_vmap=use_vmap,
        **rest,
    )
    return mask


_HALF = (torch.bfloat16, torch.float16)
_CPU_HAS_TILES = torch.cpu._is_amx_tile_supported()


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **rest: Any
) -> tuple[Tensor, None]:
    """Scaled dot-product attention: query, key, value [B, H, S, D] → [B, S, H, D]."""
    if query.device.type != "cpu" or _CPU_HAS_TILES or not _in_half(query, value):
        attended: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, **rest
        )
        return attended
    if attention_mask is not None and attention_mask.is_floating_point():
        attention_mask = attention_mask.float()
    with torch.autocast("cpu", enabled=False):
        output, _ = sdpa_attention_forward(
            module, query.float(), key.float(), value.float(), attention_mask, **rest
        )
    return output.to(value.dtype), None


def _in_half(*tensors: Tensor) -> bool:
    return torch.is_autocast_enabled("cpu") or any(tensor.dtype in _HALF for tensor in tensors)


AttentionInterface.register(ATTENTION, _attend)
AttentionMaskInterface.register(ATTENTION, _mask)
