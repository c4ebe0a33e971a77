"""How the tokens of a row relate to each other in a model's last layer, which a smaller model can learn from a larger.

MiniLMv2 (Wang et al. 2020, arXiv 2012.15828): with A_T and A the relations softmax(H Hᵀ / √d) of teacher and learner, H
the queries, keys or values of the last layer cut into R heads of d numbers,

    L = 1/3 Σ over queries, keys, values of the mean over R heads and S tokens of KL(A_T ‖ A)

as a sum over rows. R is the same for both however wide they are and however many heads they attend with.

Shapes: B rows, S tokens, D width.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from tutti.core import ModelError
from tutti.tasks.dense import active

#: Heads that relations are cut into, at most.
_HEADS = 48
#: What architectures call their projections.
_APART = (("query", "key", "value"), ("q_proj", "k_proj", "v_proj"), ("q_lin", "k_lin", "v_lin"))
_TOGETHER = ("Wqkv", "qkv_proj", "qkv")


class LastAttention:
    """Queries, keys and values [B, S, D] of the last of `blocks`, each time that it has computed.

    Raises:
        ModelError: the architecture's are not known.
    """

    def __init__(self, blocks: list[nn.Module]) -> None:
        self._seen: dict[int, Tensor] = {}
        modules = {name.rpartition(".")[2]: module for name, module in blocks[-1].named_modules()}
        for names in _APART:
            if all(name in modules for name in names):
                for place, name in enumerate(names):
                    modules[name].register_forward_hook(self._noting(blocks[-1], place, 1))
                return
        for name in _TOGETHER:
            if name in modules:
                modules[name].register_forward_hook(self._noting(blocks[-1], 0, 3))
                return
        raise ModelError(
            f"a {type(blocks[-1]).__name__} does not say what its queries, keys and values are",
            "set distil.hidden to 0",
        )

    def _noting(self, block: nn.Module, first: int, count: int) -> Any:
        def note(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            places = active(block)
            whole = output if places is None else places.unpack(output)
            for place, part in enumerate(whole.chunk(count, -1)):
                self._seen[first + place] = part.float()

        return note

    def take(self) -> list[Tensor]:
        """Those of the last batch, queries, keys and values in this order; forgotten afterwards."""
        found = [self._seen[place] for place in range(3)]
        self._seen.clear()
        return found


def relations_apart(theirs: list[Tensor], own: list[Tensor], mask: Tensor) -> Tensor:
    """L of what `LastAttention` saw of a teacher and of a learner, for tokens of `mask` [B, S]: summed over rows."""
    heads = math.gcd(math.gcd(theirs[0].shape[-1], own[0].shape[-1]), _HEADS)
    there = mask.bool()
    total = own[0].new_zeros(())
    for one, other in zip(theirs, own, strict=True):
        told, said = _relations(one, heads, there), _relations(other, heads, there)
        # Of each row's tokens alone: what is padding relates to nothing.
        each = (told.exp() * (told - said)).masked_fill(~there[:, None, None, :], 0.0).sum(-1)
        of_row = each.mean(1).masked_fill(~there, 0.0).sum(1) / there.sum(1).clamp_min(1)
        total = total + of_row.sum() / 3
    return total


def _relations(values: Tensor, heads: int, there: Tensor) -> Tensor:
    """[B, S, D] → log softmax(H Hᵀ / √d), [B, heads, S, S]; far below 0 for what is padding."""
    rows, length, width = values.shape
    cut = values.view(rows, length, heads, width // heads).transpose(1, 2)
    products = cut @ cut.transpose(2, 3) / math.sqrt(width // heads)
    return torch.log_softmax(products.masked_fill(~there[:, None, None, :], -1e9), -1)
