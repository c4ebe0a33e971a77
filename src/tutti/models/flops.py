"""What a token costs: the denominator of every utilisation figure, so it is spelt out.

One token through forward and backward: 6·P + 6·L·h·S floating-point operations (a multiply-add is two) where all of a
model learns. Of both a third is forward, two thirds are backward: gradients of activations and, of P, of weights. Where
a part is frozen, there are the former from the first block on in which something learns, the latter of what learns:

    2·P + 2·P from there + 2·P that learns        +  2·L·h·S + 4·(L from there)·h·S

- P: parameters that multiply the token: everything but what is looked up (input embedding, learned
  positions). The head counts, also when it is tied to the embedding. Norms and biases, well under 1 %, count as well.
- 6·L·h·S: attention scores and their product with the values, L layers, h = heads × width of a head,
  S tokens of context; causal, so half of the full 12·L·h·S. A layer with a sliding window W counts min(S, W).

Not counted: softmax, norms, activations, and anything that is computed twice to save memory (so utilisation
is of the model's operations, not the hardware's). A mixture of experts counts only the experts a token goes to,
where the configuration says how many. (Kaplan et al., arXiv 2001.08361; PaLM, arXiv 2204.02311, appendix B.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import nn
from transformers import PreTrainedModel

from tutti.models.blocks import find_blocks


class ParameterCount(NamedTuple):
    """`total`: all parameters, tied ones once. `looked_up`: tables of embeddings. `matmul`: P of the module's text."""

    total: int
    looked_up: int
    matmul: int


def count_parameters(model: nn.Module) -> ParameterCount:
    """Count the parameters of `model`."""
    total = sum(parameter.numel() for parameter in model.parameters())
    tables = {
        id(module.weight): module.weight for module in model.modules() if isinstance(module, nn.Embedding)
    }
    looked_up = sum(weight.numel() for weight in tables.values())
    weight = _head_weight(model)
    tied = weight.numel() if weight is not None and id(weight) in tables else 0
    return ParameterCount(
        total, looked_up, total - looked_up + tied - round(_idle_experts(model, find_blocks(model)))
    )


def flops_per_token(model: nn.Module, sequence: int) -> float:
    """Operations of one token of a sample of `sequence` tokens, forward and backward, as much of `model` as learns now.

    For a model that is no Hugging Face transformer, attention is unknown and left out: 6·P, which is right
    for a stack of linear layers and too little where weights are reused (convolutions).
    """
    return _flops(model, sequence, both_ways=False, share=1.0)


def flops_per_masked_token(model: nn.Module, sequence: int, share: float) -> float:
    """The same of a masked language model, which looks both ways, 12·L·h·S where all learns, and whose head is computed
    for the `share` of the tokens alone that is hidden."""
    return _flops(model, sequence, both_ways=True, share=share)


@dataclass
class _Stretch:
    """A stretch of the way through a model: P of all, of what learns, and whether anything does."""

    matmul: float = 0.0
    learning: float = 0.0
    learns: bool = False


def _flops(model: nn.Module, sequence: int, *, both_ways: bool, share: float) -> float:
    """`share`: of the tokens, for which the head is computed."""
    way = _stretches(model, share)
    first = next((place for place, stretch in enumerate(way) if stretch.learns), len(way))
    weights = sum(2 * (stretch.matmul + stretch.learning) for stretch in way)
    weights += sum(2 * stretch.matmul for stretch in way[first:])
    layers = _attention(model, sequence, both_ways=both_ways)
    blocks = len(way) - 2
    # Before the first block lies what is looked up. What has another number of layers than of blocks counts by share.
    behind = sum(layers[max(0, first - 1) :])
    if len(layers) != blocks and blocks:
        behind = sum(layers) * max(0, blocks + 1 - max(1, first)) / blocks
    return weights + (2 if both_ways else 1) * (2 * sum(layers) + 4 * behind)


def _stretches(model: nn.Module, share: float) -> list[_Stretch]:
    """What comes before the blocks of `model`, each block, and what comes after the last, head included."""
    blocks = find_blocks(model)
    block_of = {
        id(parameter): place
        for place, block in enumerate(blocks, start=1)
        for parameter in block.parameters()
    }
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    head = _head_weight(model)
    way = [_Stretch() for _ in range(len(blocks) + 2)]
    begun = not blocks
    for parameter in model.parameters():
        place = block_of.get(id(parameter))
        begun = begun or place is not None
        stretch = way[(len(way) - 1 if begun else 0) if place is None else place]
        stretch.learns = stretch.learns or parameter.requires_grad
        is_head = head is not None and parameter is head
        # A tied head is looked up at the beginning, and multiplies at the end.
        numbers = 0.0 if id(parameter) in tables and not is_head else float(parameter.numel())
        into = way[-1] if is_head else stretch
        numbers *= share if is_head else 1.0
        into.matmul += numbers
        into.learning += numbers if parameter.requires_grad else 0.0
    for stretch, block in zip(way[1:], blocks, strict=False):
        used = 1 - _idle_experts(model, [block]) / stretch.matmul if stretch.matmul else 1.0
        stretch.matmul *= used
        stretch.learning *= used
    return way


def _head_weight(model: nn.Module) -> nn.Parameter | None:
    whole: Any = model
    head = whole.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    return getattr(head, "weight", None)


def _attention(model: nn.Module, sequence: int, *, both_ways: bool) -> list[float]:
    """h·S of every layer, 0 of one without attention; none where it is unknown."""
    if not isinstance(model, PreTrainedModel):
        return []
    config: Any = model.config.get_text_config(decoder=True)
    heads = getattr(config, "num_attention_heads", 0)
    if not heads:
        return []
    width: int = heads * (getattr(config, "head_dim", None) or config.hidden_size // heads)
    return [float(width * context) for context in _contexts(config, sequence, both_ways=both_ways)]


def _contexts(config: Any, sequence: int, *, both_ways: bool) -> list[int]:
    """Tokens that each layer's attention reaches over."""
    window = getattr(config, "sliding_window", None)
    window = 2 * window if window and both_ways else window
    near = min(sequence, window) if window else sequence
    kinds = getattr(config, "layer_types", None)
    if not kinds:
        return [near] * config.num_hidden_layers
    reach = {"sliding_attention": near, "full_attention": sequence, "attention": sequence}
    return [reach.get(kind, 0) for kind in kinds]


def _idle_experts(model: nn.Module, blocks: list[nn.Module]) -> float:
    """Parameters of experts in `blocks` that a token does not pass through."""
    config = getattr(model, "config", None)
    active = getattr(config, "num_experts_per_tok", None)
    count = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None)
    if not active or not count:
        return 0.0
    inside = 0
    for block in blocks:
        for name, module in block.named_modules():
            if name.rpartition(".")[2] == "experts":
                inside += sum(parameter.numel() for parameter in module.parameters())
    return inside * (1 - int(active) / int(count))
