"""Samples of a step in an order in which halves are alike: the same samples, as the page on the global order says."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tutti.core import Batch
from tutti.data.evened import evened
from tutti.data.order import GlobalOrder
from tutti.train.feed import Feed

LENGTHS = np.random.default_rng(0).integers(3, 60, 50)


class Rows:
    """Fifty rows of unlike length."""

    fingerprint = "rows"

    def samples_in_epoch(self, epoch: int) -> int:
        return len(LENGTHS)

    def load(self, epoch: int, indices: Sequence[int] | NDArray[np.int64]) -> Batch:
        return {"x": torch.tensor(np.asarray(indices))}

    def empty(self) -> Batch:
        return {"x": torch.tensor([])}

    def sizes(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        return LENGTHS[indices]


def test_longest_first_and_dealt() -> None:
    # By hand: 9 7 6 5 4 3 2 1 → 9 5 4 1 and 7 6 3 2 → 9 1, 5 4, 7 2, 6 3
    lengths = [4, 9, 1, 7, 5, 2, 6, 3]
    assert [lengths[place] for place in evened(lengths)] == [9, 1, 5, 4, 7, 2, 6, 3]
    assert evened([5, 5, 5, 5]).tolist() == [0, 3, 1, 2]
    assert evened([7]).tolist() == [0] and evened([]).tolist() == []


def test_halves_and_quarters_are_about_as_much_work() -> None:
    dice = np.random.default_rng(1)
    worst, by_chance = [], []
    for _ in range(200):
        lengths = dice.gamma(3.0, 5.0, 32).astype(int) + 2
        for order, found in ((evened(lengths), worst), (np.arange(32), by_chance)):
            found.append(max(lengths[order][:16].sum(), lengths[order][16:].sum()) / lengths.sum() * 2)
    assert np.mean(worst) < 1.02 < 1.05 < np.mean(by_chance)


@pytest.mark.parametrize("batch", [8, 12])
def test_a_step_keeps_its_samples_and_every_way_to_share_it_out_finds_the_same_order(batch: int) -> None:
    feed = Feed(Rows(), 3, torch.device("cpu"), batch=batch)
    plain = GlobalOrder(3, lambda _: len(LENGTHS))
    for step in range(12):  # over two ends of an epoch
        start = step * batch
        whole = feed.load([(start, start + batch)], batch, 1).ids
        assert [(epoch, sorted(ids)) for epoch, ids in whole] == [
            (epoch, sorted(ids.tolist())) for epoch, ids in plain.locate(start, start + batch)
        ]
        in_order = [(epoch, number) for epoch, ids in whole for number in ids]
        for cuts in ([0, batch // 2, batch], [0, 1, 5, batch]):
            found = []
            for first, last in pairwise(cuts):
                mine = feed.load([(start + first, start + last)], batch, 1)
                found += [(epoch, number) for epoch, ids in mine.ids for number in ids]
            assert found == in_order
    across = feed.load([(3, 2 * batch + 5)], batch, 1).ids
    assert sum(len(ids) for _, ids in across) == 2 * batch + 2
