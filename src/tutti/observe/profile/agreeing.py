"""What ranks spend on each other: what they send, and waiting for the one that is last."""

from __future__ import annotations

import statistics
from typing import Any

from tutti.observe import words
from tutti.observe.profile.cause import Cause, spent
from tutti.observe.profile.figures import Figures
from tutti.observe.profile.ranks import RankSteps
from tutti.observe.tail import number

#: A rank is a straggler below this share of the others' speed; the rest is chance.
_SLOW = 0.8
#: With so much less of a processor than the others, it is not its work that is harder.
_STARVED = 0.8


def communication(figures: Figures) -> Cause | None:
    """Exchanges, once all have done their share."""
    seconds = figures.parts.get("communication", 0.0)
    if len(figures.ranks) < 2 or seconds <= 0:
        return None
    sent = statistics.mean(rank.sent_bytes / max(1, len(rank.steps)) for rank in figures.ranks)
    evidence = [
        f"when the last rank has done its share, exchanging goes on for {spent(seconds)} of a step of "
        f"{spent(figures.seconds)}",
        f"each rank sends {words.size(sent)} a step",
    ]
    ways = figures.ways or {}
    if rate := number(ways.get("link_bytes_per_second")):
        latency = number(ways.get("link_latency_seconds")) or 0.0
        evidence.append(
            f"the link was measured at {words.size(rate)}/s and {spent(latency)}: {spent(sent / rate)} for that, "
            "some of it while backward goes on"
        )
    change, expected, why = _communication_change(figures, ways)
    return Cause("communication", seconds, seconds / figures.seconds, tuple(evidence), change, expected, why)


def _communication_change(figures: Figures, ways: dict[str, Any]) -> tuple[str, float | None, str]:
    """What `sync: auto` would choose; else a single replica, if that is faster; else another link."""
    whole, seconds = figures.seconds, figures.parts["communication"]
    own, best = number(ways.get("own_seconds")), ways.get("best") or {}
    there = number(best.get("seconds"))
    if (
        own is not None
        and there is not None
        and own > there
        and best.get("setting") != ways.get("own_setting")
    ):
        saved = min(own - there, seconds)
        price = number(best.get("price")) or 1.0
        lossy = f", and takes about {price:g} times as many steps" if price > 1 else ""
        if whole - saved < 0.95 * whole and (whole - saved) * price < whole:
            return (
                f"sync={best.get('setting')}",
                whole - saved,
                f"predicted from the links and codecs that were measured: {spent(own)} becomes {spent(there)}{lossy}",
            )
    replicas = int(figures.planned.get("replicas") or 1)
    parts = figures.parts
    alone = replicas * (figures.computing + parts.get("data", 0.0)) + parts.get("optimizer", 0.0)
    if alone < 0.95 * whole:
        return (
            "replicas=1",
            alone,
            f"one worker computes what {replicas} do in {spent(alone)}, with nobody to agree with",
        )
    batch = int(figures.planned.get("batch") or 1)
    return (
        f"train.batch={2 * batch}, or a faster link",
        whole - seconds / 2,
        "one exchange for twice as many samples",
    )


def straggler(figures: Figures) -> Cause | None:
    """A rank that works more slowly than the others, who wait for it or do its share."""
    rates = {rank.rank: rate for rank in figures.ranks if (rate := rank.rate) is not None}
    if len(rates) < 2:
        return None
    slow = min(rates, key=lambda rank: rates[rank])
    others = statistics.median(rate for rank, rate in rates.items() if rank != slow)
    if rates[slow] > _SLOW * others:
        return None
    samples = sum(rank.samples / max(1, len(rank.steps)) for rank in figures.ranks)
    as_others = samples / (sum(rates.values()) - rates[slow] + others)
    seconds = figures.slowest - as_others
    if seconds <= 0:
        return None
    found = next(rank for rank in figures.ranks if rank.rank == slow)
    rest = [rank for rank in figures.ranks if rank is not found]
    evidence = [
        f"rank {slow} works through {words.rate(rates[slow])} samples/s, the others through {words.rate(others)}",
        f"a step waits {spent(figures.slowest)} for the last rank; {spent(as_others)} if rank {slow} were as fast",
    ]
    if (part := _differs(found, rest)) is not None:
        evidence.append(part)
    starved = None
    busy, elsewhere = found.busy, [rank.busy for rank in rest if rank.busy is not None]
    if busy is not None and elsewhere:
        usual = statistics.median(elsewhere)
        evidence.append(
            f"it had a processor in {words.percent(busy)} of the time it worked, the others in {words.percent(usual)}"
        )
        starved = busy < _STARVED * usual
    whole = figures.seconds
    if starved:
        change = (
            f"stop what keeps rank {slow} from its core (it is held up, not busier), or start it elsewhere"
        )
    elif figures.planned.get("spread") == "even" and figures.planned.get("membership") == "elastic":
        by_speed = samples / sum(rates.values())
        return Cause(
            "straggler",
            seconds,
            seconds / whole,
            tuple(evidence),
            "sync.shares=measured",
            whole - (figures.slowest - by_speed),
            "samples go by speed, so that all are done at once",
        )
    else:
        change = f"a machine for rank {slow} that is as fast as the others', or do without it"
    return Cause(
        "straggler",
        seconds,
        seconds / whole,
        tuple(evidence),
        change,
        whole - seconds,
        f"a step in which rank {slow} is as fast as the others",
    )


def _differs(slow: RankSteps, rest: list[RankSteps]) -> str | None:
    """Which of its parts takes it longest beyond the others'."""
    found: list[tuple[float, str]] = []
    for part in ("data", "forward", "backward"):
        own, theirs = slow.mean(part), [x for rank in rest if (x := rank.mean(part)) is not None]
        if own is not None and theirs:
            usual = statistics.median(theirs)
            name = "loading" if part == "data" else part
            found.append((own - usual, f"{name} takes it {spent(own)}, the others {spent(usual)}"))
    return max(found)[1] if found else None
