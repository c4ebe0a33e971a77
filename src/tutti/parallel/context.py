"""Context parallelism: each rank holds a piece of every sequence.

Everything but attention looks at one token at a time, so it needs no change. Before attention ranks swap: each
gives away pieces of heads and gets whole sequences of its share of the heads; afterwards they swap back
(DeepSpeed-Ulysses, arXiv 2309.14509). Parameters are whole on all these ranks as far as the arithmetic is
concerned; FSDP shares them out over `shard` × `context` and sums their gradients over both.

Shapes: B samples, S tokens, H heads, D width of a head, c ranks.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from tutti.models import find_blocks
from tutti.parallel import collectives
from tutti.tasks.chunked_loss import IGNORED
from tutti.tasks.packing import Rows, SequenceExchange


def swap_in_attention(model: nn.Module, group: dist.ProcessGroup) -> None:
    """Let the attention of every block of `model` see whole sequences."""
    exchange = SequenceExchange(
        whole_sequence=functools.partial(_whole_sequence, group=group),
        all_heads=functools.partial(_all_heads, group=group),
    )
    for block in find_blocks(model):
        for module in block.modules():
            module.__dict__["sequence_exchange"] = exchange


def _whole_sequence(part: Tensor, group: dist.ProcessGroup) -> Tensor:
    """[B, H, S/c, D] → [B, H/c, S, D]."""
    return collectives.swap(part, 1, 2, group)


def _all_heads(output: Tensor, group: dist.ProcessGroup) -> Tensor:
    """[B, S, H/c, D] → [B, S/c, H, D]."""
    return collectives.swap(output, 1, 2, group)


def take_piece(rows: Rows, *, multiple: int, piece: int = 0, pieces: int = 1) -> Rows:
    """Piece number `piece` of `rows`, which are lengthened to a `multiple` of tokens first.

    What is added comes behind everything and is no target, so it changes nothing that is causal.
    """
    rows = _lengthen(rows, -rows.input_ids.shape[1] % multiple)
    if pieces == 1:
        return rows
    positions = rows.positions
    if positions is None:  # a piece does not begin at 0
        positions = torch.arange(rows.length, device=rows.input_ids.device).expand(rows.input_ids.shape)
    return rows._replace(
        input_ids=rows.input_ids.chunk(pieces, 1)[piece],
        labels=rows.labels.chunk(pieces, 1)[piece],
        positions=positions.chunk(pieces, 1)[piece],
    )


def _lengthen(rows: Rows, tokens: int) -> Rows:
    if tokens == 0:
        return rows

    def more(tensor: Tensor | None, value: int) -> Any:
        return None if tensor is None else F.pad(tensor, (0, tokens), value=value)

    positions = rows.positions
    if positions is None:  # counted on, they might end up beyond a table of learned positions
        positions = torch.arange(rows.length, device=rows.input_ids.device).expand(rows.input_ids.shape)
    return Rows(
        input_ids=more(rows.input_ids, 0),
        labels=more(rows.labels, IGNORED),
        positions=more(positions, 0),
        documents=more(rows.documents, 0),
        length=rows.length + tokens,
    )
