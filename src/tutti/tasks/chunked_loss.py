"""Cross-entropy over a large vocabulary in chunks of tokens: the logits [N, V] never exist as a whole.

For each chunk the gradient with respect to the logits, softmax(z) − onehot(y), is known as soon as the loss
is, so it goes straight into the gradients of the hidden states and of the head. Both are finished when the
forward pass ends; backward only scales them, nothing is computed twice (the idea of Cut Cross-Entropy,
arXiv 2411.09009, and of Liger's fused linear cross-entropy, in plain torch).

It is one opaque operator (`tutti::linear_cross_entropy`), so torch.compile keeps the graph around it whole.

Where something is added to the loss (`terms`), the same runs as an ordinary autograd function: what is added is
Python, which no operator can be given.

Shapes: N tokens, D model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tutti.tasks.terms import Addend

#: Label of a position that is no target.
IGNORED = -100

# Logits held at once. 2^22 (16 MB in fp32) was as fast as any size between 2^19 and 2^23 on CPU for
# vocabularies from 128 to 16k; below 256 rows the sum into the head's gradient starts to cost more than
# the products. An accelerator wants larger products to be busy.
_ELEMENTS_CPU = 1 << 22
_ELEMENTS_ACCELERATOR = 1 << 26

#: Probabilities below this lose digits soon (fp32 ends at 1e-38); exp(-69).
_UNDERFLOW = 1e-30


def default_chunk(vocabulary: int, device: torch.device) -> int:
    """Tokens of one chunk."""
    elements = _ELEMENTS_CPU if device.type == "cpu" else _ELEMENTS_ACCELERATOR
    return max(256, min(elements // vocabulary, 8192))


def chunked_cross_entropy(
    hidden: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None = None, chunk: int | None = None
) -> Tensor:
    """Sum of −log softmax(hidden · weightᵀ + bias)[label] over the labels that are not −100.

    Products run in the autocast type where autocast is on, otherwise in the type of `hidden`; softmax, the
    sum, and the head's gradient are fp32 (fp64 for fp64 inputs). Cannot be differentiated twice.

    Args:
        hidden: [N, D], the last hidden states.
        weight: [V, D], the head (may be tied to the embedding).
        labels: [N] int64.
        bias: [V] or None.
        chunk: tokens computed at once; None: by the size of the vocabulary.

    Returns:
        A scalar in fp32 (fp64 for fp64 inputs).
    """
    device = hidden.device.type
    products = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    grad = torch.is_grad_enabled()
    total: Tensor = torch.ops.tutti.linear_cross_entropy(
        hidden,
        weight,
        labels,
        bias,
        chunk or default_chunk(weight.shape[0], hidden.device),
        products,
        grad and hidden.requires_grad,
        grad and (weight.requires_grad or (bias is not None and bias.requires_grad)),
    )[0]
    return total


@torch.compiler.disable  # type: ignore[untyped-decorator]
def chunked_cross_entropy_and(
    addend: Addend,
    places: Tensor,
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None = None,
    chunk: int | None = None,
) -> Tensor:
    """`chunked_cross_entropy` plus what `addend` adds for the targets. `places` [N]: see `terms.Addend`."""
    device = hidden.device.type
    products = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    chunk = chunk or default_chunk(weight.shape[0], hidden.device)
    addition = (addend, places)
    total: Tensor = _WithAddend.apply(hidden, weight, bias, labels, addition, chunk, products)  # type: ignore[no-untyped-call]
    return total


def _sum_type(products: torch.dtype) -> torch.dtype:
    return torch.float64 if products == torch.float64 else torch.float32


@torch.library.custom_op("tutti::linear_cross_entropy", mutates_args=())
def _linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None,
    chunk: int,
    products: torch.dtype,
    for_hidden: bool,
    for_head: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(total, d total/d hidden, d total/d weight, d total/d bias); gradients not asked for are empty."""
    with torch.autocast(hidden.device.type, enabled=False):
        return _of_targets(hidden, weight, labels, bias, chunk, products, for_hidden, for_head, None)


def _of_targets(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None,
    chunk: int,
    products: torch.dtype,
    for_hidden: bool,
    for_head: bool,
    addition: tuple[Addend, Tensor] | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same. `addition`: what is added, and the places [N] of the tokens."""
    valid = labels != IGNORED
    targets = int(valid.sum())
    if targets == labels.numel():
        return _compute(hidden, weight, labels, bias, chunk, products, for_hidden, for_head, addition)
    rows = valid.nonzero().squeeze(1)
    if addition is not None:
        addition = (addition[0], addition[1][rows])
    total, some, d_weight, d_bias = _compute(
        hidden[rows], weight, labels[rows], bias, chunk, products, for_hidden, for_head, addition
    )
    d_hidden = torch.zeros_like(hidden).index_copy_(0, rows, some) if for_hidden else some
    return total, d_hidden, d_weight, d_bias


def _compute(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None,
    chunk: int,
    products: torch.dtype,
    for_hidden: bool,
    for_head: bool,
    addition: tuple[Addend, Tensor] | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same, every label being a target."""
    sums = _sum_type(products)
    count, vocabulary = hidden.shape[0], weight.shape[0]
    inputs, head = hidden.to(products), weight.to(products)
    likelihood = hidden.new_empty(count, dtype=sums)
    d_hidden = (
        torch.empty_like(hidden, memory_format=torch.contiguous_format) if for_hidden else hidden.new_empty(0)
    )
    d_weight = weight.new_zeros(weight.shape if for_head else 0, dtype=sums)
    d_bias = weight.new_zeros(vocabulary if for_head and bias is not None else 0, dtype=sums)
    # Two buffers serve every chunk: allocating [chunk, V] anew each time costs more than softmax does.
    rows = min(chunk, count)
    low = inputs.new_empty(rows, vocabulary)
    high = low if products == sums else low.new_empty(rows, vocabulary, dtype=sums)
    more = likelihood.new_zeros(())
    for start in range(0, count, chunk):
        some, target = inputs[start : start + chunk], labels[start : start + chunk, None]
        product, logits = low[: len(some)], high[: len(some)]
        torch.mm(some, head.t(), out=product)
        if logits is not product:
            logits.copy_(product)
        if bias is not None:
            logits += bias
        added = None
        if addition is not None:
            added = addition[0](addition[1][start : start + chunk], logits)
            more += added.total if added is not None else 0
        chances = torch.softmax(logits, 1, out=logits)
        likelihood[start : start + chunk] = chances.gather(1, target).squeeze(1)
        if not (for_hidden or for_head):
            continue
        chances.scatter_add_(
            1, target, target.new_full(target.shape, -1.0, dtype=sums)
        )  # now d total/d logits
        if added is not None:
            chances += added.gradient
        if for_head and bias is not None:
            d_bias += chances.sum(0)
        if product is not chances:
            product.copy_(chances)
        if for_hidden:
            d_hidden[start : start + chunk] = product @ head
        if not for_head:
            continue
        if products == sums:
            d_weight.addmm_(product.t(), some)
        else:
            d_weight += product.t() @ some
    return _total(likelihood, inputs, head, labels, bias, chunk) + more, d_hidden, d_weight, d_bias


def _total(
    likelihood: Tensor, inputs: Tensor, head: Tensor, labels: Tensor, bias: Tensor | None, chunk: int
) -> Tensor:
    """Σ −log likelihood, [N]. Where that has underflowed, or is about to, the logits are computed once more: rare,
    and two passes over every logit cheaper than a form that cannot underflow.
    """
    rare = (likelihood < _UNDERFLOW).nonzero().squeeze(1)
    total = -likelihood.index_fill(0, rare, 1.0).log().sum()
    for rows in torch.split(rare, chunk):
        logits = (inputs[rows] @ head.t()).to(likelihood.dtype)
        if bias is not None:
            logits += bias
        total += (logits.logsumexp(1) - logits.gather(1, labels[rows, None]).squeeze(1)).sum()
    return total


@_linear_cross_entropy.register_fake
def _shapes(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None,
    chunk: int,
    products: torch.dtype,
    for_hidden: bool,
    for_head: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    sums = _sum_type(products)
    return (
        hidden.new_empty((), dtype=sums),
        torch.empty_like(hidden, memory_format=torch.contiguous_format)
        if for_hidden
        else hidden.new_empty(0),
        weight.new_empty(weight.shape if for_head else (0,), dtype=sums),
        weight.new_empty(weight.shape[0] if for_head and bias is not None else 0, dtype=sums),
    )


def _keep(ctx: Any, inputs: Sequence[Any], output: Sequence[Tensor]) -> None:
    hidden, weight, _, bias, _, _, ctx.for_hidden, ctx.for_head = inputs
    ctx.types = hidden.dtype, weight.dtype, None if bias is None else bias.dtype
    ctx.save_for_backward(*output[1:])


def _scale(ctx: Any, scale: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    """Backward: the finished gradients times the gradient of the total."""
    d_hidden, d_weight, d_bias = ctx.saved_tensors
    hidden_type, weight_type, bias_type = ctx.types
    return (
        (d_hidden * scale).to(hidden_type) if ctx.for_hidden else None,
        (d_weight * scale).to(weight_type) if ctx.for_head else None,
        None,
        (d_bias * scale).to(bias_type) if ctx.for_head and bias_type is not None else None,
        None,
        None,
        None,
        None,
    )


_linear_cross_entropy.register_autograd(_scale, setup_context=_keep)


class _WithAddend(torch.autograd.Function):
    """The operator with something added to every target."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        addition: tuple[Addend, Tensor],
        chunk: int,
        products: torch.dtype,
    ) -> Tensor:
        ctx.for_hidden = ctx.needs_input_grad[0]
        ctx.for_head = ctx.needs_input_grad[1] or ctx.needs_input_grad[2]
        ctx.types = hidden.dtype, weight.dtype, None if bias is None else bias.dtype
        with torch.autocast(hidden.device.type, enabled=False):
            total, *gradients = _of_targets(
                hidden, weight, labels, bias, chunk, products, ctx.for_hidden, ctx.for_head, addition
            )
        ctx.save_for_backward(*gradients)
        return total

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        d_hidden, d_weight, _, d_bias, *_ = _scale(ctx, scale)
        return d_hidden, d_weight, d_bias, None, None, None, None
