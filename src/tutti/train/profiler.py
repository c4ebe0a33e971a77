"""Beside the steps of a training: which of them are measured, and which are traced by torch's profiler.

The profiler slows steps down, some parts more than others. So what a step takes is found in steps that nobody looks
into, and those that are traced afterwards say only what it consists of.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, schedule

from tutti.config import Config
from tutti.core.events import EventWriter
from tutti.hardware import probe_memory
from tutti.hardware.counters import read_counters

#: Operators that an event lists, the heaviest first.
_LISTED = 40
#: Matrix products that are timed in other number formats, and how often each: the best counts.
_PRODUCTS, _REPEATS = 3, 5
#: Operators that are timed to learn what one costs that has next to nothing to compute.
_SMALL_OPERATORS = 200


@dataclass(frozen=True)
class Profiling:
    """Steps in their order: `warm_up`, then `measured`, then `traced`. Picklable."""

    warm_up: int
    measured: int
    traced: int

    @property
    def steps(self) -> int:
        """All of them, with one in which the tracer warms up, and one that ends it all: what is saved and validated
        after the last step belongs to none that is looked at."""
        return self.warm_up + self.measured + self.traced + 2


def shortened(config: Config, plan: Profiling) -> Config:
    """`config` for a run of no more than the steps of `plan`: validated and saved once, after the last; rounds so short
    that one ends among the measured steps."""
    sync = config.sync
    updates: dict[str, Any] = {"synchronous_steps": 0}
    if sync.policy in ("local_sgd", "diloco") and sync.fragments == 1 and not sync.overlap:
        assert not isinstance(sync.every, str), "decided before a worker starts"
        updates["every"] = min(sync.every, plan.measured)
    steps = plan.steps
    return config.model_copy(
        update={
            "sync": sync.model_copy(update=updates),
            "train": config.train.model_copy(update={"steps": steps, "patience": None}),
            "evaluate": config.evaluate.model_copy(update={"every": steps}),
            "checkpoint": config.checkpoint.model_copy(update={"every": steps}),
        }
    )


class StepProfiler:
    """Told before every step; says in events `profile` where it is, and what it found."""

    def __init__(self, plan: Profiling, device: torch.device, events: EventWriter, directory: Path) -> None:
        """`directory`: where the trace goes, as `rank-N.json.gz`."""
        self._plan, self._device, self._events = plan, device, events
        self._trace = directory / f"rank-{events.rank}.json.gz"
        self._steps = 0
        self._torch: Any = None

    def before_step(self) -> bool:
        """A step is about to begin. Returns whether to validate after it: once while nothing is measured, because the
        first validation loads what all later ones have."""
        plan, step = self._plan, self._steps
        self._steps += 1
        if step == plan.warm_up:
            self._say("measuring")
        elif step == plan.warm_up + plan.measured:
            self._begin_trace()
        elif self._torch is not None:
            self._torch.step()
        return step == 0

    def close(self) -> None:
        """The run has ended, perhaps before all was seen."""
        if self._plan.warm_up < self._steps <= self._plan.warm_up + self._plan.measured:
            self._say("tracing")
        if self._torch is not None:
            self._torch.stop()
            self._torch = None

    def _begin_trace(self) -> None:
        self._say("tracing", operator_seconds=operator_seconds(self._device))
        on_cuda = self._device.type == "cuda"
        activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if on_cuda else [])
        self._torch = profile(
            activities=activities,
            schedule=schedule(wait=0, warmup=1, active=self._plan.traced, repeat=1),
            on_trace_ready=self._found,
            record_shapes=True,
            with_flops=True,
        )
        self._torch.start()

    def _say(self, phase: str, **more: Any) -> None:
        memory = probe_memory()
        self._events.write(
            "profile",
            phase=phase,
            counters=asdict(read_counters()),
            memory_bytes=memory.limit_bytes or memory.total_bytes,
            available_bytes=memory.available_bytes,
            device=self._device.type,
            threads=torch.get_num_threads(),
            **self._accelerator_memory(),
            **more,
        )

    def _accelerator_memory(self) -> dict[str, int]:
        if self._device.type != "cuda":
            return {}
        return {
            "device_peak_bytes": torch.cuda.max_memory_allocated(self._device),
            "device_memory_bytes": torch.cuda.mem_get_info(self._device)[1],
        }

    def _found(self, traced: Any) -> None:
        self._trace.parent.mkdir(parents=True, exist_ok=True)
        traced.export_chrome_trace(str(self._trace))
        found = summarise_trace(traced, self._plan.traced)
        self._events.write(
            "profile",
            phase="traced",
            trace=self._trace.name,
            products=time_products(heaviest_products(traced), self._device),
            **found,
        )


def summarise_trace(traced: Any, steps: int) -> dict[str, Any]:
    """What stands in a trace of `steps` steps, for one step: its `seconds` while it was traced; `operators`, how many
    there are that call no others; `flops` of matrix products and convolutions; `device_seconds` that an accelerator
    was busy; `heaviest` operators by their own seconds."""
    events = [event for event in traced.events() if not event.name.startswith("ProfilerStep")]
    leaves = sum(1 for event in events if event.name.startswith("aten::") and not event.cpu_children)
    whole = [event for event in traced.events() if event.name.startswith("ProfilerStep")]
    averages = [
        one
        for one in traced.key_averages(group_by_input_shape=True)
        if not one.key.startswith("ProfilerStep")
    ]
    rows: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0, 0.0])
    for one in averages:
        found = rows[one.key, _shapes(one.input_shapes)]
        for place, value in enumerate(
            (one.count, one.self_cpu_time_total / 1e6, one.self_device_time_total / 1e6, one.flops or 0)
        ):
            found[place] += value / steps
    heaviest = sorted(rows.items(), key=lambda row: -max(row[1][1], row[1][2]))
    return {
        "steps": len(whole),
        "seconds": sum(event.time_range.elapsed_us() for event in whole) / 1e6 / max(1, len(whole)),
        "operators": round(leaves / steps),
        "own_seconds": sum(row[1] for row in rows.values()),
        "device_seconds": sum(row[2] for row in rows.values()),
        "flops": sum(row[3] for row in rows.values()),
        "products_seconds": sum(
            max(row[1], row[2]) for (name, _), row in rows.items() if is_matrix_product(name)
        ),
        "heaviest": [
            {"name": name, "shapes": shapes, "calls": row[0], "seconds": row[1], "device_seconds": row[2]}
            for (name, shapes), row in heaviest[:_LISTED]
        ],
    }


def is_matrix_product(operator: str) -> bool:
    """Whether `operator` multiplies matrices: nothing that a compiler could make cheaper by fusing it with others."""
    words = ("mm", "conv", "scaled_dot_product", "attention", "gemm", "linear")
    return operator.startswith(("aten::", "mkldnn::", "tutti::")) and any(word in operator for word in words)


def operator_seconds(device: torch.device) -> float:
    """Seconds of one operator, forward or backward, that has a single number to compute: what it costs to call one."""
    number = torch.ones(1, device=device, requires_grad=True)
    times = []
    for _ in range(3):  # the best of several: a busy moment must not decide
        began = time.perf_counter()
        result = number
        for _ in range(_SMALL_OPERATORS):
            result = result * 1.0001
        result.backward()  # type: ignore[no-untyped-call]
        times.append((time.perf_counter() - began) / (2 * _SMALL_OPERATORS))
        number.grad = None
    return min(times)


def heaviest_products(traced: Any) -> list[tuple[int, int, int]]:
    """Rows, inner and columns of the matrix products on which a trace has the most time spent, the heaviest first."""
    found: dict[tuple[int, int, int], float] = defaultdict(float)
    for one in traced.key_averages(group_by_input_shape=True):
        if one.key in ("aten::mm", "aten::addmm") and one.input_shapes:
            left, right = one.input_shapes[-2:] if one.key == "aten::mm" else one.input_shapes[1:3]
            if len(left) == len(right) == 2 and min(*left, *right) > 0:
                seconds = max(one.self_cpu_time_total, one.self_device_time_total)
                found[left[0], left[1], right[1]] += seconds
    return sorted(found, key=lambda sizes: -found[sizes])[:_PRODUCTS]


def time_products(sizes: Iterable[tuple[int, int, int]], device: torch.device) -> dict[str, float]:
    """Seconds of one product of each of `sizes` by number format: `fp32`, and `bf16` of operands of which one comes in
    fp32, as under autocast. Empty where there are none."""
    best: dict[str, float] = {}
    with torch.inference_mode():
        for rows, inner, columns in sizes:
            left, right = torch.rand(rows, inner, device=device), torch.rand(inner, columns, device=device)
            small = right.bfloat16()
            ways: dict[str, Callable[[], Tensor]] = {
                "fp32": partial(torch.mm, left, right),
                "bf16": lambda left=left, small=small: left.bfloat16() @ small,  # type: ignore[misc]
            }
            times = {name: min(_timed(way, device) for _ in range(_REPEATS)) for name, way in ways.items()}
            best = {name: best.get(name, 0.0) + seconds for name, seconds in times.items()}
    return best


def _timed(way: Callable[[], Tensor], device: torch.device) -> float:
    """Seconds of `way`; the one before warms up."""
    for _ in range(2):
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        began = time.perf_counter()
        way()
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
    return time.perf_counter() - began


def _shapes(shapes: Any) -> str:
    """`[32, 64] [64, 64]`: of the operands that have one."""
    return " ".join(str(list(shape)) for shape in shapes or () if shape)
