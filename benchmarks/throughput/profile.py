"""Where the time of Tutti's step goes: one worker, torch.profiler, the table of the dearest operators."""

from __future__ import annotations

from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM

from benchmarks.throughput.windows import Windows
from tutti.config.training import TrainConfig
from tutti.parallel import Split, World
from tutti.sync import AllReduce, Ledger, Place, StaticTransport
from tutti.tasks import CausalLanguageModelling
from tutti.train.optimizer import build_optimizers
from tutti.train.precision import LossScale, compute_context
from tutti.train.step import Accumulator

_STEPS = 3


def profile_step(task: dict[str, Any]) -> str:
    """Profile a few steps of one worker, eagerly and without peers, after two that are not counted."""
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(task["model"], dtype=torch.float32).train()
    objective = CausalLanguageModelling(model)
    accumulator = Accumulator(
        Split(objective, World.alone()),
        AllReduce(
            StaticTransport(None), Place(0, 1), Ledger(), task["batch"], bucket_bytes=8_000_000, everyone=None
        ),
        nominal_targets=task["micro_batch"] * task["sequence"],
        clip=1.0,
        context=compute_context(task["precision"], torch.device("cpu"), sharded=False),
        loss_scale=LossScale(task["precision"]),
        seed=0,
    )
    optimizers = build_optimizers(model, TrainConfig(), task["learning_rate"])
    text = Windows(task["files"], task["sequence"], shifted=True)

    def step(number: int) -> None:
        samples = [text[number * task["micro_batch"] + i] for i in range(task["micro_batch"])]
        batch = {key: torch.stack([sample[key] for sample in samples]) for key in samples[0]}
        accumulator.run([batch], tokens=0, key=0, stop=False)
        optimizers.step()

    for number in range(2):
        step(number)
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        for number in range(2, 2 + _STEPS):
            step(number)
    table = profiled.key_averages().table(
        sort_by="self_cpu_time_total", row_limit=25, max_name_column_width=60
    )
    return f"Tutti, one worker, {_STEPS} steps, {task['precision']}, not compiled\n\n{table}\n"
