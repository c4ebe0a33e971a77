"""One accelerator: tokens per second of a Llama of 1.1B parameters in bf16, and what share of the device that is.

Tutti's own step as a run makes it: torch.compile block by block, fp32 master weights, the loss in chunks over the
vocabulary, the device's flash attention, AdamW. Utilisation is printed in both conventions: 6P + 12·L·h·S operations a
token over the datasheet's peak (as published figures are), and over the peak of matrix products measured here.

`--toy` is a small model for a machine without accelerator: it shows that everything starts, and nothing else.
"""

from __future__ import annotations

import argparse
import os
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig

from benchmarks.common import describe_machine, machine_line, median_and_spread, table, write_result
from tutti.config import TrainConfig
from tutti.hardware import measure_matmul, probe_devices
from tutti.models import Blueprint, count_parameters
from tutti.parallel import Arithmetic, World, apply_language_layout, pick_device
from tutti.sync import AllReduce, Ledger, Place, StaticTransport
from tutti.tasks import find_manner
from tutti.train.optimizer import build_optimizers
from tutti.train.precision import LossScale, compute_context
from tutti.train.step import Accumulator

#: llm-foundry's 1B on one H100 (scripts/train/benchmarking/README.md), and 1.2 times that.
PUBLISHED, TARGET = 45_455, 54_300
#: Dense bf16 of data sheets, in FLOP/s, by what the device calls itself.
DATASHEET = {"H100 PCIe": 756e12, "H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12}

SHAPES: dict[str, dict[str, Any]] = {
    # TinyLlama's: 1.1B parameters
    "1b": {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32,
           "num_key_value_heads": 4, "vocab_size": 32_000},
    "toy": {"hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "vocab_size": 512},
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--toy", action="store_true")
    parser.add_argument("--micro-batch", type=int, help="samples at once (default 8; toy 2)")
    parser.add_argument("--accumulate", type=int, default=2, help="micro-batches of a step")
    parser.add_argument("--sequence", type=int, help="tokens of a sample (default 2048; toy 64)")
    parser.add_argument(
        "--steps", type=int, default=20, help="measured steps, after five that are not counted"
    )
    parser.add_argument("--recompute", choices=("none", "selective", "full"), default="none")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    device = pick_device()
    if device.type == "cpu" and not options.toy:
        parser.error("there is no accelerator here; --toy shows that the benchmark starts")
    sequence = options.sequence or (64 if options.toy else 2048)
    micro = options.micro_batch or (2 if options.toy else 8)
    found = measure(device, options, sequence, micro)
    machine = describe_machine()
    devices = probe_devices()
    name = devices[0].name if devices else "CPU"
    data = {"machine": machine, "device": name, "task": found.pop("task"), **found}
    data |= utilisation(name, data)
    page = page_of(machine, data, toy=options.toy)
    if options.toy:
        print(page)
        return
    path = write_result(options.out, f"gpu-{name.replace(' ', '-').lower()}", data, page)
    print(path.read_text())
    print(f"written to {path}")


def measure(device: torch.device, options: argparse.Namespace, sequence: int, micro: int) -> dict[str, Any]:
    """Tokens per second of every step, and what it was of."""
    config = LlamaConfig(
        **SHAPES["toy" if options.toy else "1b"], max_position_embeddings=sequence, tie_word_embeddings=False,
        bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    blueprint = Blueprint(config, seed=0, end_token=0)
    world = World(0, 1, 0, 1, device, False)
    arithmetic = Arithmetic(compile=not options.no_compile, recompute=options.recompute)
    split = apply_language_layout(
        blueprint, find_manner(blueprint.twin()), world, arithmetic, micro_batch=micro, sequence=sequence
    )
    samples = micro * options.accumulate
    policy = AllReduce(StaticTransport(None), Place(0, 1), Ledger(), samples, bucket_bytes=1, everyone=None)
    context: AbstractContextManager[None] = compute_context("bf16", device, sharded=False)
    accumulator = Accumulator(
        split, policy, nominal_targets=samples * sequence, clip=1.0, context=context, loss_scale=LossScale("bf16"),
        seed=0,
    )  # fmt: skip
    optimizers = build_optimizers(split.objective.model, TrainConfig(), 3e-4)
    ids = torch.randint(config.vocab_size, (options.accumulate, micro, sequence + 1), device=device)
    positions = torch.arange(sequence, device=device).repeat(micro, 1)
    batches = [
        {
            "input_ids": rows[:, :-1].contiguous(),
            "labels": rows[:, 1:].contiguous(),
            "position_ids": positions,
        }
        for rows in ids
    ]

    def step() -> float:
        began = time.perf_counter()
        accumulator.run(batches, tokens=0, key=0, stop=False)
        optimizers.step()
        if device.type != "cpu":
            torch.accelerator.synchronize()
        return time.perf_counter() - began

    for _ in range(5):
        step()
    seconds = [step() for _ in range(options.steps)]
    peak = max(measure_matmul(torch.bfloat16, device=device, seconds=0.5) for _ in range(3))
    memory = torch.accelerator.max_memory_allocated() if device.type != "cpu" else 0
    counted = count_parameters(blueprint.lay_out())
    return {
        "task": {
            "parameters": counted.total,
            "multiplying": counted.matmul,
            "layers": config.num_hidden_layers,
            "width": config.hidden_size,
            "sequence": sequence,
            "micro_batch": micro,
            "accumulate": options.accumulate,
            "compile": not options.no_compile,
            "recompute": options.recompute,
        },
        "tokens_per_second": median_and_spread([samples * sequence / s for s in seconds]),
        "measured_peak_flops": peak,
        "peak_memory_bytes": memory,
    }


def utilisation(device: str, data: dict[str, Any]) -> dict[str, Any]:
    """MFU over the datasheet's peak (None: unknown device) and over the measured one."""
    task = data["task"]
    per_token = 6 * task["multiplying"] + 12 * task["layers"] * task["width"] * task["sequence"]
    rate = data["tokens_per_second"]["median"] * per_token
    sheet = next((peak for name, peak in DATASHEET.items() if name in device), None)
    return {
        "flops_per_token": per_token,
        "datasheet_flops": sheet,
        "mfu_datasheet": rate / sheet if sheet else None,
        "mfu_measured": rate / data["measured_peak_flops"],
    }


def page_of(machine: dict[str, Any], data: dict[str, Any], *, toy: bool) -> str:
    task, speed = data["task"], data["tokens_per_second"]
    sheet = data["mfu_datasheet"]
    rows = [
        ["tokens/s", f"{speed['median']:,.0f} ({speed['least']:,.0f} to {speed['most']:,.0f})"],
        ["MFU, 6P + 12LhS over the datasheet", f"{100 * sheet:.1f} %" if sheet else "no datasheet known"],
        [
            "MFU, the same over the measured peak",
            f"{100 * data['mfu_measured']:.1f} % of {data['measured_peak_flops'] / 1e12:.1f} TFLOP/s",
        ],
        ["peak memory", f"{data['peak_memory_bytes'] / 2**30:.1f} GiB"],
    ]
    verdict = "A toy: these figures mean nothing but that it runs."
    if not toy:
        met = (
            "met" if speed["median"] >= TARGET else f"MISSED by {100 * (1 - speed['median'] / TARGET):.0f} %"
        )
        verdict = f"Target on an H100: {TARGET:,} tokens/s, 1.2 × the published {PUBLISHED:,}: {met}."
    return "\n".join(
        [
            f"# One device: {data['device']}",
            "",
            machine_line(machine) + ".",
            "",
            f"Llama of {task['parameters'] / 1e6:.1f}M parameters, sequence {task['sequence']}, "
            f"{task['micro_batch']} samples at once, {task['accumulate']} times a step; bf16 with fp32 masters, "
            f"compile {'on' if task['compile'] else 'off'}, recompute {task['recompute']}.",
            "",
            table(("", ""), rows),
            "",
            verdict,
            "",
            "Repeat: `make bench-gpu`.",
        ]
    )


if __name__ == "__main__":
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    main()
