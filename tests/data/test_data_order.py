"""The global order, against a second implementation that knows only docs/explanation/global-order.md."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tutti.data import GlobalOrder

M = 2**64 - 1


def scramble(x: int) -> int:
    z = (x + 0x9E3779B97F4A7C15) & M
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & M
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & M
    return z ^ (z >> 31)


def reference(seed: int, epoch: int, n: int, i: int) -> int:
    key = scramble(scramble(seed & M) ^ epoch)
    keys = [scramble((key + r) & M) for r in range(8)]
    h = max(1, -(-(n - 1).bit_length() // 2))
    m = 2**h - 1
    while True:
        left, right = i >> h, i & m
        for k in keys:
            left, right = right, left ^ (scramble(right ^ k) & m)
        i = (left << h) | right
        if i < n:
            return i


def whole(seed: int, n: int, epoch: int = 0) -> np.ndarray:
    [(found, indices)] = GlobalOrder(seed, lambda _: n).locate(epoch * n, (epoch + 1) * n)
    assert found == epoch
    return indices


@given(n=st.integers(1, 5000), seed=st.integers(0, 2**70), epoch=st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_every_epoch_is_a_permutation(n: int, seed: int, epoch: int) -> None:
    assert np.array_equal(np.sort(whole(seed, n, epoch)), np.arange(n))


@given(n=st.integers(1, 10**12), seed=st.integers(0, 2**70), data=st.data())
@settings(max_examples=60, deadline=None)
def test_the_page_describes_it_exactly(n: int, seed: int, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, 3 * n))
    order = GlobalOrder(seed, lambda _: n)
    got = [(e, int(i)) for e, indices in order.locate(start, start + 5) for i in indices]
    positions = range(start, start + 5)
    assert got == [(p // n, reference(seed, p // n, n, p % n)) for p in positions]


@given(
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=6),
    seed=st.integers(0, 2**64),
    cuts=st.lists(st.integers(0, 500), max_size=10),
)
@settings(max_examples=60, deadline=None)
def test_chunking_and_the_order_of_calls_do_not_matter(sizes: list[int], seed: int, cuts: list[int]) -> None:
    def samples(epoch: int) -> int:
        return sizes[epoch % len(sizes)]

    def flat(order: GlobalOrder, start: int, stop: int) -> list[tuple[int, int]]:
        return [(epoch, int(index)) for epoch, indices in order.locate(start, stop) for index in indices]

    everything = flat(GlobalOrder(seed, samples), 0, 500)
    bounds = sorted({0, 500, *cuts})
    pieces = list(itertools.pairwise(bounds))
    order = GlobalOrder(seed, samples)
    backwards = [flat(order, *piece) for piece in reversed(pieces)]
    assert [sample for piece in reversed(backwards) for sample in piece] == everything
    epochs = [epoch for epoch, _ in everything]
    assert epochs == sorted(epochs)


def test_pieces_larger_than_a_block_agree_with_single_positions() -> None:
    order, n = GlobalOrder(3, lambda _: 10_000), 10_000
    [(_, indices)] = order.locate(4000, 9000)
    assert indices.tolist() == [reference(3, 0, n, i) for i in range(4000, 9000)]


@pytest.mark.parametrize("n", [50, 1000, 65536])
def test_epochs_and_seeds_have_nothing_in_common(n: int) -> None:
    orders = [whole(seed, n, epoch) for seed in range(4) for epoch in range(4)]
    identity = np.arange(n)
    for a, first in enumerate(orders):
        for second in [identity, *orders[:a]]:
            same = int((first == second).sum())  # about Poisson(1) for independent permutations
            assert same <= 9
            assert abs(np.corrcoef(first, second)[0, 1]) < 5.5 / np.sqrt(n)


def test_neighbours_are_not_neighbours() -> None:
    order = whole(0, 65536)
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 5 / np.sqrt(65536)
    steps = np.bincount(np.abs(np.diff(order)), minlength=65536)
    assert steps[1] <= 12  # about Poisson(2)


def test_each_place_is_equally_likely_over_seeds() -> None:
    n, seeds = 10, 2000
    counts = np.zeros((n, n))
    for seed in range(seeds):
        counts[np.arange(n), whole(seed, n)] += 1
    chi_square = ((counts - seeds / n) ** 2 / (seeds / n)).sum()
    assert chi_square < 81 + 5 * np.sqrt(2 * 81)  # 81 degrees of freedom


def test_memory_does_not_grow_with_the_samples() -> None:
    order = GlobalOrder(1, lambda _: 10**15)
    [(epoch, indices)] = order.locate(10**14, 10**14 + 3)
    assert epoch == 0
    assert indices.tolist() == [reference(1, 0, 10**15, 10**14 + i) for i in range(3)]


def test_nonsense_is_refused() -> None:
    order = GlobalOrder(0, lambda epoch: 3 if epoch < 2 else 0)
    assert order.locate(4, 4) == []
    with pytest.raises(ValueError, match="start <= stop"):
        order.locate(5, 4)
    with pytest.raises(ValueError, match="epoch 2 has no samples"):
        order.locate(0, 7)
