"""Groups see the same samples, each once, and most of them after somebody else has."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutti.data.order import GlobalOrder
from tutti.data.rotation import Rotation


def positions_of(rotation: Rotation, start: int, stop: int) -> list[int]:
    return [p for first, last in rotation.pieces([(start, stop)]) for p in range(first, last)]


groups_and_segments = st.tuples(st.integers(1, 6), st.integers(1, 9))


@given(groups_and_segments, st.integers(0, 5), st.integers(0, 400), st.integers(0, 200))
def test_it_is_the_formula(sizes: tuple[int, int], group: int, start: int, length: int) -> None:
    groups, segment = sizes
    group %= groups
    expected = []
    for p in range(start, start + length):
        block, inside = divmod(p, groups * segment)
        turn, offset = divmod(inside, segment)
        expected.append(block * groups * segment + ((turn + group) % groups) * segment + offset)
    assert positions_of(Rotation(group, groups, segment), start, start + length) == expected


@given(groups_and_segments, st.integers(0, 4))
def test_every_block_holds_the_same_samples_for_every_group(sizes: tuple[int, int], block: int) -> None:
    groups, segment = sizes
    length = groups * segment
    whole = list(range(block * length, (block + 1) * length))
    for group in range(groups):
        assert sorted(positions_of(Rotation(group, groups, segment), whole[0], whole[-1] + 1)) == whole


@given(groups_and_segments, st.integers(1, 5))
def test_all_but_one_group_meet_a_sample_that_was_met_before(sizes: tuple[int, int], blocks: int) -> None:
    groups, segment = sizes
    seen: dict[int, set[int]] = {}
    found = total = 0
    for turn in range(blocks * groups):
        now = {
            group: positions_of(Rotation(group, groups, segment), turn * segment, (turn + 1) * segment)
            for group in range(groups)
        }
        for positions in now.values():
            total += len(positions)
            found += sum(bool(seen.get(position)) for position in positions)
        for group, positions in now.items():  # what is computed at the same time is known to nobody else yet
            for position in positions:
                seen.setdefault(position, set()).add(group)
    assert found * groups == total * (groups - 1)


@pytest.mark.parametrize("group", [0, 1, 2])
def test_every_sample_once_an_epoch_whatever_the_steps_ask_for(group: int) -> None:
    order, rotation = GlobalOrder(7, lambda epoch: 50), Rotation(group, 3, 8)
    seen: dict[int, list[int]] = {}
    for start in range(0, 240, 5):  # whole blocks, taken in steps that fit neither segments nor epochs
        for first, last in rotation.pieces([(start, start + 5)]):
            for epoch, indices in order.locate(first, last):
                seen.setdefault(epoch, []).extend(indices.tolist())
    assert {epoch: sorted(numbers) for epoch, numbers in seen.items() if epoch < 4} == {
        epoch: list(range(50)) for epoch in range(4)
    }
    assert len(seen[4]) == len(np.unique(seen[4])) == 40
