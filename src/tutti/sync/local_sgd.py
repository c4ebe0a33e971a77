"""Policy `local_sgd`: replicas take the mean of their weights.

Stich 2018 (arXiv 1805.09767), with Δ as in `rounds`: θ ← θ_old − Δ, which is Σ n_r θ_r ÷ Σ n_r. The same as `diloco`
with an outer learning rate of 1 and no momentum, and without its memory.
"""

from __future__ import annotations

from torch import Tensor

from tutti.sync.rounds import Rounds


class LocalSGD(Rounds):
    """The mean of the replicas' weights, by the targets that each saw."""

    def _outer_step(self, mean: Tensor, place: slice) -> None:
        self._agreed[place].sub_(mean)
