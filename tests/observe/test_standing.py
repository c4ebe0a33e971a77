"""Which steps stand after restarts: the same as by the definition, event by event, on histories drawn at random."""

from __future__ import annotations

import random
import sys
from typing import Any

import pytest

from tutti.observe.standing import Standing
from tutti.observe.starts import made_together, restarted_alone

Event = dict[str, Any]


def drawn(seed: int) -> dict[str, list[Event]]:
    dice = random.Random(seed)
    together = dice.random() < 0.3

    def some(kind: str, count: int) -> list[Event]:
        found: list[Event] = []
        for _ in range(count):
            event: Event = {"kind": kind, "time": dice.randrange(100), "rank": dice.randrange(3)}
            event |= {"step": dice.randrange(50)} if kind != "run_started" else {}
            if kind == "run_started":
                event |= {
                    "attempt": dice.randrange(3),
                    "resumed_from": dice.randrange(50),
                    "transport": "elastic",
                }
                event |= {"policy": "allreduce" if together else "diloco"}
            if kind == "serving":
                event |= {"push": dice.randrange(60), "restored": dice.random() < 0.5}
            if kind == "step" and dice.random() < 0.3:
                event["push"] = dice.randrange(60)
            found.append(event)
        return sorted(found, key=lambda one: one["time"])

    kinds = {"run_started": 8, "healed": 6, "membership": 20, "serving": 2, "step": 60}
    return {kind: some(kind, count) for kind, count in kinds.items()}


def mark(events: dict[str, list[Event]], start: Event) -> int:
    if not restarted_alone(start):
        return int(start["resumed_from"])
    own = [
        e["time"] for e in events["run_started"] if e["rank"] == start["rank"] and e["time"] > start["time"]
    ]
    end = min(own, default=1e9)
    if not any(e["rank"] == start["rank"] and start["time"] <= e["time"] < end for e in events["healed"]):
        return int(start["resumed_from"])
    if made_together(start):
        return sys.maxsize
    met = [
        e["step"] for e in events["membership"] if e["rank"] == start["rank"] and e["time"] < start["time"]
    ]
    return max(met, default=0)


def survives(events: dict[str, list[Event]], event: Event) -> bool:
    push = event.get("push")
    for server in events["serving"]:
        if (
            push is not None
            and server["restored"]
            and server["time"] > event["time"]
            and push > server["push"]
        ):
            return False
    for start in events["run_started"]:
        concerned = not restarted_alone(start) or (push is None and start["rank"] == event["rank"])
        if start["time"] > event["time"] and concerned and event["step"] > mark(events, start):
            return False
    return True


@pytest.mark.parametrize("seed", range(60))
def test_what_stands_is_what_no_later_start_went_back_behind(seed: int) -> None:
    events = drawn(seed)
    standing = Standing(*(events[kind] for kind in ("run_started", "healed", "membership", "serving")))
    assert [standing.mark(start) for start in events["run_started"]] == [
        mark(events, start) for start in events["run_started"]
    ]
    for event in events["step"]:
        assert standing.survives(event) == survives(events, event), event
        before = [start for start in events["run_started"] if start["time"] <= event["time"]]
        assert standing.together(event) == (not before or made_together(before[-1]))


def test_the_drawn_histories_are_of_all_sorts() -> None:
    """Else the comparison would say nothing."""
    found = [survives(events, event) for events in map(drawn, range(60)) for event in events["step"]]
    assert 0.05 < sum(found) / len(found) < 0.95
    alone = [restarted_alone(start) for events in map(drawn, range(60)) for start in events["run_started"]]
    assert True in alone and False in alone
