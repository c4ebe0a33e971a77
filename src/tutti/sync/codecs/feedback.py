"""Error feedback: what a codec lost is added to what is sent the next time.

    c ← x + β e;  p = encode(c);  e ← c − decode(p)          once the exchange counts

Seide et al. 2014 (1-bit SGD), Karimireddy et al. 2019 (arXiv 1901.09847); β < 1 forgets (SparseLoCo: 0.95). An
exchange that did not count has taken nothing off the error: it is settled with `keep`, or forgotten with `drop`.

A member may send a piece only of what has a name: `start` is where the piece begins, in a vector of `whole` numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor


class ErrorFeedback:
    """The errors of one member, by the name of what was sent."""

    def __init__(self, decay: float = 1.0) -> None:
        self.decay = decay
        self.errors: dict[str, Tensor] = {}
        self._pending: list[Debts] = []

    def error(self, name: str, like: Tensor) -> Tensor:
        """What is owed of `name`, a vector as long as `like`: the tensor itself, which a checkpoint may fill."""
        return self.errors.setdefault(name, torch.zeros_like(like))

    def of(self, name: str, start: int = 0, whole: int | None = None) -> Debts:
        """What is about to be owed of `name`; of the piece that begins at `start`, if that is all that is sent."""
        return Debts(self, name, start, whole)

    def keep(self) -> None:
        """The exchanges counted."""
        for debts in self._pending:
            debts.settle()
        self._pending = []

    def drop(self) -> None:
        """They did not: everything is owed as before."""
        self._pending = []

    def note(self, debts: Debts) -> None:
        """Have `debts` settled when the exchange counts."""
        self._pending.append(debts)


class Debts:
    """Of one exchange: what is owed from before, and what this one adds."""

    def __init__(self, feedback: ErrorFeedback, name: str, start: int, whole: int | None) -> None:
        self._feedback = feedback
        self._name = name
        self._start = start
        self._whole = whole
        self._error = torch.empty(0)

    def correct(self, values: Tensor) -> Tensor:
        """`values` fp32 [count] with what is owed of them; a new tensor."""
        owed = self._feedback.errors.get(self._name)
        if owed is None:
            return values.clone()
        return values.add(owed[self._start : self._start + len(values)], alpha=self._feedback.decay)

    def owe(self, error: Tensor) -> None:
        """From now on `error` [count] is owed instead, if the exchange counts."""
        self._error = error
        self._feedback.note(self)

    def owe_more(self, start: int, error: Tensor) -> None:
        """Likewise, on top of it: `error` from place `start` of the piece on."""
        self._error[start : start + len(error)] += error

    def settle(self) -> None:
        """The exchange counted."""
        if self._whole is None or self._whole == len(self._error):
            self._feedback.errors[self._name] = self._error
            return
        owed = self._feedback.error(self._name, self._error.new_empty(self._whole))
        owed[self._start : self._start + len(self._error)] = self._error
