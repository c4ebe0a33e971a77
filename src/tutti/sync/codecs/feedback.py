"""Error feedback: what a codec lost is added to what is sent the next time.

    c ← x + β e;  p = encode(c);  e ← c − decode(p)          once the exchange counts

Seide et al. 2014 (1-bit SGD), Karimireddy et al. 2019 (arXiv 1901.09847); β < 1 forgets (SparseLoCo: 0.95). An
exchange that did not count has taken nothing off the error: it is settled with `keep`, or forgotten with `drop`.

Where only a piece of what has a name is sent on with losses, all of it is paid before, and the piece adds new debts
(`Debts.of_piece`).
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

    def of(self, name: str) -> Debts:
        """What is owed of `name`, and is about to be."""
        return Debts(self, name)

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

    def __init__(self, feedback: ErrorFeedback, name: str) -> None:
        self._feedback = feedback
        self._name = name
        self._error = torch.empty(0)
        self._is_paid = False

    def correct(self, values: Tensor) -> Tensor:
        """`values` fp32 [count] with what is owed of them; a new tensor."""
        owed = None if self._is_paid else self._feedback.errors.get(self._name)
        return values.clone() if owed is None else values.add(owed, alpha=self._feedback.decay)

    def owe(self, error: Tensor) -> None:
        """From now on `error` [count] is owed instead, if the exchange counts."""
        if self._is_paid:
            self._error.copy_(error)
            return
        self._error = error
        self._feedback.note(self)

    def owe_more(self, start: int, error: Tensor) -> None:
        """Likewise, on top of it: `error` from place `start` on."""
        self._error[start : start + len(error)] += error

    def of_piece(self, start: int, stop: int) -> Debts:
        """Those of numbers `start` to `stop`, after `owe`: a part of what is owed then, and nothing from before."""
        piece = Debts(self._feedback, self._name)
        piece._error, piece._is_paid = self._error[start:stop], True
        return piece

    def settle(self) -> None:
        """The exchange counted."""
        self._feedback.errors[self._name] = self._error
