"""Tokens per second of layouts on two and four ranks, against the same split in bare torch and against data parallel.

All contestants live in the same processes (gloo, one thread each) and make a step in turns, so a busy moment of
the machine hits all of them alike; ratios are taken within rounds, then their median. Bare torch is the library's own
wrapping (FSDP2, its column- and row-wise styles, its pipeline schedules) around an unmodified Hugging Face model.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import LlamaConfig

from benchmarks.common import (
    describe_machine,
    first_cores,
    machine_line,
    median_and_spread,
    pin,
    ratios,
    say_ratio,
    table,
    write_result,
)
from benchmarks.ranks import on_ranks
from tutti.config import LayoutConfig

SEQUENCE, VOCABULARY = 256, 2048
TARGET = 0.95
#: By ranks.
LAYOUTS: dict[int, dict[str, dict[str, Any]]] = {
    2: {
        "shard": {"shard": 2},
        "shard, zero 2": {"shard": 2, "zero": 2},
        "tensor": {"tensor": 2},
        "pipeline": {"pipeline": 2},
        "pipeline, gpipe": {"pipeline": 2, "schedule": "gpipe"},
        "context": {"context": 2},
    },
    4: {"shard × tensor": {"shard": 2, "tensor": 2}},
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--batch", type=int, default=16, help="samples of a step over both ranks")
    parser.add_argument("--micro-batch", type=int, default=4)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    machine = describe_machine()
    pin(first_cores(2))
    tokens = options.batch * SEQUENCE
    data: dict[str, Any] = {
        "machine": machine,
        "task": vars(options) | {"out": None, "sequence": SEQUENCE, "vocabulary": VOCABULARY},
        "ranks": {},
    }
    for ranks, layouts in LAYOUTS.items():
        found = on_ranks(ranks, measure, ranks, vars(options))
        # Of the slowest rank.
        seconds = {name: map(max, zip(*(of[name] for of in found), strict=True)) for name in found[0]}
        speeds = {name: [tokens / s for s in values] for name, values in seconds.items()}
        data["ranks"][ranks] = {
            "tokens_per_second": {name: median_and_spread(values) for name, values in speeds.items()},
            "to_bare": {n: ratios(speeds[f"tutti {n}"], speeds[f"bare {n}"]) for n in layouts},
            "to_data_parallel": {n: ratios(speeds[f"tutti {n}"], speeds["data parallel"]) for n in layouts},
        }
    page = write_result(options.out, "layouts", data, page_of(machine, data))
    print(page.read_text())
    print(f"written to {page}")


def page_of(machine: dict[str, Any], data: dict[str, Any]) -> str:
    task, rows = data["task"], []
    for ranks, found in data["ranks"].items():
        speeds = found["tokens_per_second"]
        rows.append(
            [str(ranks), "data parallel (DDP)", f"{speeds['data parallel']['median']:.0f}", "", "", ""]
        )
        for name, ratio in found["to_bare"].items():
            rows.append(
                [
                    str(ranks),
                    name,
                    f"{speeds[f'tutti {name}']['median']:.0f}",
                    f"{speeds[f'bare {name}']['median']:.0f}",
                    say_ratio(ratio) + ("" if ratio["median"] >= TARGET else " MISSED"),
                    say_ratio(found["to_data_parallel"][name]),
                ]
            )
    return "\n".join(
        [
            "# Layouts",
            "",
            machine_line(machine) + ".",
            "",
            f"Llama of {task['layers']} layers, width 384, vocabulary {VOCABULARY}, sequence {SEQUENCE}, fp32; "
            f"{task['batch']} samples a step over all ranks, with one thread each on two cores, micro-batches of "
            f"{task['micro_batch']}; gloo on one host; {task['rounds']} rounds in turns, medians, in brackets "
            "the least and the most.",
            "",
            table(
                (
                    "ranks",
                    "layout",
                    "Tutti, tokens/s",
                    "bare torch",
                    f"÷ bare (target ≥ {TARGET})",
                    "÷ data parallel",
                ),
                rows,
            ),
            "",
            "Repeat: `make bench-layouts`.",
        ]
    )


# The ranks -----------------------------------------------------------------------------------------------------


def measure(rank: int, ranks: int, options: dict[str, Any]) -> dict[str, list[float]]:
    """Take turns; two steps of each contestant first, which are not counted."""
    from benchmarks.layouts import bare

    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=384, intermediate_size=1024, num_hidden_layers=options["layers"],
        num_attention_heads=6, num_key_value_heads=6, tie_word_embeddings=False, max_position_embeddings=SEQUENCE,
        bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    micro = options["micro_batch"]
    steps: dict[str, Callable[[Tensor], None]] = {
        "data parallel": bare.data_parallel(rank, ranks, config, micro)
    }
    for name, layout in LAYOUTS[ranks].items():
        steps[f"bare {name}"] = bare.SPLITS[name](rank, ranks, config, micro)
        steps[f"tutti {name}"] = tutti_step(config, layout, options["batch"], micro)
    dice = torch.Generator().manual_seed(0)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    names = list(steps)
    for number in range(options["rounds"] + 2):
        ids = torch.randint(VOCABULARY, (options["batch"], SEQUENCE + 1), generator=dice)
        for place in range(len(names)):
            name = names[(place + number) % len(names)]
            dist.barrier()
            began = time.perf_counter()
            steps[name](ids)
            dist.barrier()
            if number >= 2:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def tutti_step(
    config: LlamaConfig, layout: dict[str, Any], batch: int, micro: int
) -> Callable[[Tensor], None]:
    from benchmarks.split_step import SplitStep

    make = SplitStep(config, LayoutConfig(**layout), micro_batch=micro, sequence=SEQUENCE, samples=batch)
    world = make.world
    positions = torch.arange(SEQUENCE).expand(micro, -1)

    def step(ids: Tensor) -> None:
        mine = ids.chunk(world.replicas * world.layout.shard)[
            world.replica * world.layout.shard + world.at("shard")
        ]
        batches = [
            {
                "input_ids": piece[:, :-1].contiguous(),
                "labels": piece[:, 1:].contiguous(),
                "position_ids": positions,
            }
            for piece in mine.split(micro)
        ]
        make(batches)

    return step


if __name__ == "__main__":
    main()
