"""What a token costs: the denominator of every utilisation figure, so it is spelt out.

One token through forward and backward: 6·P + 6·L·h·S floating-point operations (a multiply-add is two), where

- P: parameters that multiply the token: everything but what is looked up (input embedding, learned
  positions). The head counts, also when it is tied to the embedding. Norms and biases, well under 1 %, count as well.
- 6·L·h·S: attention scores and their product with the values, L layers, h = heads × width of a head,
  S tokens of context; causal, so half of the full 12·L·h·S. A layer with a sliding window W counts min(S, W).

Not counted: softmax, norms, activations, and anything that is computed twice to save memory (so utilisation
is of the model's operations, not the hardware's). A mixture of experts counts only the experts a token goes to,
where the configuration says how many. (Kaplan et al., arXiv 2001.08361; PaLM, arXiv 2204.02311, appendix B.)
"""

from __future__ import annotations

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
    whole: Any = model
    head = whole.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    weight = getattr(head, "weight", None)
    tied = weight.numel() if weight is not None and id(weight) in tables else 0
    return ParameterCount(total, looked_up, total - looked_up + tied - _idle_experts(model))


def flops_per_token(model: nn.Module, sequence: int) -> float:
    """Operations of one token of a sample of `sequence` tokens, forward and backward.

    For a model that is no Hugging Face transformer, attention is unknown and left out: 6·P, which is right
    for a stack of linear layers and too little where weights are reused (convolutions).
    """
    return 6.0 * count_parameters(model).matmul + 6.0 * _attention(model, sequence, both_ways=False)


def flops_per_masked_token(model: nn.Module, sequence: int, share: float) -> float:
    """The same of a masked language model, which looks both ways, 6·P + 12·L·h·S, and whose head is computed for the
    `share` of the tokens alone that is hidden."""
    whole: Any = model
    head = whole.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    idle = (1 - share) * head.weight.numel() if head is not None else 0.0
    flops = count_parameters(model).matmul - idle
    return 6.0 * float(flops) + 12.0 * _attention(model, sequence, both_ways=True)


def _attention(model: nn.Module, sequence: int, *, both_ways: bool) -> float:
    """Σ h·S of the layers; 0 where there is no attention (a state-space model), or it is unknown."""
    if not isinstance(model, PreTrainedModel):
        return 0.0
    config: Any = model.config.get_text_config(decoder=True)
    heads = getattr(config, "num_attention_heads", 0)
    if not heads:
        return 0.0
    width: int = heads * (getattr(config, "head_dim", None) or config.hidden_size // heads)
    return float(sum(width * context for context in _contexts(config, sequence, both_ways=both_ways)))


def _contexts(config: Any, sequence: int, *, both_ways: bool) -> list[int]:
    """Tokens that each layer's attention reaches over."""
    window = getattr(config, "sliding_window", None)
    window = 2 * window if window and both_ways else window
    near = min(sequence, window) if window else sequence
    kinds = getattr(config, "layer_types", None)
    if not kinds:
        return [near] * config.num_hidden_layers
    reach = {"sliding_attention": near, "full_attention": sequence, "attention": sequence}
    return [reach[kind] for kind in kinds if kind in reach]


def _idle_experts(model: nn.Module) -> int:
    """Parameters of experts that a token does not pass through."""
    config = getattr(model, "config", None)
    active = getattr(config, "num_experts_per_tok", None)
    count = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None)
    if not active or not count:
        return 0
    inside = 0
    for block in find_blocks(model):
        for name, module in block.named_modules():
            if name.rpartition(".")[2] == "experts":
                inside += sum(parameter.numel() for parameter in module.parameters())
    return round(inside * (1 - int(active) / int(count)))
