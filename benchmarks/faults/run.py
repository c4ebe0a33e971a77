"""What kills cost: how long survivors stand still, and how much of the work of a run is left.

    make bench-faults                      (or: python -m benchmarks.faults.run --help)

One configuration with default settings but for its size, four replicas, three trainings by `tutti.train` and
`tutti.chaos`:

- *undisturbed*: about so many minutes as asked for;
- *every minute*: the same steps, while a replica is killed every 60 s;
- *many kills*: fewer steps, while a replica is killed every 15 s, until 30 have been.

Figures are those of `chaos.json` (docs/reference/chaos.md): stalls of survivors over all kills of both disturbed runs;
goodput (tokens that are in the model ÷ seconds) and validation loss of *every minute* against *undisturbed*. There are
more replicas than cores, so computing takes a stated time a sample (`benchmarks/paced.py`): nobody gets faster while
another one is dead, and the busy moments of a shared machine do not stand in the result. Restarts, exchanges and
everything else take what they take on the real cores.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import describe_machine, machine_line, table, write_result
from benchmarks.paced import paced
from tutti import api
from tutti.config import load_config

HERE = Path(__file__).resolve().parent
REPLICAS, BATCH, SAMPLE_SECONDS = 4, 48, 0.03
SETTINGS = (
    *("data.source=python-stdlib", "data.sequence=64", "model=200K", f"replicas={REPLICAS}"),
    *(f"train.batch={BATCH}", "train.precision=fp32", "evaluate.prompts=[]"),
)
STEP_SECONDS = BATCH / REPLICAS * SAMPLE_SECONDS
STALL_SECONDS, GOODPUT, LOSS = 1.0, 0.9, 0.005


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="of the undisturbed run")
    parser.add_argument("--kills", type=int, default=30, help="of the run with many")
    parser.add_argument("--sync", default="allreduce", help="the policy")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    options = parser.parse_args()
    machine = describe_machine()
    work = Path(tempfile.mkdtemp(prefix="tutti-faults-"))
    try:
        page = measure(work, options, machine)
        print("\n" + page.read_text())
        print(f"written to {page}")
    finally:
        shutil.rmtree(work, ignore_errors=True)


def measure(work: Path, options: argparse.Namespace, machine: dict[str, Any]) -> Path:
    """The trainings, one after the other."""
    steps = round(60 * options.minutes / STEP_SECONDS)
    undisturbed = train(work, options, "undisturbed", steps)
    print(f"undisturbed: {undisturbed['tokens_per_second']:,.0f} tokens/s", flush=True)
    kills = [f"{60 * minute}s" for minute in range(1, round(options.minutes))]
    minutely = train(work, options, "minutely", steps, kills, work / "runs" / "undisturbed")
    print(f"every minute: {minutely['undisturbed']['goodput_ratio']:.3f} of it", flush=True)
    kills = [f"{10 + 15 * number}s" for number in range(options.kills)]
    many = train(work, options, "many", round((20 + 15 * options.kills) / STEP_SECONDS), kills)
    return report(options, machine, steps, undisturbed, minutely, many)


def train(
    work: Path,
    options: argparse.Namespace,
    name: str,
    steps: int,
    kills: Sequence[str] = (),
    against: Path | None = None,
) -> dict[str, Any]:
    """The report of one training; with `kills`, that of `tutti.chaos`."""
    every = max(1, steps // 10)
    words = [
        *(*SETTINGS, f"name={name}", f"sync={options.sync}", f"train.steps={steps}", f"runs={work / 'runs'}"),
        *(f"evaluate.every={every}", f"checkpoint.every={every}"),
    ]
    config = load_config(None, words)
    with paced((SAMPLE_SECONDS,) * REPLICAS):
        if not kills:
            return api.train(config, console=False)
        return api.chaos(config, {"kill": kills}, against=against, console=False)


def stalls_of(runs: list[dict[str, Any]]) -> list[float]:
    """Of every survivor of every kill."""
    return [
        seconds
        for run in runs
        for broken in run["disturbances"]
        for seconds in broken["stall_seconds"].values()
    ]


def report(
    options: argparse.Namespace,
    machine: dict[str, Any],
    steps: int,
    undisturbed: dict[str, Any],
    minutely: dict[str, Any],
    many: dict[str, Any],
) -> Path:
    """The page and its JSON."""
    runs = [minutely, many]
    stalls = np.array(stalls_of(runs))
    recoveries = np.array(
        [
            broken["recovery_seconds"]
            for run in runs
            for broken in run["disturbances"]
            if broken["recovery_seconds"]
        ]
    )
    p50, p95, p99 = np.percentile(stalls, [50, 95, 99])
    against = minutely["undisturbed"]
    ratio, difference = against["goodput_ratio"], against["validation_loss_difference"]
    relative = difference / undisturbed["validation_loss"]
    lost = sum(run["samples_lost"] + run["samples_trained_twice"] for run in runs)
    killed = sum(len(run["disturbances"]) for run in runs)
    rows = [
        ["kills of one of four replicas", f"{killed}", "≥ 30"],
        ["survivors' stall, p50 / p95", f"{p50:.2f} / {p95:.2f} s", ""],
        [
            "survivors' stall, p99",
            f"{p99:.2f} s ({verdict(p99 <= STALL_SECONDS)})",
            f"≤ {STALL_SECONDS:.0f} s",
        ],
        ["longest", f"{stalls.max():.2f} s", ""],
        [
            "goodput with a kill a minute ÷ undisturbed",
            f"{ratio:.3f} ({verdict(ratio >= GOODPUT)})",
            f"≥ {GOODPUT}",
        ],
        [
            "its validation loss ÷ undisturbed − 1",
            f"{relative:+.4f} ({verdict(abs(relative) <= LOSS)})",
            f"± {LOSS}",
        ],
        ["recovery of the victim, p50 / max", f"{np.median(recoveries):.1f} / {recoveries.max():.1f} s", ""],
        ["samples lost or trained twice", f"{lost}", "0"],
    ]
    text = (
        f"# Kills under `{options.sync}`\n\n{machine_line(machine)}\n\n"
        f"{REPLICAS} replicas of 200K parameters, {BATCH} samples a step at {SAMPLE_SECONDS} s each, "
        f"{steps:,} steps undisturbed and with {len(minutely['disturbances'])} "
        f"kills in {minutely['seconds']:.0f} s, {len(many['disturbances'])} kills in {many['seconds']:.0f} s; "
        f"{len(stalls)} stalls of survivors. Settings: `{' '.join(SETTINGS)}`.\n\n"
        + table(["", "measured", "target"], rows)
    )
    data = {"machine": machine, "undisturbed": undisturbed, "minutely": minutely, "many": many}
    return write_result(options.out, f"faults-{options.sync}", data, text)


def verdict(good: bool) -> str:
    return "met" if good else "missed"


if __name__ == "__main__":
    main()
