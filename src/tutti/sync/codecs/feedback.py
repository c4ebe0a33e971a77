"""Error feedback: what a codec lost is added to what is sent the next time.

    c ← x + β e;  p = encode(c);  e ← c − decode(p)          once the exchange counts

Seide et al. 2014 (1-bit SGD), Karimireddy et al. 2019 (arXiv 1901.09847); β < 1 forgets (SparseLoCo: 0.95). An
exchange that did not count has taken nothing off the error: it is settled with `keep`, or forgotten with `drop`.
"""

from __future__ import annotations

import torch
from torch import Tensor


class ErrorFeedback:
    """The errors of one member, by the name of what was sent."""

    def __init__(self, decay: float = 1.0) -> None:
        self.decay = decay
        self.errors: dict[str, Tensor] = {}
        self._pending: dict[str, Tensor] = {}

    def error(self, name: str, like: Tensor) -> Tensor:
        """What is owed of `name`, a vector as long as `like`: the tensor itself, which a checkpoint may fill."""
        return self.errors.setdefault(name, torch.zeros_like(like))

    def correct(self, name: str, values: Tensor) -> Tensor:
        """`values` fp32 [count] with what is owed of them; a new tensor."""
        error = self.errors.get(name)
        return values.clone() if error is None else values.add(error, alpha=self.decay)

    def owe(self, name: str, error: Tensor) -> None:
        """From now on `error` is owed of `name`, if the exchange counts."""
        self._pending[name] = error

    def owe_more(self, name: str, start: int, error: Tensor) -> None:
        """Likewise, on top of it: `error` from place `start` on."""
        self._pending[name][start : start + len(error)] += error

    def keep(self) -> None:
        """The exchange counted."""
        self.errors.update(self._pending)
        self._pending = {}

    def drop(self) -> None:
        """It did not: everything is owed as before."""
        self._pending = {}
