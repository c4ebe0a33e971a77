"""Unequal machines: what replicas at full, half and a quarter of the speed do together, beside what each does alone.

    make bench-unequal                      (or: python -m benchmarks.unequal.run --help)

Computing takes a stated time a sample, by replica (`benchmarks/paced.py`): three replicas have two cores. Every round
measures each speed alone (`replicas=1`) and all three together under each policy; a figure is samples a second of
the second half of a run, when shares have settled. The target: together at least 0.9 of the sum of the three alone.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.common import describe_machine, machine_line, median_and_spread, table, write_result
from benchmarks.paced import paced
from tutti import api
from tutti.config import load_config
from tutti.core import read_events

HERE = Path(__file__).resolve().parent
SPEEDS = (1.0, 0.5, 0.25)
BATCH, SAMPLE_SECONDS = 28, 0.02
SETTINGS = (
    *("data.source=python-stdlib", "data.sequence=64", "model=200K", "train.precision=fp32"),
    *("evaluate.prompts=[]", "evaluate.every=100000", "checkpoint.every=100000", f"train.batch={BATCH}"),
)
TOGETHER = {
    "allreduce": ("sync=allreduce",),
    "allreduce int8": ("sync=allreduce", "sync.codec=int8"),
    "diloco": ("sync=diloco", "sync.every=10"),
}
TARGET = 0.9


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=40.0, help="about so long trains each run")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    options = parser.parse_args()
    machine = describe_machine()
    work = Path(tempfile.mkdtemp(prefix="tutti-unequal-"))
    try:
        page = measure(work, options, machine)
        print("\n" + page.read_text())
        print(f"written to {page}")
    finally:
        shutil.rmtree(work, ignore_errors=True)


def measure(work: Path, options: argparse.Namespace, machine: dict[str, Any]) -> Path:
    """Round after round; the result is written anew after each."""
    steps = dict.fromkeys(
        [*map(alone, SPEEDS), *TOGETHER], 12
    )  # a trial, by which the others are measured out
    rates: dict[str, list[float]] = {name: [] for name in steps}
    shares: dict[str, list[int]] = {}
    page: Path | None = None
    for number in range(options.rounds + 1):
        for name in steps:
            rate, shares[name] = train(work, name, steps[name])
            if number:
                rates[name].append(rate)
                print(f"round {number}: {name}: {rate:.1f} samples/s", flush=True)
            else:
                steps[name] = max(20, 10 * round(options.seconds * rate / BATCH / 10))
        if number:
            page = report(options, machine, rates, shares)
    assert page is not None
    return page


def alone(speed: float) -> str:
    return f"alone at {speed:g}"


def train(work: Path, name: str, steps: int) -> tuple[float, list[int]]:
    """Samples a second of the second half, and how many each replica made of them."""
    shutil.rmtree(work / "runs", ignore_errors=True)
    speeds = SPEEDS if name in TOGETHER else tuple(speed for speed in SPEEDS if alone(speed) == name)
    words = [*SETTINGS, f"replicas={len(speeds)}", f"train.steps={steps}", "name=r", f"runs={work / 'runs'}"]
    with paced(tuple(SAMPLE_SECONDS / speed for speed in speeds)):
        api.train(load_config(None, [*words, *TOGETHER.get(name, ())]), console=False)
    return rate_of(work / "runs" / "r", len(speeds))


def rate_of(run: Path, replicas: int) -> tuple[float, list[int]]:
    made = sorted(
        (event["time"], event["replica"], sum(stop - start for start, stop in event["cursor"]))
        for event in read_events(run, "step")
    )
    half = made[len(made) // 2 :]
    counts = [sum(count for _, replica, count in half[1:] if replica == r) for r in range(replicas)]
    return sum(counts) / (half[-1][0] - half[0][0]), counts


def report(
    options: argparse.Namespace,
    machine: dict[str, Any],
    rates: dict[str, list[float]],
    shares: dict[str, list[int]],
) -> Path:
    """The page and its JSON."""
    sums = [sum(rates[alone(speed)][number] for speed in SPEEDS) for number in range(len(rates["diloco"]))]
    rows = []
    for name, values in rates.items():
        found = median_and_spread(values)
        middle, low, high = found["median"], min(values), max(values)
        ratio = [value / whole for value, whole in zip(values, sums, strict=True)]
        whole = sum(shares[name])
        rows.append(
            [
                name,
                f"{middle:.1f} ({low:.1f} to {high:.1f})",
                f"{median(ratio):.3f} ({min(ratio):.3f} to {max(ratio):.3f})",
                " : ".join(f"{100 * share / whole:.0f} %" for share in shares[name]),
                ("met" if median(ratio) >= TARGET else "missed") if name in TOGETHER else "",
            ]
        )
    head = ["", "samples/s", "÷ the sum of those alone", "made by each replica", f"target ≥ {TARGET}"]
    page = (
        f"# Unequal machines, 1 : 1/2 : 1/4\n\n{machine_line(machine)}\n\n"
        f"A Llama of 200K parameters, {BATCH} samples a step over all replicas; a sample takes "
        f"{SAMPLE_SECONDS:g} s at speed 1; "
        f"{len(sums)} rounds, about {options.seconds:.0f} s a run. In brackets the smallest and the largest.\n\n"
        + table(head, rows)
    )
    return write_result(options.out, "unequal", {"machine": machine, "rates": rates, "shares": shares}, page)


if __name__ == "__main__":
    main()
