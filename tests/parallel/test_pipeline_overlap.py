"""Replicas sum up gradients while a pipeline's last backward pass runs, and not before it."""

from __future__ import annotations

from typing import Any

import torch
from families import VOCABULARY, blueprint

from benchmarks.split_step import SplitStep
from ranks import run_ranks
from tutti.config import LayoutConfig
from tutti.parallel import pipeline

MICRO_BATCHES, SEQUENCE = 4, 8


def order_of_events(rank: int, layouts: list[dict[str, Any]]) -> list[list[str]]:
    """`pass`: a backward pass ended; `sum`: an all-reduce of gradients began; `step`: backward as a whole is over."""
    found = []
    for layout in layouts:
        events: list[str] = []
        step = SplitStep(
            blueprint("llama").architecture, LayoutConfig(**layout), micro_batch=2, sequence=SEQUENCE,
            samples=4 * MICRO_BATCHES, bucket_bytes=4000,
        )  # fmt: skip
        policy = step.policy
        start, before = policy.transport.start_all_reduce, policy.before_step
        run = pipeline._Stage.backward_one_chunk

        def summed(tensor: Any, start: Any = start, events: list[str] = events) -> Any:
            events.append("sum")
            return start(tensor)

        def ended(totals: Any, before: Any = before, events: list[str] = events) -> Any:
            events.append("step")
            return before(totals)

        def passed(self: Any, *inputs: Any, run: Any = run, events: list[str] = events, **named: Any) -> None:
            run(self, *inputs, **named)
            events.append("pass")

        policy.transport.start_all_reduce, policy.before_step = summed, ended  # type: ignore[method-assign]
        pipeline._Stage.backward_one_chunk = passed  # type: ignore[method-assign]
        ids = torch.randint(VOCABULARY, (2, SEQUENCE), generator=torch.Generator().manual_seed(0))
        step([{"input_ids": ids, "labels": ids}] * MICRO_BATCHES)
        pipeline._Stage.backward_one_chunk = run  # type: ignore[method-assign]
        found.append(events)
    return found


def test_buckets_leave_during_the_last_backward_pass_of_a_pipeline() -> None:
    layouts = [{"pipeline": 2}, {"pipeline": 2, "schedule": "interleaved"}]
    for found in run_ranks(4, order_of_events, layouts):
        for layout, events in zip(layouts, found, strict=True):
            stages = 2 if "schedule" in layout else 1
            passes = [place for place, event in enumerate(events) if event == "pass"]
            assert len(passes) == MICRO_BATCHES * stages
            early = events.index("sum")
            # Of one stage: between the last pass but one and the last; of several: before the last one's last.
            assert passes[-2] < early < passes[-1] if stages == 1 else early < passes[-1], events
            assert events.index("sum") < events.index("step")
