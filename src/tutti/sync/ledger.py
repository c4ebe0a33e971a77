"""Who trains on which part of the global order: a cursor, plus ranges on loan.

The global order (room `data`) is an endless line of positions. Synchronous policies take `[c, c + B)` and are
done with it. Asynchronous ones lease ranges, commit what they trained on once, and the rest returns to the
front of the queue. Every member keeps the same ledger by doing the same operations in the same order, so no
coordinator owns it, and it fits into a checkpoint as a handful of integers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from tutti.core.ranges import merge

#: Positions `start` (included) to `stop` (excluded) of the global order.
Range = tuple[int, int]


def count(ranges: Iterable[Range]) -> int:
    """How many positions `ranges` hold."""
    return sum(stop - start for start, stop in ranges)


def cut(ranges: Sequence[Range], first: int, last: int) -> list[Range]:
    """Positions number `first` (included) to `last` (excluded) of `ranges`, counted in their order."""
    pieces, passed = [], 0
    for start, stop in ranges:
        low, high = max(first - passed, 0), min(last - passed, stop - start)
        if low < high:
            pieces.append((start + low, start + high))
        passed += stop - start
    return pieces


def share(ranges: Sequence[Range], part: int, parts: int) -> list[Range]:
    """Part number `part` of `ranges` cut into `parts` as evenly as can be, in order."""
    total = count(ranges)
    return cut(ranges, part * total // parts, (part + 1) * total // parts)


def positions(ranges: Sequence[Range]) -> np.ndarray:
    """All positions of `ranges`, in order, as int64."""
    if not ranges:
        return np.empty(0, dtype=np.int64)
    return np.concatenate([np.arange(start, stop, dtype=np.int64) for start, stop in ranges])


class Ledger:
    """The state of the data: `cursor`, ranges that came back, and ranges on loan by borrower."""

    def __init__(self) -> None:
        self.cursor = 0
        self.returned: list[Range] = []
        self.loans: dict[str, list[Range]] = {}

    def take(self, samples: int) -> list[Range]:
        """The next `samples` positions: what came back first, then new ones."""
        taken = cut(self.returned, 0, samples)
        self.returned = cut(self.returned, samples, count(self.returned))
        missing = samples - count(taken)
        if missing:
            taken.append((self.cursor, self.cursor + missing))
            self.cursor += missing
        return merge(taken)  # what came back lies before the cursor, so the order stays

    def lease(self, borrower: str, samples: int) -> list[Range]:
        """Lend the next `samples` positions to `borrower`, who must have no loan."""
        assert borrower not in self.loans, f"{borrower} has a loan already"
        self.loans[borrower] = self.take(samples)
        return self.loans[borrower]

    def settle(self, borrower: str, done: int) -> tuple[list[Range], list[Range]]:
        """End the loan of `borrower`, who trained on its first `done` positions.

        Returns (committed, returned); the latter will be taken again before anything new.
        """
        loan = self.loans.pop(borrower, [])
        committed, rest = cut(loan, 0, done), cut(loan, done, count(loan))
        self.returned = merge([*self.returned, *rest])
        return committed, rest

    def commit(self, borrower: str, done: int) -> list[Range]:
        """The first `done` positions of the loan of `borrower` are trained on; the rest stays on loan."""
        loan = self.loans[borrower]
        self.loans[borrower] = cut(loan, done, count(loan))
        return cut(loan, 0, done)

    def extend(self, borrower: str, samples: int) -> list[Range]:
        """Lend `borrower` the next `samples` positions, to be trained on after what it has."""
        more = self.take(samples)
        self.loans[borrower] = [*self.loans.get(borrower, []), *more]
        return more

    def return_loans(self) -> None:
        """End every loan with nothing done: a run that starts again has no borrowers."""
        for borrower in list(self.loans):
            self.settle(borrower, 0)

    def state(self) -> dict[str, Any]:
        """JSON values."""
        return {"cursor": self.cursor, "returned": list(self.returned), "loans": dict(self.loans)}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over what `state()` gave, here or from JSON."""
        self.cursor = int(state["cursor"])
        self.returned = [_range(pair) for pair in state["returned"]]
        self.loans = {name: [_range(pair) for pair in loan] for name, loan in state["loans"].items()}


def _range(pair: Sequence[int]) -> Range:
    start, stop = pair
    return int(start), int(stop)
