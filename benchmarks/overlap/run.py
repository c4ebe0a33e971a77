"""Overlap: how much of the communication of `allreduce` lies inside the backward pass, from a profiler trace.

    make bench-overlap                      (or: python -m benchmarks.overlap.run --help)

Two ranks (gloo, one thread each) make a few steps of two micro-batches with Tutti's buckets under torch.profiler.
In the trace of each rank, `gloo:all_reduce` says from when to when a bucket was on its way, and the events of the
autograd engine from when to when backward ran. Only the last micro-batch's backward may communicate: before it, a
gradient is not complete. The bucket with the embedding is completed by backward's very last operation, so it, at
least, always ends after it.
"""

from __future__ import annotations

import argparse
import statistics
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile

from benchmarks.common import describe_machine, first_cores, machine_line, pin, table, write_result
from benchmarks.ranks import on_ranks

HERE = Path(__file__).resolve().parent
RANKS, VOCABULARY, SEQUENCE = 2, 4096, 256

Interval = tuple[float, float]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", default="5M", help="the model's size, by Tutti's dial")
    parser.add_argument("--samples", type=int, default=4, help="samples of a micro-batch")
    parser.add_argument("--bucket-mb", type=float, default=2.0)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--cores", default=None, help="two cores, e.g. 0,1 (default: the first two)")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    options = parser.parse_args()
    pin(options.cores or first_cores(RANKS))
    machine = describe_machine()
    ranks = run_ranks(options)
    data = {
        "benchmark": "overlap",
        "machine": machine,
        "task": {
            "size": options.size,
            "sequence": SEQUENCE,
            "micro_batch": options.samples,
            "micro_batches": 2,
            "bucket_bytes": round(options.bucket_mb * 1e6),
        },
        "ranks": [summary(steps) for steps in ranks],
        "steps": ranks,
    }
    page = write_result(options.out, "overlap", data, page_of(machine, data))
    print(page.read_text())
    print(f"written to {page}")


# The ranks -----------------------------------------------------------------------------------------------------


def run_ranks(options: argparse.Namespace) -> list[list[dict[str, Any]]]:
    """What `measure` gives on each rank."""
    return on_ranks(RANKS, measure, options.size, options.samples, options.bucket_mb, options.steps)


def measure(rank: int, size: str, samples: int, bucket_mb: float, steps: int) -> list[dict[str, Any]]:
    """Intervals of backward and buckets in each of `steps` steps, in milliseconds from the beginning of backward."""
    from tutti.config.model import ModelConfig
    from tutti.models import build_model
    from tutti.parallel import Split, World
    from tutti.sync import AllReduce, Ledger, Place, StaticTransport
    from tutti.tasks import CausalLanguageModelling
    from tutti.train.precision import LossScale
    from tutti.train.step import Accumulator

    model, _ = build_model(
        ModelConfig(size=size), vocabulary=VOCABULARY, sequence=SEQUENCE, seed=0, end_token=0
    )
    transport = StaticTransport(dist.group.WORLD)
    accumulator = Accumulator(
        Split(CausalLanguageModelling(model.train()), World.alone()),
        AllReduce(
            transport,
            Place(rank, RANKS),
            Ledger(),
            RANKS * 2 * samples,
            bucket_bytes=round(bucket_mb * 1e6),
            everyone=dist.group.WORLD,
        ),
        nominal_targets=RANKS * 2 * samples * SEQUENCE,
        clip=1.0,
        context=nullcontext(),
        loss_scale=LossScale("fp32"),
        seed=0,
    )
    ids = torch.randint(VOCABULARY, (samples, SEQUENCE + 1), generator=torch.Generator().manual_seed(rank))
    batch = {"input_ids": ids[:, :-1].contiguous(), "labels": ids[:, 1:].contiguous()}

    def step() -> None:
        accumulator.run([batch, batch], tokens=0, key=0, stop=False)

    for _ in range(2):
        step()
    found = []
    for _ in range(steps):
        dist.barrier()
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            step()
        found.append(read_trace(profiled.events()))
    return found


def read_trace(events: Any) -> dict[str, Any]:
    """The intervals of one step, in milliseconds from the beginning of the last micro-batch's backward."""

    def intervals(name: str) -> list[Interval]:
        spans = (e.time_range for e in events if e.name.startswith(name))
        return sorted((span.start, span.end) for span in spans)

    forward = max(start for start, _ in intervals("tutti::linear_cross_entropy"))
    nodes = intervals("autograd::engine::evaluate_function")
    last = [node for node in nodes if node[0] > forward]
    began, ended = min(start for start, _ in last), max(end for _, end in last)
    calls = intervals("tutti::all_reduce_bucket")
    # The last all-reduce is that of the totals (loss, number of targets), 32 bytes; it is no bucket.
    buckets = intervals("gloo:all_reduce")[: len(calls)]

    def from_here(span: Interval) -> list[float]:
        return [round((time - began) / 1000, 3) for time in span]

    return {
        "first_backward": from_here((nodes[0][0], max(end for _, end in nodes if end <= forward))),
        "backward": from_here((began, ended)),
        "handed_over": [from_here(call) for call in calls],
        "on_the_way": [from_here(bucket) for bucket in buckets],
    }


# What it means ---------------------------------------------------------------------------------------------------


def summary(steps: list[dict[str, Any]]) -> dict[str, Any]:
    """Of one rank: buckets handed over, begun and ended inside backward, and the share of time on the way in it."""
    return {
        "buckets": len(steps[0]["on_the_way"]),
        **{
            key: statistics.median(count(step) for step in steps)
            for key, count in (
                (
                    "handed_over_inside",
                    lambda step: _inside(step["handed_over"], step["backward"], start=True),
                ),
                ("begun_inside", lambda step: _inside(step["on_the_way"], step["backward"], start=True)),
                ("ended_inside", lambda step: _inside(step["on_the_way"], step["backward"], start=False)),
                ("share_of_time_inside", _share),
            )
        },
        "before_last_backward": max(sum(b < 0 for b, _ in step["handed_over"]) for step in steps),
    }


def _inside(spans: list[list[float]], backward: list[float], *, start: bool) -> int:
    return sum(0 <= span[0 if start else 1] <= backward[1] for span in spans)


def _share(step: dict[str, Any]) -> float:
    """Of the time in which anything is on the way, how much lies inside backward."""
    total = inside = reached = 0.0
    for begin, end in sorted(step["on_the_way"]):
        begin = max(begin, reached)
        if end > begin:
            total += end - begin
            inside += max(0.0, min(end, step["backward"][1]) - begin)
            reached = end
    return inside / total


def page_of(machine: dict[str, Any], data: dict[str, Any]) -> str:
    rows = [
        [
            str(rank),
            str(found["buckets"]),
            *(f"{found[key]:.0f}" for key in ("handed_over_inside", "begun_inside", "ended_inside")),
            f"{100 * found['share_of_time_inside']:.0f} %",
        ]
        for rank, found in enumerate(data["ranks"])
    ]
    task = data["task"]
    early = max(found["before_last_backward"] for found in data["ranks"])
    return "\n".join(
        [
            "# Communication inside backward",
            "",
            machine_line(machine) + ".",
            "",
            f"Llama of {task['size']}, sequence {task['sequence']}, two ranks with one thread each, two micro-batches "
            f"of {task['micro_batch']} samples, buckets of {task['bucket_bytes'] / 1e6:g} MB, gloo; "
            f"{len(data['steps'][0])} steps under torch.profiler, medians.",
            "",
            table(
                [
                    "rank",
                    "buckets",
                    "handed over inside",
                    "begun inside",
                    "ended inside",
                    "of the time on the way",
                ],
                rows,
            ),
            "",
            f"Buckets on the way before the last micro-batch's backward: {early}.",
            "",
            "One step of rank 0, in milliseconds from the beginning of the last backward:",
            "",
            "```",
            *timeline(data["steps"][0][-1]),
            "```",
            "",
            "Repeat: `make bench-overlap`.",
        ]
    )


def timeline(step: dict[str, Any], width: int = 72) -> list[str]:
    """The step as bars of text, one line for backward and one for each bucket."""
    end = max(step["backward"][1], *(stop for _, stop in step["on_the_way"]))

    def bar(name: str, span: list[float], mark: str) -> str:
        first, last = (min(width - 1, int(time / end * width)) for time in span)
        line = " " * first + mark * (last - first + 1)
        return f"{name:>10} |{line:<{width}}| {span[0]:7.1f} to {span[1]:7.1f}"

    return [
        bar("backward", step["backward"], "="),
        *(bar(f"bucket {number}", span, "#") for number, span in enumerate(step["on_the_way"])),
    ]


if __name__ == "__main__":
    main()
