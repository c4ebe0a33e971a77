"""A vocabulary over ranks: each holds some rows of the embedding and of the head, and logits are never gathered.

The loss goes through the targets in chunks, as `tasks.chunked_loss` does. Of a chunk a rank computes the logits
of its own words. What the ranks tell each other is one number for each target, the logarithm of the sum of
exponentials over their words; it scales everything else:

    lse = log Σ_ranks exp(lse_rank),   p = exp(z − lse),   loss = Σ (lse − z_target)

Shapes: N tokens, D model width, V vocabulary, W = V / ranks words of this rank.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import Function

from tutti.parallel import collectives
from tutti.sync.policy import local_part
from tutti.tasks.chunked_loss import IGNORED, default_chunk


class VocabularyLoss:
    """The loss of a head whose rows are shared out over `group`: what the objective calls instead of its own."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group = group

    def __call__(self, hidden: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None) -> Tensor:
        """Sum of −log softmax(hidden · weightᵀ + bias)[label] over the labels that are not −100.

        hidden [N, D] and labels [N] are the same on all ranks; `weight` [V, D] and `bias` [V] are sharded by rows.
        """
        shared = collectives.share(hidden, self._group)
        own = local_part(weight), None if bias is None else local_part(bias)
        device = hidden.device.type
        if torch.is_autocast_enabled(device):
            shared = shared.to(torch.get_autocast_dtype(device))
        arguments = shared, own[0], labels, own[1], self._group
        loss: Tensor = _SplitLoss.apply(*arguments)  # type: ignore[no-untyped-call]
        return loss


class _SplitLoss(Function):
    """Computes the gradients in forward, where the logits are; backward only scales them."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        bias: Tensor | None,
        group: dist.ProcessGroup,
    ) -> Tensor:
        sums = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        words, first = weight.shape[0], group.rank() * weight.shape[0]
        rows = (labels != IGNORED).nonzero().squeeze(1)
        head = weight.to(hidden.dtype)
        d_hidden = torch.zeros_like(hidden)
        d_weight = torch.zeros(weight.shape, dtype=sums, device=weight.device)
        d_bias = None if bias is None else torch.zeros(bias.shape, dtype=sums, device=weight.device)
        loss = torch.zeros((), dtype=sums, device=hidden.device)
        own_targets = torch.zeros_like(loss)
        for some in torch.split(rows, default_chunk(words, hidden.device)):
            inputs, target = hidden[some], labels[some] - first
            logits = (inputs @ head.t()).to(sums)
            if bias is not None:
                logits += bias
            normaliser = _over_ranks(logits.logsumexp(1), group)
            loss += normaliser.sum()
            mine = ((target >= 0) & (target < words)).nonzero().squeeze(1)
            own_targets += logits[mine, target[mine]].sum()
            chances = logits.sub_(normaliser[:, None]).exp_()
            chances[mine, target[mine]] -= 1.0
            if d_bias is not None:
                d_bias += chances.sum(0)
            product = chances.to(hidden.dtype)
            d_hidden[some] = product @ head
            d_weight += product.t() @ inputs
        targets = _over_all_words(own_targets, group)
        ctx.types = weight.dtype, None if bias is None else bias.dtype
        ctx.save_for_backward(d_hidden, d_weight, *([] if d_bias is None else [d_bias]))
        return loss - targets

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> Any:
        d_hidden, d_weight, *rest = ctx.saved_tensors
        weight_type, bias_type = ctx.types
        d_bias = (rest[0] * scale).to(bias_type) if rest else None
        return (d_hidden * scale).to(d_hidden.dtype), (d_weight * scale).to(weight_type), None, d_bias, None


def _over_ranks(own: Tensor, group: dist.ProcessGroup) -> Tensor:
    """log Σ exp over the ranks' values [N]."""
    everyone = own.new_empty(group.size() * own.shape[0])
    dist.all_gather_single(everyone, own.contiguous(), group=group)
    return everyone.view(group.size(), -1).logsumexp(0)


def _over_all_words(own: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The sum of what each rank has of its words."""
    dist.all_reduce(own, group=group)
    return own


def split_embedding(embedding: nn.Embedding, group: dist.ProcessGroup) -> None:
    """Let `embedding`, whose weight [V, D] is a DTensor sharded by rows, look up the words of all ranks.

    Its own `forward` still runs, on this rank's rows: some architectures scale what they look up.
    """
    outside: list[Tensor] = []

    def look_up_own(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        rows = local_part(module.weight)  # type: ignore[arg-type]
        module.__dict__["weight"] = rows  # hides the parameter, which plain operators cannot take
        ids = inputs[0] - group.rank() * rows.shape[0]
        outside.append((ids < 0) | (ids >= rows.shape[0]))
        return (ids.masked_fill(outside[-1], 0),)

    def add_up(module: nn.Module, _: Any, output: Tensor) -> Tensor:
        del module.__dict__["weight"]
        return collectives.total(output.masked_fill(outside.pop()[..., None], 0.0), group)

    if embedding.padding_idx is not None:
        own = embedding.padding_idx - group.rank() * local_part(embedding.weight).shape[0]
        embedding.padding_idx = own if 0 <= own < local_part(embedding.weight).shape[0] else None
    embedding.register_forward_pre_hook(look_up_own)
    embedding.register_forward_hook(add_up)
