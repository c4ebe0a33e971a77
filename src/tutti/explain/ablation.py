"""Without one word after the other: how much less sure is the model then? Takes any model that can be asked.

Captum's feature ablation (Zeiler and Fergus 2014, arXiv 1311.2901, hid parts of pictures so).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tutti.explain.claims import Claim
from tutti.explain.words import Reading
from tutti.tasks.task import Row

#: What a model says to rows, as `Asker.answer` does.
Ask = Callable[[Sequence[Row]], Sequence[NDArray[np.float64]]]
#: Rows that are asked about at once.
_AT_ONCE = 32


class Weighed(NamedTuple):
    """Of one claim, in log-odds: `whole`, of the text; `nothing`, with every word hidden; `weights`, of each word."""

    whole: float
    nothing: float
    weights: list[float]


def by_ablation(
    ask: Ask, reading: Reading, hidden: int, claims: Sequence[Claim], *, multiple: bool
) -> list[Weighed]:
    """What each word is worth to each of the `claims` about the row of `reading`."""
    from captum.attr import FeatureAblation

    def sure(kept: Tensor) -> Tensor:
        """Which words are kept [n, words] → log-odds of the claims [n, claims]."""
        answers = ask([reading.without([bool(one) for one in line], hidden) for line in kept])
        return torch.tensor(
            [[claim.log_odds(answer, multiple=multiple) for claim in claims] for answer in answers]
        )

    count = len(reading.words)
    ends = sure(torch.stack([torch.ones(count), torch.zeros(count)]))
    if not count:
        return [Weighed(float(whole), float(nothing), []) for whole, nothing in ends.T]
    found = FeatureAblation(sure).attribute(
        torch.ones(1, count), baselines=0.0, perturbations_per_eval=_AT_ONCE
    )
    return [
        Weighed(float(whole), float(nothing), weights.tolist())
        for (whole, nothing), weights in zip(ends.T, found.reshape(len(claims), count), strict=True)
    ]
