"""Embeddings whose gradient is added to the rows that were read, and to no other.

Autograd makes a gradient as large as the whole table, nearly all of it zeros, and adds that to the one that is there.
Of a small encoder the table is half of all parameters and a step reads some hundred of its 30,000 rows, so this costs a
tenth of the step. Where a gradient is there already (a buffer that replicas sum up, say), its rows are enough.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


class _Lookup(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, weight: Tensor, ids: Tensor, padding: int | None) -> Tensor:
        context.save_for_backward(ids)
        context.weight, context.padding = weight, padding
        return F.embedding(ids, weight, padding)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Any:
        (ids,) = context.saved_tensors
        weight, padding, (gradient,) = context.weight, context.padding, gradients
        if weight.grad is None:
            count, nothing = len(weight), -1 if padding is None else padding
            dense = torch.ops.aten.embedding_dense_backward(gradient, ids, count, nothing, False)
            return dense, None, None
        ids, gradient = ids.flatten(), gradient.flatten(0, -2)
        if padding is not None:
            read = (ids != padding).nonzero().squeeze(1)
            ids, gradient = ids[read], gradient[read]
        weight.grad.index_add_(0, ids, gradient.to(weight.grad.dtype))
        return None, None, None


class RowsEmbedding(nn.Embedding):
    """`nn.Embedding` that leaves its gradient like this, on a CPU."""

    #: For whoever waits for gradients, or sends them: see `add_rows_only`.
    adds_rows_only = True

    def forward(self, input: Tensor) -> Tensor:
        """As `nn.Embedding`."""
        weight = self.weight
        plain = weight.is_leaf and weight.requires_grad and not isinstance(weight, DTensor)
        special = self.max_norm is not None or self.scale_grad_by_freq or self.sparse
        if not torch.is_grad_enabled() or not plain or special or weight.device.type != "cpu":
            return super().forward(input)
        return _Lookup.apply(weight, input, self.padding_idx)  # type: ignore[no-any-return, no-untyped-call]


def add_rows_only(model: nn.Module) -> None:
    """Let every embedding of `model` that shares its table with nobody add its gradient to rows alone.

    Hooks on a table's gradient are not called when rows are added, so whoever waits for all gradients has to take it
    as one that may not come.
    """
    holders = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    for module in model.modules():
        if type(module) is nn.Embedding and holders[id(module.weight)] == 1:
            module.__class__ = RowsEmbedding
