"""Whose rows come next: shares by tokens, nobody starves, and passes are as full as may be."""

from __future__ import annotations

import time
from collections import Counter

import numpy as np

from tutti.package.together import alike
from tutti.serve.engine.fair import QUANTUM, FairQueue
from tutti.serve.engine.job import Job


def job(*lengths: int, deadline: float | None = None) -> Job:
    return Job([{"input_ids": [7] * length} for length in lengths], lambda _: None, deadline)


def passes(queue: FairQueue, budget: int) -> list[list[tuple[Job, int]]]:
    found = []
    while parts := queue.take(budget, time.monotonic())[0]:
        found.append([(part.job, part.row) for part in parts])
    return found


def test_every_row_is_taken_once_in_order_and_passes_keep_to_the_budget() -> None:
    dice = np.random.default_rng(0)
    jobs = [job(*dice.integers(1, 200, dice.integers(1, 9)).tolist()) for _ in range(40)]
    queue = FairQueue()
    for one in jobs:
        queue.add(one)
    taken = passes(queue, 256)
    for one in jobs:
        own = [row for some in taken for who, row in some if who is one]
        assert own == list(range(len(one.rows)))
    tokens = [sum(len(who.rows[row]["input_ids"]) for who, row in some) for some in taken]
    assert max(tokens) <= 256 and not len(queue)


def test_a_row_beyond_the_budget_is_a_pass_of_its_own() -> None:
    queue, long, short = FairQueue(), job(500), job(16)
    queue.add(long)
    queue.add(short)
    assert passes(queue, 256) == [[(short, 0)], [(long, 0)]]


def test_short_requests_do_not_wait_for_a_long_one_nor_it_for_them() -> None:
    queue, long = FairQueue(), job(*[64] * 100)
    queue.add(long)
    shorts = [job(16) for _ in range(10)]
    for one in shorts:
        queue.add(one)
    first = [who for who, _ in passes(queue, 256)[0]]
    # What is left of the budget when the long one has had its quantum.
    assert Counter(first)[long] == 1 and set(first) - {long} == set(shorts)
    queue, long = FairQueue(), job(512)
    queue.add(long)
    taken: list[Job] = []
    while long not in taken:  # short ones come all the time, more than a pass holds
        for _ in range(20):
            queue.add(job(16))
        taken += [part.job for part in queue.take(256, 0.0)[0]]
    assert len(taken) < 400  # 512 tokens are eight visits, each a round of those who were there before


def test_while_two_wait_they_get_equally_many_tokens() -> None:
    queue, some, other = FairQueue(), job(*[8] * 400), job(*[100] * 32)
    queue.add(some)
    queue.add(other)
    got: Counter[Job] = Counter()
    for _ in range(8):
        for part in queue.take(256, 0.0)[0]:
            got[part.job] += len(part.job.rows[part.row]["input_ids"])
    assert (
        abs(got[some] - got[other]) <= QUANTUM + 100
    )  # as the paper bounds it: a quantum and the longest row


def test_who_waits_no_more_is_not_computed() -> None:
    queue, gone, late, there = FairQueue(), job(16), job(16, deadline=5.0), job(16)
    for one in (gone, late, there):
        queue.add(one)
    gone.cancelled = True
    parts, over = queue.take(256, 6.0)
    assert [part.job for part in parts] == [there] and over == [gone, late]
    assert (gone.over(6.0), late.over(6.0), there.over(6.0)) == ("cancelled", "timeout", None)


def test_rows_of_like_length_are_computed_together() -> None:
    lengths = [16, 500, 15, 14, 480, 16, 3, 2]
    groups = list(alike(lengths))
    assert sorted(number for some in groups for number in some) == list(range(8))
    for some in groups:
        area = len(some) * max(lengths[number] for number in some)
        assert 1 - sum(lengths[number] for number in some) / area <= 0.25
    assert [sorted(some) for some in groups] == [[1, 4], [0, 2, 3, 5, 6], [7]]
    assert list(alike([])) == []
