"""A whole model in whole numbers, one block after the other.

A method that looks at what goes into a layer sees what the blocks before it give now that they are quantized, so it
can make up for their errors as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from tutti.compress.quantize.awq import awq
from tutti.compress.quantize.gptq import gptq
from tutti.compress.quantize.inputs import Inputs, observe_inputs
from tutti.models.quantized import (
    GROUP,
    Arithmetic,
    Bits,
    Codes,
    QuantizedEmbedding,
    QuantizedLinear,
    layers_of,
    round_to_nearest,
    straighten,
    tables_of,
)

Method = Literal["nearest", "gptq", "awq"]


@dataclass(frozen=True)
class Scheme:
    """How weights are written. `group`: columns that share a scale, of 4 bits; `tables`: bits of tables of vectors.

    What `arithmetic` does: see `tutti.models.quantized`.
    """

    bits: Bits = 8
    arithmetic: Arithmetic = "dynamic"
    method: Method = "nearest"
    group: int = GROUP
    tables: Bits = 8


def quantize(model: nn.Module, scheme: Scheme, run: Callable[[], Iterable[object]]) -> nn.Module:
    """Write the weights of `model` by `scheme`, in place; returns it. `run`: has it compute what it usually does,
    batch by batch.

    Layers whose inputs do not fall into groups have 8 bits.
    """
    straighten(model)
    tied, layers = _tied(model), layers_of(model)
    for name, table in tables_of(model).items():
        codes = _table(table.weight, scheme)
        model.set_submodule(name, QuantizedEmbedding(codes))
        for head in tied.get(id(table.weight), ()):
            model.set_submodule(head, QuantizedLinear(codes, None, scheme.arithmetic))
    names = {id(module): name for name, module in model.named_modules()}
    for group in layers:
        inputs = {} if scheme.method == "nearest" else observe_inputs(group, run)
        for layer in group:
            model.set_submodule(names[id(layer)], _quantized(layer, scheme, inputs.get(id(layer))))
    return model


def _quantized(layer: nn.Linear, scheme: Scheme, inputs: Inputs | None) -> QuantizedLinear:
    weight, group = layer.weight.detach().float(), scheme.group
    if scheme.bits == 8 or weight.shape[1] % group:
        return QuantizedLinear(round_to_nearest(weight, 8), layer.bias, scheme.arithmetic)
    if inputs is None:
        return QuantizedLinear(round_to_nearest(weight, 4, group), layer.bias, scheme.arithmetic)
    if scheme.method == "gptq":
        return QuantizedLinear(gptq(weight, inputs.products, group), layer.bias, scheme.arithmetic)
    codes, before = awq(weight, inputs, group)
    return QuantizedLinear(codes, layer.bias, scheme.arithmetic, before)


def _table(weight: Tensor, scheme: Scheme) -> Codes:
    whole = scheme.tables == 8 or weight.shape[1] % scheme.group
    return round_to_nearest(weight, 8) if whole else round_to_nearest(weight, 4, scheme.group)


def _tied(model: nn.Module) -> dict[int, list[str]]:
    """Linear layers by the table whose weight is theirs."""
    tables = {id(table.weight) for table in tables_of(model).values()}
    found: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and id(module.weight) in tables and module.bias is None:
            found.setdefault(id(module.weight), []).append(name)
    return found
