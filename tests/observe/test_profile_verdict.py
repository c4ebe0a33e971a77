"""The verdict on figures that were made by hand: for each bottleneck a run that has it, and nothing else."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest

from tutti.observe.profile import KINDS, Figures, Verdict, judge, profile_json, profile_page, read_profile

Events = list[dict[str, Any]]

#: Seconds of a step that mostly computes: 0.01 + 0.30 + 0.50 + 0.01 + 0.05 + 0.01 besides.
PLAIN = {"data": 0.01, "forward": 0.3, "backward": 0.5, "exchange": 0.01, "optimizer": 0.05, "sync": 0.0}
PLANNED = {
    "kind_of_job": "text",
    "replicas": 2,
    "shares": 2,
    "batch": 16,
    "micro_batch": 8,
    "precision": "fp32",
    "compile": False,
    "recompute": "none",
    "offload": "none",
    "policy": "allreduce",
    "drifts": False,
    "spread": "measured",
    "membership": "elastic",
    "rounds_held": 1.0,
    "checkpoint_every": 100,
    "validate_every": 100,
    "threads": 1,
    "cores": 2,
    "cache": "cache",
}
NOTHING = {
    "user_seconds": 0.0,
    "system_seconds": 0.0,
    "delayed_seconds": 0.0,
    "minor_faults": 0,
    "major_faults": 0,
    "read_bytes": 0,
    "written_bytes": 0,
    "swapped_bytes": 0,
    "stalled_seconds": 0.0,
}
STEPS = 10


def events(
    *ranks: dict[str, float],
    samples: tuple[int, ...] = (8, 8),
    used: tuple[dict[str, float], ...] = ({}, {}),
    planned: dict[str, Any] | None = None,
    traced: dict[str, Any] | None = None,
    told: dict[str, Any] | None = None,
    ways: dict[str, Any] | None = None,
) -> Events:
    """What two ranks write whose steps all take `ranks` (each beside PLAIN), and the launcher."""
    found: Events = [
        {
            "kind": "run_started",
            "rank": 0,
            "world_size": len(ranks),
            "peak_flops": 100e9,
            "flops_per_token": 1e6,
            "tokens_per_step": 60_000,
        }
    ]
    for rank, changes in enumerate(ranks):
        parts = PLAIN | changes
        alone = parts["data"] + parts["forward"] + parts["backward"]
        seconds = sum(parts.values())
        busy = {"user_seconds": (alone + parts["optimizer"]) * STEPS} | used[rank]
        shared = {"rank": rank, "replica": rank}
        more = {"threads": 1, "device": "cpu", "memory_bytes": 16_000_000_000} | (told or {})
        found.append(
            _step(shared, 1, {name: 9 * x for name, x in parts.items()}, 9 * alone, 0, samples[rank])
        )
        found.append(shared | {"kind": "profile", "phase": "measuring", "counters": NOTHING})
        found += [
            _step(shared, 2 + n, parts | {"seconds": seconds}, alone, 1000 * (n + 1), samples[rank])
            for n in range(STEPS)
        ]
        found.append(shared | more | {"kind": "profile", "phase": "tracing", "counters": NOTHING | busy})
        found.append(_step(shared, 2 + STEPS, {name: 5 * x for name, x in parts.items()}, 5 * alone, 0, 8))
        if traced is not None:
            found.append(shared | {"kind": "profile", "phase": "traced"} | traced)
        found.append(shared | {"kind": "memory", "peak_memory_bytes": 1_000_000_000})
    launcher = {"rank": -1, "replica": 0, "kind": "profile"}
    found.append(launcher | {"phase": "planned"} | PLANNED | (planned or {}))
    if ways is not None:
        found.append(launcher | {"phase": "ways"} | ways)
    return found


def _step(
    shared: dict[str, int], step: int, parts: dict[str, float], alone: float, sent: int, samples: int
) -> dict[str, Any]:
    names = {"data": "wait_data_seconds", "seconds": "seconds"}
    return {
        "kind": "step",
        **shared,
        "step": step,
        "cursor": [[0, samples // 2], [100, 100 + samples - samples // 2]],
        "bytes_sent": sent,
        "alone_seconds": alone,
        **{names.get(name, f"{name}_seconds"): seconds for name, seconds in parts.items()},
    }


def read(found: Events) -> Figures:
    figures = read_profile(found)
    assert figures is not None
    return figures


def judged(found: Events) -> Verdict:
    return judge(read(found))


def test_parts_are_of_the_measured_steps_alone_and_add_up() -> None:
    figures = read(events({}, {}))
    assert figures.seconds == pytest.approx(0.87)
    assert figures.parts == pytest.approx(
        {
            "data": 0.01,
            "forward": 0.3,
            "backward": 0.5,
            "optimizer": 0.05,
            "waiting": 0.0,
            "communication": 0.01,
            "other": 0.0,
            "checkpoint": 0.0,
            "validation": 0.0,
        }
    )
    assert figures.mfu == pytest.approx(60e9 / 0.87 / 100e9)
    assert figures.utilisation == pytest.approx(60e9 / 0.8 / 100e9)
    spoiled = replace(figures, start=figures.start | {"peak_flops": 1e9})
    assert spoiled.mfu is None, "faster than the peak: the peak was measured in a busy moment"
    assert [rank.sent_bytes for rank in figures.ranks] == [10_000, 10_000]
    assert [rank.rate for rank in figures.ranks] == pytest.approx([8 / 0.81, 8 / 0.81])
    assert [rank.busy for rank in figures.ranks] == pytest.approx([1.0, 1.0])


def test_a_run_that_computes_is_bound_by_computing() -> None:
    verdict = judged(events({}, {}))
    assert verdict.bottleneck.kind == "compute" and not verdict.others
    assert verdict.bottleneck.share == pytest.approx(0.85 / 0.87)
    assert verdict.bottleneck.expected_seconds == pytest.approx(0.87 - 0.8 / 2)


def test_slow_loading() -> None:
    verdict = judged(events({"data": 0.9}, {"data": 0.9}))
    assert (verdict.bottleneck.kind, verdict.others[-1].kind) == ("data", "compute")
    assert verdict.bottleneck.expected_seconds == pytest.approx(0.86)
    assert "memory" in verdict.bottleneck.change
    read_from_disk = {"read_bytes": 50e6}
    on_disk = judged(events({"data": 0.9}, {"data": 0.9}, used=(read_from_disk, read_from_disk)))
    assert on_disk.bottleneck.change.startswith("data.cache=")
    assert any("11.1 MB/s" in line for line in on_disk.bottleneck.evidence)  # 2 × 50 MB ÷ 10 ÷ 0.9 s


WAYS = {
    "link_bytes_per_second": 1e6,
    "link_latency_seconds": 0.001,
    "own_setting": "{policy: allreduce, codec: fp32}",
    "own_seconds": 2.0,
    "best": {"setting": "{policy: allreduce, codec: int8}", "seconds": 1.1, "price": 1.01},
}


def test_a_slow_link() -> None:
    slow = {"exchange": 1.2}
    verdict = judged(events(slow, slow, ways=WAYS))
    assert verdict.bottleneck.kind == "communication"
    assert verdict.bottleneck.change == "sync={policy: allreduce, codec: int8}"
    assert verdict.bottleneck.expected_seconds == pytest.approx(2.06 - 0.9)
    assert any("1 KB a step" in line for line in verdict.bottleneck.evidence)


def test_where_nothing_else_is_better_one_worker_may_be() -> None:
    slow = {"exchange": 1.2}
    ways = WAYS | {"best": {"setting": WAYS["own_setting"], "seconds": 2.0, "price": 1.0}}
    alone = judged(events(slow, slow, ways=ways)).bottleneck
    assert alone.change == "replicas=1"
    assert alone.expected_seconds == pytest.approx(2 * 0.81 + 0.05)
    faster = judged(events({"exchange": 0.4}, {"exchange": 0.4}, ways=ways)).bottleneck
    assert faster.change.startswith("train.batch=32") and faster.expected_seconds == pytest.approx(1.26 - 0.2)
    dear = WAYS | {
        "best": {"setting": "{policy: diloco, codec: int4, every: 10}", "seconds": 1.0, "price": 3.0}
    }
    assert judged(events(slow, slow, ways=dear)).bottleneck.change == "replicas=1"


def test_a_straggler_is_not_a_slow_link() -> None:
    waits = {"exchange": 0.82}  # rank 0 is done 0.81 s before rank 1
    slow = {"data": 0.02, "forward": 0.6, "backward": 1.0, "exchange": 0.01}
    verdict = judged(events(waits, slow, used=({}, {"user_seconds": 10 * 0.84})))
    assert verdict.bottleneck.kind == "straggler"
    assert "rank 1" in verdict.bottleneck.change and "held up" in verdict.bottleneck.change
    assert verdict.bottleneck.seconds == pytest.approx(0.81)
    assert verdict.bottleneck.expected_seconds == pytest.approx((0.82 + 0.86 + 1.63 + 0.05) / 2 - 0.81)
    figures = read(events(waits, slow))
    assert figures.parts["waiting"] == pytest.approx(0.81 / 2)
    assert figures.parts["communication"] == pytest.approx(0.01)
    assert "communication" not in [cause.kind for cause in verdict.others]


def test_a_straggler_that_works_as_hard_gets_fewer_samples() -> None:
    waits = {"exchange": 0.82}
    slow = {"data": 0.02, "forward": 0.6, "backward": 1.0, "exchange": 0.01}
    even = judged(events(waits, slow, planned={"spread": "even"})).bottleneck
    assert (even.kind, even.change) == ("straggler", "sync.shares=measured")
    whole = (0.82 + 0.86 + 1.63 + 0.05) / 2
    assert even.expected_seconds == pytest.approx(whole - (1.62 - 16 / (8 / 0.81 + 8 / 1.62)))
    assert judged(events(waits, slow)).bottleneck.change.startswith("a machine for rank 1")


def test_who_is_given_fewer_samples_is_a_straggler_still() -> None:
    even = {"forward": 0.4, "backward": 0.67}  # both are done at once: rank 1 with half of rank 0's samples
    verdict = judged(events(even, even, samples=(12, 4)))
    assert verdict.bottleneck.kind == "straggler"
    assert verdict.bottleneck.seconds == pytest.approx(1.08 - 16 / (2 * 12 / 1.08))


def test_chance_is_no_straggler() -> None:
    verdict = judged(events({"exchange": 0.1}, {"forward": 0.39}))
    assert verdict.bottleneck.kind == "compute"
    assert "straggler" not in [cause.kind for cause in verdict.others]


def test_rounds_wait_where_they_meet_and_count_as_often_as_they_are_held() -> None:
    apart = {"exchange": 0.0, "sync": 0.5}
    planned = {"policy": "diloco", "drifts": True, "rounds_held": 0.2}
    figures = read(events(apart, apart, planned=planned))
    assert figures.parts["communication"] == pytest.approx(0.1)
    assert figures.seconds == pytest.approx(0.96)
    slow = {"forward": 0.7, "exchange": 0.0, "sync": 0.1}
    figures = read(events(apart, slow, planned=planned))
    assert figures.parts["waiting"] == pytest.approx(0.4 * 0.2 / 2)
    assert figures.parts["communication"] == pytest.approx(0.1 * 0.2)


def test_standing_still_for_memory() -> None:
    stalled = {"stalled_seconds": 6.0, "major_faults": 5000}
    verdict = judged(events({}, {}, used=(stalled, stalled)))
    assert verdict.bottleneck.kind == "memory"
    assert verdict.bottleneck.seconds == pytest.approx(0.6), "both ranks tell of the same machine"
    assert verdict.bottleneck.change == "train.micro_batch=4"
    assert verdict.bottleneck.expected_seconds == pytest.approx(0.27)
    assert any("1,000 times a step" in line for line in verdict.bottleneck.evidence)
    moving = stalled | {"system_seconds": 1.0}  # of each rank
    offloaded = judged(events({}, {}, used=(moving, moving), planned={"offload": "all"})).bottleneck
    assert offloaded.seconds == pytest.approx(0.7) and offloaded.change.startswith("more memory")
    alone = judged(events({}, {}, used=(stalled, stalled), planned={"micro_batch": 1})).bottleneck
    assert alone.change == "memory.recompute=full" and alone.expected_seconds == pytest.approx(0.57)
    unknown = {"stalled_seconds": 0.0, "major_faults": 10, "system_seconds": 5.0}
    found = events({}, {}, used=(unknown, unknown))
    for event in found:
        if "counters" in event:
            event["counters"] = {**event["counters"], "stalled_seconds": None}
    assert judged(found).bottleneck.seconds == pytest.approx(0.5)


def test_computing_twice_though_there_is_room() -> None:
    verdict = judged(events({}, {}, planned={"recompute": "full"}))
    assert (verdict.bottleneck.kind, verdict.bottleneck.change) == ("memory", "memory.recompute=none")
    assert verdict.bottleneck.expected_seconds == pytest.approx(0.57)
    full = events({}, {}, planned={"recompute": "full"}, told={"memory_bytes": 3_000_000_000})
    assert judged(full).bottleneck.kind == "compute", "2 GB of 3 GB"


SMALL = {"operators": 50_000, "own_seconds": 0.8, "products_seconds": 0.3, "steps": 3, "seconds": 1.0}


def test_asking_takes_longer_than_computing() -> None:
    found = events({}, {}, traced=SMALL, told={"operator_seconds": 1e-5})
    verdict = judged(found)
    assert verdict.bottleneck.kind == "host"
    assert verdict.bottleneck.seconds == pytest.approx(0.5)
    assert verdict.bottleneck.change == "train.batch=32"
    pieces = judged(events({}, {}, traced=SMALL, told={"operator_seconds": 1e-5}, planned={"micro_batch": 2}))
    assert pieces.bottleneck.change == "train.micro_batch=8"
    assert pieces.bottleneck.expected_seconds == pytest.approx(0.87 - 0.5 * 3 / 4)
    device = SMALL | {"device_seconds": 0.6}
    waiting = judged(events({}, {}, traced=device, told={"operator_seconds": 1e-5})).bottleneck
    assert (waiting.kind, waiting.seconds) == ("host", pytest.approx(0.25))
    busy = SMALL | {"device_seconds": 0.8}
    assert judged(events({}, {}, traced=busy, told={"operator_seconds": 1e-5})).bottleneck.kind == "compute"


def test_what_makes_computing_cheaper() -> None:
    few = SMALL | {"operators": 100}
    timed = few | {"products": {"fp32": 0.04, "bf16": 0.01}}
    faster = judged(events({}, {}, traced=timed)).bottleneck
    assert (faster.kind, faster.change) == ("compute", "train.precision=bf16")
    assert faster.expected_seconds == pytest.approx(0.87 - 0.8 * (0.3 / 0.8) * (1 - 1 / 4))
    same = judged(events({}, {}, traced=few | {"products": {"fp32": 0.04, "bf16": 0.035}})).bottleneck
    assert "half the size" in same.change
    taken = judged(events({}, {}, traced=timed, planned={"precision": "bf16"})).bottleneck
    assert "half the size" in taken.change
    idle = judged(events({}, {}, planned={"cores": 8})).bottleneck
    assert idle.change == "replicas=8" and idle.expected_seconds == pytest.approx(0.87 - 0.8 * 3 / 4)
    stepping = judged(events({"optimizer": 1.0}, {"optimizer": 1.0})).bottleneck
    assert stepping.change == "train.batch=32" and stepping.expected_seconds == pytest.approx(1.82 - 0.5)
    slow = events({}, {}, traced=few)
    slow[0]["flops_per_token"] = 2e5
    assert judged(slow).bottleneck.change == "train.compile=true"


@pytest.mark.parametrize(
    ("kind", "key", "setting"),
    [
        ("checkpoint", "blocked_seconds", "checkpoint.every=80"),
        ("validation", "seconds", "evaluate.every=80"),
    ],
)
def test_saves_and_validations_count_by_how_often_they_are_due(kind: str, key: str, setting: str) -> None:
    found = events({}, {}, planned={"checkpoint_every": 10, "validate_every": 10})
    found += [
        {"kind": kind, "rank": 0, "replica": 0, "step": s, key: took} for s, took in ((1, 90.0), (18, 30.0))
    ]
    verdict = judged(found)
    assert verdict.bottleneck.kind == kind
    assert verdict.bottleneck.seconds == pytest.approx(3.0)
    assert verdict.bottleneck.change == setting  # 78 % ÷ 8 is less than a tenth of the step
    assert verdict.bottleneck.expected_seconds == pytest.approx(0.87 + 3 / 8)


def test_a_pipeline_goes_both_ways_at_once_and_one_worker_has_nobody_to_wait_for() -> None:
    found = events({}, samples=(16,), used=({},), planned={"replicas": 1})
    for event in found:
        event.pop("forward_seconds", None)
        event.pop("backward_seconds", None)
    verdict = judged(found)
    assert verdict.bottleneck.kind == "compute" and read(found).computing == pytest.approx(0.8)
    assert not verdict.others


def test_nothing_measured_is_no_figures() -> None:
    assert read_profile([{"kind": "run_started", "rank": 0}]) is None


def test_pages_say_the_verdict_and_json_has_all_of_it() -> None:
    found = events({"data": 0.9}, {"data": 0.9}, traced=copy.deepcopy(SMALL), ways=WAYS)
    figures = read(found)
    verdict = judge(figures)
    page = profile_page("mine", figures, verdict)
    assert "**data**" in page and verdict.bottleneck.change in page and "| 1 |" in page
    plain = profile_json("mine", figures, verdict)
    assert plain["bottleneck"] == "data" and plain["bottleneck"] in KINDS
    assert sum(plain["parts"].values()) == pytest.approx(plain["step_seconds"])
    assert plain["ways"]["best"]["price"] == 1.01 and "rank" not in plain["planned"]
