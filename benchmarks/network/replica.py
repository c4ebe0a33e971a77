"""One replica of the network benchmark: a process on a host of its own, that runs every arm in turn.

Prints one line of JSON an arm: seconds of every step, what `sync: auto` would predict, bytes that the meter counted,
bytes that the link counted.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import LlamaConfig

from benchmarks.network.hosts import DEVICE, address
from benchmarks.split_step import SplitStep
from tutti.config import LayoutConfig
from tutti.config.schema import SyncConfig
from tutti.core import Batch
from tutti.sync import StaticTransport, Totals
from tutti.sync.cost import Filled, Measured, step_seconds
from tutti.sync.probe import measure_codecs, measure_links, measure_meeting
from tutti.sync.summing import Buffer
from tutti.sync.transport import Wait

SEQUENCE, VOCABULARY = 128, 2048


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--task", type=json.loads, required=True)
    options = parser.parse_args()
    task = options.task
    torch.set_num_threads(1)
    store = dist.TCPStore(address(0), 29400, task["replicas"], is_master=options.rank == 0)
    dist.init_process_group("gloo", store=store, rank=options.rank, world_size=task["replicas"])
    syncs = {name: SyncConfig(**settings) for name, settings in task["arms"].items()}
    measured = measure(options.rank, task, list(syncs.values()))
    for name, sync in syncs.items():
        expected = {"arm": name, "predicted": step_seconds(sync, [measured])}
        print(json.dumps(expected | run_arm(options.rank, task, sync)), flush=True)
    dist.barrier()
    dist.destroy_process_group()


def measure(rank: int, task: dict[str, Any], syncs: Sequence[SyncConfig]) -> Measured:
    """What workers of `sync: auto` measure, with the task's pace for their own."""
    step, batch = make_step(rank, task, SyncConfig())
    policy, filled = step.policy, list[tuple[Buffer, float]]()
    buckets = policy._buckets  # type: ignore[attr-defined]

    def note(buffer: Buffer) -> Wait:
        filled.append((buffer, time.perf_counter()))
        return lambda: None

    buckets._summing.start = note
    paced = at_pace(step, task["pace_seconds"])
    for _ in range(2):
        filled.clear()
        began = time.perf_counter()
        paced([batch])
    ended = began + task["pace_seconds"]
    found = tuple(
        Filled(tuple(tuple(part.shape) for part in buffer.parts), max(0.0, ended - full))
        for buffer, full in filled
    )
    transport, cpu = StaticTransport(dist.group.WORLD), torch.device("cpu")
    shapes = [shape for bucket in found for shape in bucket.shapes]
    return Measured(
        replica=rank,
        members=task["replicas"],
        compute_seconds=task["pace_seconds"],
        buckets=found,
        links=measure_links(transport, syncs, cpu, shapes),
        meeting_seconds=measure_meeting(transport),
        codecs=measure_codecs(syncs, task["replicas"], shapes, cpu),
    )


def make_step(rank: int, task: dict[str, Any], sync: SyncConfig) -> tuple[SplitStep, Batch]:
    step = SplitStep(
        llama(task["width"], task["layers"]),
        LayoutConfig(),
        micro_batch=task["samples"],
        sequence=SEQUENCE,
        samples=task["samples"] * task["replicas"],
        bucket_bytes=4_000_000,
        sync=sync,
    )
    dice = torch.Generator().manual_seed(rank)
    ids = torch.randint(VOCABULARY, (task["samples"], SEQUENCE + 1), generator=dice)
    return step, {"input_ids": ids[:, :-1].contiguous(), "labels": ids[:, 1:].contiguous()}


def run_arm(rank: int, task: dict[str, Any], sync: SyncConfig) -> dict[str, Any]:
    """Steps of one arm; two come first and are not counted."""
    step, batch = make_step(rank, task, sync)
    paced = at_pace(step, task["pace_seconds"])
    rounds = sync.every if sync.policy != "allreduce" else 1
    last = 10**9
    step.policy.start(0, last)
    for number in range(1, 2 * rounds + 1):
        paced([batch])
        step.policy.after_step(number, last, step.totals)
    seconds = []
    dist.barrier()
    metered, linked = step.policy.sent_bytes(), sent_by_link()
    for number in range(2 * rounds + 1, 2 * rounds + task["steps"] + 1):
        began = time.perf_counter()
        paced([batch])
        step.policy.after_step(number, last, step.totals)
        seconds.append(time.perf_counter() - began)
    return {
        "seconds": seconds,
        "metered": step.policy.sent_bytes() - metered,
        "linked": sent_by_link() - linked,
        "parameters": sum(p.numel() for p in step.split.objective.parameters()),
    }


def at_pace(step: SplitStep, seconds: float) -> Callable[[Sequence[Batch]], float]:
    """`step`, whose forward and backward take `seconds`, as if this host's cores were not shared; exchanges that
    backward has started go on meanwhile."""
    before_step, began = step.policy.before_step, 0.0

    def wait_then(totals: Totals) -> Totals:
        time.sleep(max(0.0, began + seconds - time.perf_counter()))
        return before_step(totals)

    def paced(batches: Sequence[Batch]) -> float:
        nonlocal began
        began = time.perf_counter()
        return step(batches)

    step.policy.before_step = wait_then  # type: ignore[method-assign]
    return paced


def llama(width: int, layers: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=width, intermediate_size=8 * width // 3, num_hidden_layers=layers,
        num_attention_heads=width // 64, num_key_value_heads=width // 64, tie_word_embeddings=True,
        bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip


def sent_by_link() -> int:
    """Bytes that left this host, as its kernel counts them."""
    return int(Path(f"/sys/class/net/{DEVICE}/statistics/tx_bytes").read_text())


if __name__ == "__main__":
    main()
