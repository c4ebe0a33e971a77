"""Llama and its kin without what transformers does around products: with few tokens in a pass, most of the time.

The same weights and arithmetic in fewer steps: layers that are given one input are one product, queries and keys are
turned together, and nothing is asked between. `SlotModel` compares what is said here with what the model says by itself
before it is used.

Shapes: T tokens of a turn, H heads of queries, K of keys, D width of a head, M of the model, F of the feed-forward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tutti.models.quantized import Codes, QuantizedLinear, product_of
from tutti.serve.engine.attention import compiled
from tutti.serve.engine.cache import KeyValueSlots, Turn

Product = Callable[[Tensor], Tensor]
#: Built as it is built here.
_KIN = ("llama", "mistral", "qwen2", "qwen3")


@dataclass(frozen=True)
class _Norm:
    """Root mean square (Zhang and Sennrich 2019)."""

    weight: Tensor
    epsilon: float

    @classmethod
    def of(cls, module: Any) -> _Norm:
        return cls(module.weight, float(module.variance_epsilon))

    def __call__(self, x: Tensor) -> Tensor:
        if (kernel := compiled()) is not None and x.ndim == 2:
            normalized: Tensor = kernel.normalize(x, self.weight, self.epsilon)
            return normalized
        return F.rms_norm(x, self.weight.shape, self.weight, self.epsilon)


@dataclass(frozen=True)
class _Layer:
    """`heads`: H and K. `of_query`, `of_key`: norms of heads, where there are any."""

    before_attention: _Norm
    query_key_value: Product
    of_query: _Norm | None
    of_key: _Norm | None
    out: Product
    before_feed: _Norm
    gate_up: Product
    down: Product
    heads: tuple[int, int]
    width: int
    scale: float


class Lean:
    """`model` [T] → its logits. Use `of`."""

    def __init__(self, model: Any) -> None:
        decoder = model.model
        self._embed: nn.Module = decoder.embed_tokens
        self._rotate: nn.Module = decoder.rotary_emb
        self._layers = [_layer(layer) for layer in decoder.layers]
        self._norm = _Norm.of(decoder.norm)
        self._head: Product = model.lm_head
        #: Of which only a product with others is used here.
        self._joined = [
            part
            for layer in decoder.layers
            for group in _groups(layer)
            if _fit_together(group)
            for part in group
        ]

    @classmethod
    def of(cls, model: Any, capacity: int) -> Lean | None:
        """None: `model` is no kin, or wants something that is not done here. `capacity`: tokens of a slot."""
        config = model.config
        plain = (
            config.model_type in _KIN
            and config.hidden_act == "silu"
            and next(model.parameters()).device.type == "cpu"
            and all(parameter.dtype == torch.float32 for parameter in model.parameters())
        )
        if not plain:
            return None
        windows = [getattr(layer.self_attn, "sliding_window", None) for layer in model.model.layers]
        if any(window is not None and window < capacity for window in windows):
            return None
        return cls(model)

    def rest_others(self) -> None:
        """Free what only the modules compute with."""
        for module in self._joined:
            module.rest()

    def run(self, ids: Tensor, turn: Turn, cache: KeyValueSlots, wanted: Sequence[int]) -> Tensor:
        """Logits [len(wanted), V] after the tokens at places `wanted` of `ids` [T]."""
        x = self._embed(ids)
        cos, sin = (part[0, :, None] for part in self._rotate(x, position_ids=turn.positions[None]))
        for number, layer in enumerate(self._layers):
            x += layer.out(self._attend(number, layer, x, cos, sin, turn, cache))
            gate, up = layer.gate_up(layer.before_feed(x)).chunk(2, -1)
            x += layer.down(F.silu(gate).mul_(up))
        return self._head(self._norm(x[torch.tensor(wanted)]))

    def _attend(
        self,
        number: int,
        layer: _Layer,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        turn: Turn,
        cache: KeyValueSlots,
    ) -> Tensor:
        """[T, M] → [T, H·D]."""
        (queries, shared), width = layer.heads, layer.width
        all_heads = layer.query_key_value(layer.before_attention(x)).view(len(x), -1, width)
        turned, value = all_heads[:, : queries + shared], all_heads[:, queries + shared :]
        if layer.of_query is not None and layer.of_key is not None:
            turned = torch.cat([layer.of_query(turned[:, :queries]), layer.of_key(turned[:, queries:])], 1)
        turned = _turned(turned, cos, sin)
        attended = cache.attend(number, turn, turned[:, :queries], turned[:, queries:], value, layer.scale)
        return attended.reshape(len(x), -1)


def _turned(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """heads [T, any, D] by their places; cos, sin [T, 1, D]. `heads` may be changed."""
    if (kernel := compiled()) is not None:
        kernel.turn_positions(heads, cos[:, 0], sin[:, 0])
        return heads
    half = heads.shape[-1] // 2
    crossed = torch.cat([-heads[..., half:], heads[..., :half]], -1)
    return torch.addcmul(heads * cos, crossed, sin)


def _groups(module: Any) -> tuple[list[Any], list[Any]]:
    """Layers of a block that are given one input: of queries, keys and values; of gate and up."""
    attention, feed = module.self_attn, module.mlp
    return [attention.q_proj, attention.k_proj, attention.v_proj], [feed.gate_proj, feed.up_proj]


def _fit_together(layers: Sequence[Any]) -> bool:
    """Whether they can be one product: of 8 bits every row of weights has its own scale, and the input is rounded by
    its own range, so every number is the same."""
    return all(
        isinstance(one, QuantizedLinear) and one.codes.bits == 8 and one.before is None for one in layers
    )


def _layer(module: Any) -> _Layer:
    attention, feed = module.self_attn, module.mlp
    of_input, of_feed = _groups(module)
    width = int(attention.head_dim)
    norms = [getattr(attention, name, None) for name in ("q_norm", "k_norm")]
    of_query, of_key = (None if norm is None else _Norm.of(norm) for norm in norms)
    heads = [layer.out_features // width for layer in (attention.q_proj, attention.k_proj)]
    return _Layer(
        before_attention=_Norm.of(module.input_layernorm),
        query_key_value=_joined(of_input),
        of_query=of_query,
        of_key=of_key,
        out=attention.o_proj,
        before_feed=_Norm.of(module.post_attention_layernorm),
        gate_up=_joined(of_feed),
        down=feed.down_proj,
        heads=(heads[0], heads[1]),
        width=width,
        scale=float(attention.scaling),
    )


def _joined(layers: Sequence[Any]) -> Product:
    """What `layers` give for one input, side by side."""
    if not _fit_together(layers):
        return lambda x: torch.cat([one(x) for one in layers], -1)
    codes = [one.codes for one in layers]
    biases = [torch.zeros(len(one.codes.code)) if one.bias is None else one.bias for one in layers]
    whole = Codes(torch.cat([one.code for one in codes]), torch.cat([one.scale for one in codes]))
    bias = torch.cat(biases) if any(one.bias is not None for one in layers) else None
    return product_of(whole, bias, layers[0].arithmetic)
