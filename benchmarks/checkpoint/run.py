"""Checkpoints: what they cost a run that saves every 20 steps.

    make bench-checkpoint                      (or: python -m benchmarks.checkpoint.run --help)

Two runs of `tutti.train` with the same model, text, workers and cores, one that saves and one that does not, train
in turns of as many steps as lie between two saves, the save in the middle of the turn: so the writing in the
background ends inside the turn as well. Two figures:

- *blocked*: seconds that a save kept training waiting (from the run's `checkpoint` events) ÷ wall time of the turn;
- *overhead*: wall time of a turn with the save ÷ the turn without beside it, the median over all pairs, minus one.
  This also holds what writing in the background takes from training on a machine whose cores are all busy.

Beside them, as a figure that other work on the machine hardly moves: the same ratio of the workers' processor seconds.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.common import (
    describe_machine,
    first_cores,
    machine_line,
    median_and_spread,
    pin,
    ratios,
    table,
    write_result,
)
from benchmarks.turns import Contestant, PeerFailed

HERE = Path(__file__).resolve().parent
VOCABULARY, SEQUENCE, WORKERS = 8192, 256, 2
TARGET = 0.02
_START_SECONDS, _TURN_SECONDS = 240.0, 600.0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=6)
    parser.add_argument("--every", type=int, default=20, help="steps between two saves")
    parser.add_argument("--batch", type=int, default=8, help="samples of a step over both workers")
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16"], default="auto")
    parser.add_argument("--size", default="14M", help="the model's size, by Tutti's dial")
    parser.add_argument("--cores", default=None, help="two cores, e.g. 0,1 (default: the first two)")
    parser.add_argument("--minutes", type=float, default=8.0, help="start no pair that would end later")
    parser.add_argument(
        "--runs", type=Path, default=None, help="where the runs write (default: a temporary folder)"
    )
    parser.add_argument("--out", type=Path, default=HERE / "results")
    options = parser.parse_args()
    deadline = time.monotonic() + 60 * options.minutes
    pin(options.cores or first_cores(WORKERS))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    machine = describe_machine()
    work = Path(tempfile.mkdtemp(prefix="tutti-checkpoint-", dir=options.runs))
    try:
        page = measure(work, options, machine, deadline)
        print("\n" + page.read_text())
        print(f"written to {page}")
    except PeerFailed as failure:
        sys.exit(str(failure))
    finally:
        shutil.rmtree(work, ignore_errors=True)


def measure(work: Path, options: argparse.Namespace, machine: dict[str, Any], deadline: float) -> Path:
    """Both runs in turns; the result is written anew after every pair."""
    prepare_text()
    precision, reason = choose_precision(options.precision)
    print(f"precision {precision}: {reason}", flush=True)
    peers = {
        name: contestant(work, name, every, precision, options)
        for name, every in (("with", options.every), ("without", 1_000_000))
    }
    seconds: dict[str, list[float]] = {"with": [], "without": []}
    cpu_seconds: dict[str, list[float]] = {"with": [], "without": []}
    page: Path | None = None
    try:
        for peer in peers.values():
            peer.start()
        for peer in peers.values():
            peer.wait_ready(_START_SECONDS)
        for peer in peers.values():
            peer.take_turn(_TURN_SECONDS)
        print("warm; measuring", flush=True)
        longest = 0.0
        for pair in range(options.pairs):
            began = time.monotonic()
            if page is not None and began + longest > deadline:
                print(f"time is up after {pair} pairs", flush=True)
                break
            for name in ("with", "without") if pair % 2 == 0 else ("without", "with"):
                seconds[name].append(peers[name].take_turn(_TURN_SECONDS))
                cpu_seconds[name].append(sum(record["cpu_seconds"] for record in peers[name].records))
            longest = max(longest, time.monotonic() - began)
            print(
                f"pair {pair + 1}: {seconds['with'][-1]:.2f} s with, {seconds['without'][-1]:.2f} s without",
                flush=True,
            )
            saves = read_saves(work / "runs" / "with", options.every, len(seconds["with"]))
            page = report(options, machine, (precision, reason), seconds, cpu_seconds, saves)
    finally:
        for peer in peers.values():
            peer.stop()
    assert page is not None
    return page


def prepare_text() -> None:
    """Prepare the text once, so that neither run has to."""
    from tutti import api
    from tutti.config import parse_config

    print("preparing the text (once; it is cached)", flush=True)
    api.prepare(parse_config(f"data: {{vocabulary: {VOCABULARY}, sequence: {SEQUENCE}}}\n", "-"))


def choose_precision(wanted: str) -> tuple[str, str]:
    """The precision of both runs and the reason."""
    from tutti.hardware import fastest_precision

    return (wanted, "as asked for") if wanted != "auto" else fastest_precision("cpu", threads=1, seconds=0.5)


def contestant(work: Path, name: str, every: int, precision: str, options: argparse.Namespace) -> Contestant:
    """The run `name`, which saves every `every` steps; not yet started."""
    path = work / f"{name}.yaml"
    path.write_text(
        f"""
name: {name}
runs: {work / "runs"}
data: {{vocabulary: {VOCABULARY}, sequence: {SEQUENCE}}}
model: {options.size}
train:
  steps: 1000000
  batch: {options.batch}
  learning_rate: 3e-4
  schedule: constant
  warmup: 0
  precision: {precision}
replicas: {WORKERS}
evaluate: {{every: 1000000, samples: 2}}
checkpoint: {{every: {every}}}
watch: {{stall_seconds: 3600, kill_after_seconds: 7200}}
"""
    )
    command = [sys.executable, "-m", "benchmarks.tutti_peer", str(path)]
    # The warm-up is half a turn long, so that every save falls into the middle of one.
    return Contestant(name, command, work / f"turns-{name}", warmup=options.every // 2, steps=options.every)


def read_saves(run: Path, every: int, turns: int) -> list[dict[str, Any]]:
    """The `checkpoint` events of the saves of the measured turns that have ended."""
    from tutti.core import read_events

    return [event for event in read_events(run, "checkpoint") if event["step"] <= every * turns]


def report(
    options: argparse.Namespace,
    machine: dict[str, Any],
    precision: tuple[str, str],
    seconds: dict[str, list[float]],
    cpu_seconds: dict[str, list[float]],
    saves: list[dict[str, Any]],
) -> Path:
    """Write the result as it stands."""
    turn = statistics.median(seconds["with"])
    blocked = median_and_spread([save["blocked_seconds"] for save in saves])
    shares = [save["blocked_seconds"] / turn for save in saves]
    share = median_and_spread(shares)
    ratio = ratios(seconds["with"], seconds["without"])
    overhead = {key: ratio[key] - 1 for key in ("median", "least", "most")}
    cpu = ratios(cpu_seconds["with"], cpu_seconds["without"])
    targets = [
        {"what": "blocked ÷ wall", "target": TARGET, "reached": share, "met": share["median"] <= TARGET},
        {
            "what": "paired overhead",
            "target": TARGET,
            "reached": overhead,
            "met": overhead["median"] <= TARGET,
        },
    ]
    data = {
        "benchmark": "checkpoint",
        "machine": machine,
        "load_average_after": round(os.getloadavg()[0], 2),
        "task": {
            "size": options.size,
            "sequence": SEQUENCE,
            "batch": options.batch,
            "workers": WORKERS,
            "save_every_steps": options.every,
            "precision": precision[0],
            "precision_reason": precision[1],
        },
        "pairs": len(seconds["with"]),
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "saves": saves,
        "blocked_seconds": blocked,
        "targets": targets,
    }
    written = statistics.median(save["write_seconds"] for save in saves)
    rows = [
        [f"{pair + 1}", f"{a:.2f}", f"{b:.2f}", f"{100 * (a / b - 1):+.2f} %"]
        for pair, (a, b) in enumerate(zip(seconds["with"], seconds["without"], strict=True))
    ]
    lines = [
        "# Checkpoints",
        "",
        machine_line(machine) + ".",
        "",
        f"Llama of {options.size}, sequence {SEQUENCE}, batch {options.batch}, two workers with one thread each, "
        f"{precision[0]}; one save of {saves[0]['bytes'] / 1e6:.0f} MB every {options.every} steps "
        f"({turn:.1f} s); {len(seconds['with'])} pairs of turns.",
        "",
        f"A save blocks training for {1000 * blocked['median']:.0f} ms ({1000 * blocked['least']:.0f} to "
        f"{1000 * blocked['most']:.0f}) and is written in the background in {written:.2f} s.",
        "",
        table(["pair", "seconds with", "without", "overhead"], rows),
        "",
        *(_verdict(target) for target in targets),
        f"- for comparison: processor seconds of the workers {cpu['median'] - 1:+.2%} "
        f"({cpu['least'] - 1:+.2%} to {cpu['most'] - 1:+.2%})",
        "",
        "Repeat: `make bench-checkpoint`.",
    ]
    return write_result(options.out, "checkpoint", data, "\n".join(lines))


def _verdict(target: dict[str, Any]) -> str:
    reached = target["reached"]
    figures = f"{reached['median']:.2%} ({reached['least']:.2%} to {reached['most']:.2%})"
    return f"- {'met' if target['met'] else 'MISSED'}: {target['what']} = {figures}, target ≤ {target['target']:.0%}"


if __name__ == "__main__":
    main()
