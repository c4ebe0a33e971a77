"""The next token of every text, from its logits.

A token is drawn by numbers of the text's own, so a seed gives the same text whoever else is served at the same time (as
far as the model gives the same logits: 8-bit arithmetic rounds all texts of a turn by one scale).

Shapes: n texts, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tutti.serve.engine.request import Likely, Sampling


class Dice:
    """The random numbers of one text."""

    def __init__(self, seed: int | None) -> None:
        self._generator = torch.Generator()
        self._generator.manual_seed(torch.seed() if seed is None else seed)

    def roll(self) -> float:
        """In [0, 1)."""
        return float(torch.rand(1, generator=self._generator, dtype=torch.float64))


def draw(logits: Tensor, sampling: Sequence[Sampling], dice: Sequence[Dice]) -> list[int]:
    """A token for each of `logits` fp32 [n, V]."""
    tokens: list[int] = logits.argmax(-1).tolist()
    drawn = [row for row, one in enumerate(sampling) if one.temperature > 0]
    if not drawn:
        return tokens
    heat = torch.tensor([sampling[row].temperature for row in drawn])
    # As a share of the heat at which numbers overflow nothing: the largest logit becomes 0 first.
    some = logits[drawn].cpu()
    some = (some - some.amax(-1, keepdim=True)) / heat[:, None]
    for place, row in enumerate(drawn):
        tokens[row] = _draw(some[place].softmax(-1), sampling[row], dice[row].roll())
    return tokens


def _draw(shares: Tensor, sampling: Sampling, roll: float) -> int:
    """The token at share `roll` of those that are allowed, the likeliest first; `shares` [V] add up to 1."""
    if sampling.top_k or sampling.top_p < 1:
        most = min(sampling.top_k or len(shares), len(shares))
        some, tokens = shares.double().topk(most)
        some = some / some.sum()
        reached = some.cumsum(0)
        # The fewest that make up top_p, and one at least: a token counts while those before it do not.
        allowed = max(1, int(((reached - some) < sampling.top_p).sum()))
        reached = reached[:allowed]
        return int(tokens[_place(reached, roll)])
    return _place(shares.double().cumsum(0), roll)


def _place(reached: Tensor, roll: float) -> int:
    found = int(torch.searchsorted(reached, roll * float(reached[-1]), right=True))
    return min(found, len(reached) - 1)


def likeliest(logits: Tensor, token: int, count: int) -> tuple[Likely, ...]:
    """`token` itself, then the `count` likeliest, of `logits` fp32 [V]."""
    logs = logits.log_softmax(-1)
    top = logs.topk(min(count, len(logs)))
    others = zip(top.indices.tolist(), top.values.tolist(), strict=True)
    return (Likely(token, float(logs[token])), *(Likely(index, value) for index, value in others))
