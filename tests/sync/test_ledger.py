"""The ledger: nothing lost, nothing twice, whatever is leased, done and lost."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from tutti.sync import Ledger, count, cut, merge, positions, share


def test_take_prefers_what_came_back() -> None:
    ledger = Ledger()
    ledger.lease("a", 10)
    ledger.lease("b", 10)
    committed, returned = ledger.settle("a", 4)
    assert (committed, returned) == ([(0, 4)], [(4, 10)])
    assert ledger.take(8) == [(4, 10), (20, 22)]
    assert ledger.cursor == 22


def test_state_survives_json_and_open_loans_return() -> None:
    ledger = Ledger()
    ledger.lease("a", 5)
    ledger.take(3)
    copy = Ledger()
    copy.load_state(json.loads(json.dumps(ledger.state())))
    assert copy.loans == {"a": [(0, 5)]}
    copy.return_loans()
    assert copy.take(6) == [(0, 5), (8, 9)]


@given(st.lists(st.tuples(st.integers(1, 20), st.integers(0, 25)), min_size=1, max_size=30))
def test_every_position_is_committed_once_or_still_to_come(loans: list[tuple[int, int]]) -> None:
    ledger = Ledger()
    committed: list[int] = []
    for number, (size, done) in enumerate(loans):
        ledger.lease(f"{number}", size)
        if number % 3 == 2:  # a few are open at the same time
            for former in (number, number - 1):
                pieces, _ = ledger.settle(f"{former}", min(done, size))
                committed += positions(pieces).tolist()
    ledger.return_loans()
    waiting = positions(ledger.returned).tolist()
    assert sorted(committed + waiting) == list(range(ledger.cursor))


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 9)), max_size=8), st.integers(1, 7))
def test_shares_are_even_and_in_order(pieces: list[tuple[int, int]], parts: int) -> None:
    ranges = [(start, start + size) for start, size in pieces]
    shares = [share(ranges, part, parts) for part in range(parts)]
    assert [p for s in shares for p in positions(s)] == positions(ranges).tolist()
    sizes = [count(s) for s in shares]
    assert max(sizes) - min(sizes) <= 1


def test_cut_and_merge() -> None:
    assert cut([(0, 3), (10, 14)], 2, 5) == [(2, 3), (10, 12)]
    assert merge([(5, 7), (0, 2), (2, 4), (6, 9), (3, 3)]) == [(0, 4), (5, 9)]
