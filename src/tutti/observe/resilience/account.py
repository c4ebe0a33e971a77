"""The samples of a run, added up: in the model once, twice or not at all, and computed more often than that.

committed          positions that are in the model
twice              positions that are in it more than once, counted for each time too many: must be 0
lost               positions below the highest one that were neither committed, nor are on loan or waiting: must be 0
waiting            positions that came back, or are on loan, when the events end; a resume takes them first
computed again     work done more often than once, because what came of it the first time was lost
"""

from __future__ import annotations

from dataclasses import dataclass

from tutti.core.ranges import merge
from tutti.observe.resilience.spans import Span, minus, repeated, total
from tutti.observe.resilience.trace import Trace


@dataclass(frozen=True)
class Account:
    """All in samples."""

    committed: int
    twice: int
    lost: int
    waiting: int
    computed_again: int


def take_account(trace: Trace) -> Account:
    """Add up the samples of `trace`."""
    return _by_ledger(trace) if trace.rounds else _by_steps(trace)


def _computed_again(trace: Trace) -> int:
    """Ranks of one replica that share a sample (tensor, pipeline, context) compute it once, together."""
    groups: dict[tuple[int, int, int], list[Span]] = {}
    for step in trace.steps:
        groups.setdefault((step.replica, step.step, step.again), []).extend(step.spans)
    return repeated([span for spans in groups.values() for span in merge(spans)])


def _by_ledger(trace: Trace) -> Account:
    committed = [span for entry in trace.entries if entry.kind == "commit" for span in entry.spans]
    waiting: list[Span] = []
    on_loan: list[Span] = []
    last_round = max(entry.round for entry in trace.entries)
    for number in range(1, last_round + 1):
        now = [entry for entry in trace.entries if entry.round == number]
        leased = [span for entry in now if entry.kind == "lease" for span in entry.spans]
        waiting += [span for entry in now if entry.kind == "return" for span in entry.spans]
        waiting = minus(waiting, leased)
        on_loan = leased if number == last_round else []
    everything = [span for entry in trace.entries for span in entry.spans]
    whole = (
        [(min(start for start, _ in everything), max(stop for _, stop in everything))] if everything else []
    )
    open_ones = merge([*waiting, *on_loan])
    return Account(
        committed=total(merge(committed)),
        twice=repeated(committed),
        lost=total(minus(whole, [*committed, *open_ones])),
        waiting=total(minus(open_ones, committed)),
        computed_again=_computed_again(trace),
    )


def _by_steps(trace: Trace) -> Account:
    by_step: dict[int, dict[int, list[Span]]] = {}
    tokens: dict[int, float] = {}
    for step in trace.steps:
        if step.kept:
            by_step.setdefault(step.step, {}).setdefault(step.replica, []).extend(step.spans)
            tokens[step.step] = max(tokens.get(step.step, 0.0), step.tokens or 0.0)
    per_sample = trace.tokens_per_sample
    spans: list[Span] = []
    unwritten = 0
    for number, replicas in by_step.items():
        here = [span for of_replica in replicas.values() for span in merge(of_replica)]
        spans += here
        if per_sample:  # who speaks for all counts also those who died before they could write
            unwritten += max(0, round(tokens[number] / per_sample) - total(merge(here)))
    known = total(merge(spans))
    whole = max((stop for _, stop in spans), default=0) - min((start for start, _ in spans), default=0)
    return Account(
        committed=known + unwritten,
        twice=repeated(spans),
        lost=max(0, whole - known - unwritten),
        waiting=0,
        computed_again=_computed_again(trace),
    )
