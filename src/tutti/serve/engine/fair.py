"""Whose rows are computed next: everybody's in turn, by tokens, so neither long requests nor many short ones starve.

Deficit round robin (Shreedhar and Varghese 1995): who waits stands in a ring. At a visit a request is credited a
quantum of tokens, and its rows are taken while its credit lasts; what is left of it is kept for the next visit. So of
two requests each has about as many tokens computed as the other while both wait, whatever the lengths of their rows; a
row as long as several quanta waits for as many visits, and not for the short ones to end.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

from tutti.serve.engine.job import Job, length_of

#: Tokens that a request is credited at a visit.
QUANTUM = 64


class Part(NamedTuple):
    """Row number `row` of `job`."""

    job: Job
    row: int


@dataclass(eq=False)
class _Waiting:
    job: Job
    next_row: int = 0
    credit: int = 0
    #: Its visit was cut short because a pass was full, so it has its credit already.
    visited: bool = False


class FairQueue:
    """Jobs of which rows are still to be computed."""

    def __init__(self) -> None:
        self._ring: deque[_Waiting] = deque()

    def __len__(self) -> int:
        return len(self._ring)

    def add(self, job: Job) -> None:
        """`job` waits."""
        self._ring.append(_Waiting(job))

    def take(self, budget_tokens: int, now: float) -> tuple[list[Part], list[Job]]:
        """Rows for a pass of at most `budget_tokens`, one at least if there is any; and jobs that nobody waits for
        any more, of which nothing else comes."""
        parts, over, left = list[Part](), list[Job](), budget_tokens
        while self._ring:
            one = self._ring[0]
            if one.job.over(now) is not None:
                over.append(self._ring.popleft().job)
                continue
            if not one.visited:
                one.credit += QUANTUM
            one.visited = False
            while one.next_row < len(one.job.rows):
                length = length_of(one.job.rows[one.next_row])
                if length > one.credit:
                    break
                if length > left and parts:
                    one.visited = True
                    return parts, over
                parts.append(Part(one.job, one.next_row))
                one.next_row += 1
                one.credit -= length
                left -= length
            self._ring.popleft()
            if one.next_row < len(one.job.rows):
                self._ring.append(one)
        return parts, over

    def clear(self) -> list[Job]:
        """Everybody that waits, who does not any more."""
        jobs = [one.job for one in self._ring]
        self._ring.clear()
        return jobs
