"""Bytes that a rank's tensors take at the peak of a step, measured, against what Tutti says before it starts and what
the textbooks' formulas say; and what saving them costs in time.

    make bench-memory                       (or: python -m benchmarks.memory.run --help)

Bytes are counted operator by operator, on every rank, in a step in which all state exists: they are exact and the
same on every machine. The time of each way to save memory is that of a step on one rank, in turns with the others.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import Gemma2Config, GPT2Config, LlamaConfig, PretrainedConfig, Qwen3Config

from benchmarks.common import (
    describe_machine,
    machine_line,
    median_and_spread,
    ratios,
    say_ratio,
    table,
    write_result,
)
from benchmarks.memory import textbook
from benchmarks.ranks import on_ranks
from tutti.config import LayoutConfig
from tutti.train.precision import DTYPES

SEQUENCE, VOCABULARY, WITHIN = 256, 2048, 0.10


@dataclass(frozen=True)
class Case:
    """A layout, ways to save memory, and a step: micro-batches of so many samples."""

    layout: dict[str, Any]
    recompute: str = "none"
    offload: str = "none"
    micro_batch: int = 4
    micro_batches: int = 1
    replicas: int = 1
    family: str = "llama"
    precision: str = "fp32"
    optimizer: Literal["adamw", "adafactor"] = "adamw"

    @property
    def ranks(self) -> int:
        """Of all replicas."""
        return LayoutConfig(**self.layout).ranks * self.replicas

    @property
    def name(self) -> str:
        """As in a configuration."""
        words = [f"{key} {value}" for key, value in self.layout.items()] or ["one rank"]
        usual = ("llama", "fp32", "adamw")
        more = [f" × {self.replicas} replicas"] if self.replicas > 1 else []
        more += [
            f", {other}" for other in (self.family, self.precision, self.optimizer) if other not in usual
        ]
        return ", ".join(words) + "".join(more)

    @property
    def dtype(self) -> torch.dtype | None:
        """Of arithmetic, where that is not fp32."""
        return None if self.precision == "fp32" else DTYPES[self.precision]


CASES = [
    Case({}, micro_batch=8),
    Case({}, micro_batch=4, micro_batches=2),
    Case({}, "selective", micro_batch=8),
    Case({}, "full", micro_batch=8),
    Case({}, offload="activations", micro_batch=8),
    Case({}, offload="optimizer", micro_batch=8),
    Case({}, offload="all", micro_batch=8),
    Case({}, "full", "all", micro_batch=8),
    Case({}, micro_batch=8, replicas=2),
    Case({"shard": 2}),
    Case({"shard": 2}, "full"),
    Case({"shard": 2}, micro_batches=2),
    Case({"shard": 2, "zero": 2}),
    Case({"shard": 2, "zero": 1}, micro_batches=2),
    Case({"tensor": 2}, micro_batch=8),
    Case({"tensor": 2}, "selective", micro_batch=8),
    Case({"context": 2}, micro_batch=8),
    Case({"pipeline": 2}, micro_batch=2, micro_batches=4),
    Case({"pipeline": 2, "schedule": "gpipe"}, micro_batch=2, micro_batches=4),
    Case({"pipeline": 2, "schedule": "interleaved"}, micro_batch=2, micro_batches=4),
    Case({"pipeline": 2}, "full", micro_batch=2, micro_batches=4),
    Case({"shard": 4}),
    Case({"shard": 2}, replicas=2),
    Case({"tensor": 4}, micro_batch=8),
    Case({"pipeline": 4}, micro_batch=2, micro_batches=8),
    Case({"shard": 2, "tensor": 2}, micro_batch=8),
    Case({"shard": 2, "context": 2}),
    Case({"context": 2, "tensor": 2}, micro_batch=8),
    Case({"pipeline": 2, "tensor": 2}, micro_batch=2, micro_batches=4),
    Case({"pipeline": 2, "shard": 2}, micro_batch=2, micro_batches=4),
    Case({"pipeline": 2, "shard": 2, "zero": 1}, micro_batch=2, micro_batches=4),
    Case({"pipeline": 2, "context": 2}, micro_batch=2, micro_batches=4),
    Case({}, precision="bf16", micro_batch=8),
    Case({"shard": 2}, precision="bf16"),
    Case({}, family="gpt2", micro_batch=8),
    Case({}, "full", family="gpt2", micro_batch=8),
    Case({"tensor": 2}, family="gpt2", micro_batch=8),
    Case({}, family="gemma2", micro_batch=8),
    Case({"shard": 2}, family="gemma2"),
    Case({}, family="qwen3", micro_batch=8),
    Case({"pipeline": 2}, family="qwen3", micro_batch=2, micro_batches=4),
    Case({}, micro_batch=8, optimizer="adafactor"),
    Case({}, "full", "all", micro_batch=8, optimizer="adafactor"),
    Case({"shard": 2}, optimizer="adafactor"),
    Case({"tensor": 2}, micro_batch=8, optimizer="adafactor"),
]
#: Ways to save memory on one rank whose time is measured.
WAYS = [(r, o) for o in ("none", "activations", "optimizer", "all") for r in ("none", "selective", "full")]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7, help="of the timed ways; 0 leaves them out")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    machine = describe_machine()
    rows = weigh([case for case in CASES if options.only in case.name])
    seconds = on_ranks(1, time_ways, options.rounds)[0] if options.rounds else {}
    data = {
        "benchmark": "memory",
        "machine": machine,
        "task": {"sequence": SEQUENCE, "vocabulary": VOCABULARY, "layers": 6, "width": 256},
        "cases": rows,
        "seconds": {name: median_and_spread(values) for name, values in seconds.items()},
        "times": {name: ratios(values, seconds["none, none"]) for name, values in seconds.items()},
    }
    page = write_result(options.out, "memory", data, page_of(machine, data))
    print(page.read_text())
    print(f"written to {page}")


def config_of(family: str) -> PretrainedConfig:
    """Six layers of width 256."""
    ends = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    if family == "gpt2":
        return GPT2Config(
            vocab_size=VOCABULARY, n_positions=SEQUENCE, n_embd=256, n_layer=6, n_head=4, **ends
        )
    shape = {"vocab_size": VOCABULARY, "hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 6}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 64}
    kind = {"llama": LlamaConfig, "gemma2": Gemma2Config, "qwen3": Qwen3Config}[family]
    return kind(**shape, **heads, **ends, tie_word_embeddings=True)


def weigh(cases: list[Case]) -> list[dict[str, Any]]:
    """Every case with the largest of its ranks' peaks, and what was said of it, in bytes."""
    by_ranks: dict[int, list[int]] = {}
    for index, case in enumerate(cases):
        by_ranks.setdefault(case.ranks, []).append(index)
    measured = [0] * len(cases)
    for ranks, indices in by_ranks.items():
        found = on_ranks(ranks, peaks_of, [cases[index] for index in indices])
        for index, *of_ranks in zip(indices, *found, strict=True):
            measured[index] = max(of_ranks)
    return [
        asdict(case) | {"name": case.name, "measured": bytes_, **foretold(case)}
        for case, bytes_ in zip(cases, measured, strict=True)
    ]


def peaks_of(rank: int, cases: list[Case]) -> list[int]:
    """Most bytes of tensors at once in the second step of each case, on this rank."""
    return [peak_of(case) for case in cases]


def peak_of(case: Case) -> int:
    """Of this rank, in a step in which all state exists; files that stand in for memory do not count."""
    from tutti.hardware.tracked import TensorBytes

    with tempfile.TemporaryDirectory() as directory:
        step, batches = _make(case, Path(directory))
        step(batches)
        with TensorBytes(step.state()) as tracked:
            step(batches)
    return tracked.peak


def _make(case: Case, directory: Path) -> tuple[Any, Any]:
    from benchmarks.split_step import SplitStep
    from tutti.parallel import MappedFiles

    layout = LayoutConfig(**case.layout)
    computed = case.micro_batch * case.micro_batches
    step = SplitStep(
        config_of(case.family),
        layout,
        micro_batch=case.micro_batch,
        sequence=SEQUENCE,
        samples=computed * layout.shard * case.replicas,
        recompute=case.recompute,
        offload=case.offload,
        files=None if case.offload == "none" else MappedFiles(directory),
        dtype=case.dtype,
        optimizer=case.optimizer,
    )
    ids = torch.randint(VOCABULARY, (case.micro_batch, SEQUENCE), generator=torch.Generator().manual_seed(0))
    positions = torch.arange(SEQUENCE).repeat(case.micro_batch, 1)
    return step, [{"input_ids": ids, "labels": ids, "position_ids": positions}] * case.micro_batches


def foretold(case: Case) -> dict[str, Any]:
    """What Tutti and the textbooks say of `case`: bytes of the rank that needs most."""
    from tutti.models import Blueprint
    from tutti.parallel.memory import MemoryModel, Thrift
    from tutti.tasks import find_manner

    config, layout = config_of(case.family), LayoutConfig(**case.layout)
    blueprint = Blueprint(config, seed=0, end_token=0)
    twin, whole = blueprint.twin(), blueprint.lay_out()
    samples = case.micro_batch * case.micro_batches
    model = MemoryModel(
        whole, twin, find_manner(twin), layout, SEQUENCE, case.optimizer, case.replicas, samples, case.dtype
    )
    need = model.need(Thrift(case.recompute, case.offload, case.micro_batch))
    return {
        "said": need.total,
        "parts": asdict(need),
        "textbook": None
        if case.offload != "none" or case.precision != "fp32"
        else textbook.peak_bytes(
            config,
            sum(p.numel() for p in whole.parameters()),
            layout,
            recompute=case.recompute,
            sequence=SEQUENCE,
            micro_batch=case.micro_batch,
            micro_batches=case.micro_batches,
        ),
    }


def time_ways(rank: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of a step of every way to save memory, in turns; two steps of each come first and are not counted."""
    with tempfile.TemporaryDirectory() as directory:
        steps = {
            f"{recompute}, {offload}": _make(Case({}, recompute, offload, micro_batch=8), Path(directory))
            for recompute, offload in WAYS
        }
        names = list(steps)
        seconds: dict[str, list[float]] = {name: [] for name in names}
        for number in range(rounds + 2):
            for place in range(len(names)):
                name = names[(place + number) % len(names)]
                step, batches = steps[name]
                began = time.perf_counter()
                step(batches)
                if number >= 2:
                    seconds[name].append(time.perf_counter() - began)
    return seconds


def page_of(machine: dict[str, Any], data: dict[str, Any]) -> str:
    rows = []
    for case in data["cases"]:
        off = case["said"] / case["measured"] - 1
        rows.append(
            [
                case["name"],
                case["recompute"],
                case["offload"],
                f"{case['micro_batches']} × {case['micro_batch']}",
                f"{case['measured'] / 1e6:.1f}",
                f"{case['said'] / 1e6:.1f}",
                f"{off:+.1%}" + ("" if abs(off) <= WITHIN else " MISSED"),
                f"{case['textbook'] / case['measured'] - 1:+.0%}" if case["textbook"] else "",
            ]
        )
    lines = [
        "# Memory",
        "",
        machine_line(machine) + ".",
        "",
        f"Llama where nothing else is said; 6 layers, width 256, vocabulary {VOCABULARY} (tied), sequence {SEQUENCE}, "
        "AdamW too. The largest of the ranks' peaks of tensor bytes in a step; files that stand in for memory do not "
        "count. Textbook: the formulas of `benchmarks/memory/textbook.py`.",
        "",
        table(
            (
                "layout",
                "recompute",
                "offload",
                "micro-batches",
                "measured, MB",
                "Tutti says",
                f"off (target ≤ {WITHIN:.0%})",
                "textbook off",
            ),
            rows,
        ),
    ]
    if data["times"]:
        ways = [[*name.split(", "), say_ratio(ratio)] for name, ratio in data["times"].items()]
        lines += [
            "",
            "Time of a step on one rank that has memory enough, relative to sparing nothing (medians over rounds, "
            "least and most). What lies in files is in the system's cache here; where memory is short, the "
            "disk decides.",
            "",
            table(("recompute", "offload", "time"), ways),
        ]
    return "\n".join([*lines, "", "Repeat: `make bench-memory`."])


if __name__ == "__main__":
    main()
