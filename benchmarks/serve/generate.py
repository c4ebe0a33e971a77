"""Texts written with one model by `tutti serve`'s engine and by other programs, in turns on the same cores.

    make bench-serve                      (or: python -m benchmarks.serve.generate --help)

A model of 32M parameters learns Python from the standard library's sources (once, in build/), then every program goes
on from the same held-out prompts, 8 and 32 texts at once. *Even*: 64 tokens are read and 64 written, which suits
programs that begin and end a batch together best. *Uneven*: 16 to 256 read and 16 to 128 written, as services are
asked. Ratios are taken within rounds, then their median. Prompts are new in every round: nothing was read before.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import (
    ROOT,
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
from benchmarks.serve.writers import PROGRAMS, READING_TOKENS, Contestant, Job
from benchmarks.serve.written import CONTEXT, Written, make_written
from tutti.serve.engine import SlotModel
from tutti.serve.engine.cache import Part, Turn
from tutti.serve.load import Weights, cached_as, set_weights

OURS = "tutti int8"
#: Beside whom, and how many times as fast at least.
TARGETS = (("generate bf16", 3.0), ("llama.cpp q8_0", 1.5))
#: Perplexity may be so much more than with bf16.
PERPLEXITY_MORE = 0.005


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", default="33M")
    parser.add_argument("--steps", type=int, default=400, help="that the model is trained")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--together", type=int, nargs="*", default=[8, 32])
    parser.add_argument("--threads", type=int, default=1, help="cores of every program")
    parser.add_argument("--programs", nargs="*", choices=PROGRAMS, default=list(PROGRAMS))
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "serve")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    machine = describe_machine()
    written = make_written(options.work, size=options.size, steps=options.steps)
    pin(first_cores(options.threads))
    torch.set_num_threads(options.threads)
    compared: tuple[Weights, ...] = ("bf16", "int8")
    perplexities = {weights: perplexity(written, weights) for weights in compared}
    print("perplexity", perplexities, flush=True)
    measured: dict[str, dict[str, dict[str, list[float]]]] = {}
    failures: dict[str, str] = {}
    for together in options.together:
        contestants = dict[str, Contestant]()
        for name in options.programs:
            contestant = Contestant(name, written, together, options.threads)
            if contestant.problem is not None:
                failures[name] = contestant.problem
            else:
                contestants[name] = contestant
        for kind, make in (("even", even), ("uneven", uneven)):
            lines = measured[f"{together} {kind}"] = {name: {"wall": [], "cpu": []} for name in contestants}
            for turn in range(options.rounds + 1):  # the first warms up
                jobs = make(written, together, seed=1000 * together + turn)
                for name, contestant in contestants.items():
                    wall, cpu = contestant.write(jobs)
                    if turn:
                        lines[name]["wall"].append(wall)
                        lines[name]["cpu"].append(cpu)
                    print(
                        f"{together} {kind} {turn} {name}: {wall:.0f} a second, {cpu:.0f} of processor",
                        flush=True,
                    )
        for contestant in contestants.values():
            contestant.end()
    data = {
        "machine": machine, "perplexity": perplexities, "tokens_per_second": measured, "failures": failures,
        "threads": options.threads, "size": options.size, "steps": options.steps,
    }  # fmt: skip
    print(write_result(options.out, "generate", data, page(machine, data)))


def even(written: Written, together: int, seed: int) -> list[Job]:
    """Two batches that begin and end together."""
    return [(prompt, 64) for prompt in written.prompts(2 * together, 64, seed)]


def uneven(written: Written, together: int, seed: int) -> list[Job]:
    """As services are asked: mostly short, some long."""
    dice = np.random.default_rng(seed)

    def drawn(least: int, most: int) -> int:
        return int(math.exp(dice.uniform(math.log(least), math.log(most))))

    lengths = [(drawn(16, 256), drawn(16, 128)) for _ in range(3 * together)]
    return [
        (written.prompts(1, length, seed + number)[0], count)
        for number, (length, count) in enumerate(lengths)
    ]


def perplexity(written: Written, weights: Weights, texts: int = 40) -> float:
    """Of the held-out text, read as the engine reads it."""

    model = written.load()
    set_weights(model, weights)
    slots, total, count = SlotModel(model, 1, CONTEXT, cached_as(model)), 0.0, 0
    for text in written.prompts(texts, CONTEXT, seed=1):
        for start in range(0, CONTEXT, READING_TOKENS):
            piece = text[start : start + READING_TOKENS]
            logits = slots.run(Turn([], [Part(0, start, len(piece))]), piece, range(len(piece)))
            targets = torch.tensor(text[start + 1 : start + 1 + len(piece)])
            total += float(
                torch.nn.functional.cross_entropy(logits[: len(targets)], targets, reduction="sum")
            )
            count += len(targets)
    return math.exp(total / count)


def page(machine: dict[str, Any], data: dict[str, Any]) -> str:
    """What was measured, for a reader."""
    measured, found = data["tokens_per_second"], data["perplexity"]
    more = found["int8"] / found["bf16"] - 1
    lines = [
        "# Texts written in turns on the same cores",
        machine_line(machine),
        f"{data['size']} parameters, trained {data['steps']} steps; {data['threads']} core(s) each.",
        "## Targets",
        "\n".join(_verdicts(measured, more)),
        "## Tokens a second",
        "Wall time; in brackets for each second of processor time, which a busy machine leaves alone. A program's "
        f"ratio is that of {OURS} to it, within rounds: median, least and most.",
    ]
    for situation, programs in measured.items():
        rows = [_row(name, values, programs.get(OURS)) for name, values in programs.items()]
        together, kind = situation.split()
        lines += [f"### {together} at once, {kind}"]
        lines += [table(("program", "tokens a second", "ours ÷ this", "of processor time"), rows)]
    lines += [f"{name} was not measured: {reason}" for name, reason in data["failures"].items()]
    lines += [
        f"Perplexity of held-out text: bf16 {found['bf16']:.3f}, int8 {found['int8']:.3f} ({more:+.2%})."
    ]
    return "\n\n".join(lines)


def _verdicts(measured: dict[str, Any], more: float) -> list[str]:
    lines = [
        f"- {'met' if more <= PERPLEXITY_MORE else 'MISSED'}: perplexity {more:+.2%} of bf16's (at most "
        f"{PERPLEXITY_MORE:+.1%})"
    ]
    for situation, programs in measured.items():
        for name, least in TARGETS:
            if name in programs and OURS in programs:
                ratio = ratios(programs[OURS]["wall"], programs[name]["wall"])
                verdict = "met" if ratio["median"] >= least else "MISSED"
                lines.append(f"- {verdict}: {situation}: {say_ratio(ratio)} × {name} (at least {least:g})")
    return lines


def _row(name: str, values: dict[str, Sequence[float]], ours: dict[str, Sequence[float]] | None) -> list[str]:
    wall, cpu = median_and_spread(values["wall"]), median_and_spread(values["cpu"])
    told = ["", ""]
    if ours is not None:
        told = [say_ratio(ratios(ours[kind], values[kind])) for kind in ("wall", "cpu")]
    return [name, f"{wall['median']:.0f} ({cpu['median']:.0f})", *told]


if __name__ == "__main__":
    main()
