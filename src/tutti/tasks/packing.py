"""Documents packed into one sample never see each other, whatever the architecture.

A batch says where documents are by `position_ids` that restart at 0. Three ways lead to the same numbers:

- **plain**: no document begins inside any sample (the usual case with long documents). Attention is causal,
  no mask exists, and the fastest kernel runs.
- **mask**: the architecture's own mask (full, sliding window, chunked …) and "same document"; one mask a batch,
  shared by all layers.
- **unpack**: for architectures whose positions are no input (state-space models, ALiBi): every document becomes
  a row of its own. Slower, and right for anything that is causal.

Why Tutti registers its own attention (`tutti`, in transformers' public AttentionInterface) instead of `sdpa`:
while torch.compile traces, transformers cannot look at values, so it would build a mask for plain batches
too; and on CPUs whose matrix units know no bfloat16, torch's attention is 2.5-4 times as fast in fp32
(forward and backward; measured on AVX-512 without AMX), so there it runs in fp32 whatever the precision of the rest.

Shapes: B samples, S tokens, H heads, D width of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import and_masks, causal_mask_function, sdpa_mask

from tutti.tasks import dense
from tutti.tasks.banded import BandedAttention
from tutti.tasks.dropout import drop

#: Name of the attention under which models train.
ATTENTION = "tutti"


class Rows(NamedTuple):
    """What a model computes at once: ids [B, S], labels [B, S], and where documents are.

    positions: [B, S], or None: they count from 0 in every row. documents: `positions` of the whole rows where
    documents begin inside them, else None. length: tokens of the whole rows, of which these may be a piece.
    """

    input_ids: Tensor
    labels: Tensor
    positions: Tensor | None
    documents: Tensor | None
    length: int

    @classmethod
    def of(cls, input_ids: Tensor, labels: Tensor, positions: Tensor | None) -> Rows:
        """Whole rows; `positions` None: one document a row."""
        return cls(input_ids, labels, positions, positions, input_ids.shape[1])


_rows: Rows | None = None


class attending:
    """`with attending(rows):` — masks are made for these rows: none where the kernel's own causal one will do.

    A class, not `@contextmanager`: torch.compile follows it without a graph break.
    """

    def __init__(self, rows: Rows) -> None:
        self.rows = rows

    def __enter__(self) -> None:
        global _rows
        self.before, _rows = _rows, self.rows

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        global _rows
        _rows = self.before


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
    if _rows is not None:
        # Rows are never padded before their end, so no mask of paddings is needed; and of a piece of the rows,
        # attention sees the whole (see `exchange`).
        attention_mask = None
        q_length = kv_length = _rows.length
        window_covers_all = local_size is None or kv_length <= local_size
        if _rows.documents is None and window_covers_all and not use_vmap:
            return None
        if _rows.documents is not None:
            apart = _same_document(_rows.documents)
            mask_function = and_masks(mask_function or causal_mask_function, apart)
            rest["allow_is_causal_skip"] = False
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


def _same_document(positions: Tensor) -> Callable[..., Tensor]:
    document = (positions == 0).cumsum(1)

    def same(batch: Tensor, _: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return document[batch, query] == document[batch, key]

    return same


_HALF = (torch.bfloat16, torch.float16)
_CPU_HAS_TILES = torch.cpu._is_amx_tile_supported()


#: (query, key or value [B, H, piece, D]) → the whole sequence of some of the heads [B, H / ranks, S, D], and back.
Exchange = Callable[[Tensor], Tensor]


class SequenceExchange(NamedTuple):
    """Where a rank holds a piece of each sequence: how its attention gets whole sequences, and gives pieces back."""

    whole_sequence: Exchange
    all_heads: Exchange


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **rest: Any
) -> tuple[Tensor, None]:
    """Scaled dot-product attention: query, key, value [B, H, S, D] → [B, S, H, D]."""
    if (places := dense.active(module)) is not None:
        return _attend_packed(module, query, key, value, attention_mask, places, **rest), None
    exchange: SequenceExchange | None = getattr(module, "sequence_exchange", None)
    if exchange is None:
        return _attend_here(module, query, key, value, attention_mask, **rest)
    query, key, value = (exchange.whole_sequence(part) for part in (query, key, value))
    return exchange.all_heads(_attend_here(module, query, key, value, attention_mask, **rest)[0]), None


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _attend_packed(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    places: dense.Places,
    **rest: Any,
) -> Tensor:
    """The same of packed rows: query, key, value [1, H, T, D] → [1, T, H, D]."""
    if _is_plain_with_dropout(module, query, key, attention_mask, rest):
        scale = rest.get("scaling") or query.shape[-1] ** -0.5
        arguments = query, key, value, attention_mask, places, rest["dropout"], scale
        with torch.autocast("cpu", enabled=False):
            output: Tensor = BandedAttention.apply(*arguments)  # type: ignore[no-untyped-call]
        return output
    attended = []
    for band in places.bands:
        own_query, own_key, own_value = (band.unpack_heads(part) for part in (query, key, value))
        mask = None if attention_mask is None else band.cut_mask(attention_mask)
        attended.append(band.pack(_attend_here(module, own_query, own_key, own_value, mask, **rest)[0]))
    return torch.cat(attended)[None]


def _attend_here(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **rest: Any
) -> tuple[Tensor, None]:
    on_cpu = query.device.type == "cpu"
    plain = _is_plain_with_dropout(module, query, key, attention_mask, rest)
    attend = _attend_with_dropout if plain else sdpa_attention_forward
    output: Tensor
    if not on_cpu or _CPU_HAS_TILES or not _in_half(query, value):
        output, _ = attend(module, query, key, value, attention_mask, **rest)
        return output, None
    if attention_mask is not None and attention_mask.is_floating_point():
        attention_mask = attention_mask.float()
    with torch.autocast("cpu", enabled=False):
        output, _ = attend(module, query.float(), key.float(), value.float(), attention_mask, **rest)
    return output.to(value.dtype), None


def _is_plain_with_dropout(
    module: nn.Module, query: Tensor, key: Tensor, mask: Tensor | None, rest: Mapping[str, Any]
) -> bool:
    """Whether it is what `_attend_with_dropout` computes."""
    special = any(rest.get(name) is not None for name in ("softcap", "position_bias", "cache"))
    causal = rest.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    alike = query.shape[1] == key.shape[1] and (mask is not None or not causal)
    here = query.device.type == "cpu" and not torch.compiler.is_compiling()
    return here and bool(rest.get("dropout")) and alike and not special


def _attend_with_dropout(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    dropout: float,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """The same step by step, as torch does it where there is dropout, with quicker dice."""
    scores = (query * (query.shape[-1] ** -0.5 if scaling is None else scaling)) @ key.transpose(2, 3)
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    elif attention_mask is not None:
        scores = scores + attention_mask
    return (drop(scores.softmax(-1), dropout) @ value).transpose(1, 2).contiguous(), None


def _in_half(*tensors: Tensor) -> bool:
    return torch.is_autocast_enabled("cpu") or any(tensor.dtype in _HALF for tensor in tensors)


AttentionInterface.register(ATTENTION, _attend)
AttentionMaskInterface.register(ATTENTION, _mask)
