"""Throughput: Tutti, the Hugging Face Trainer and a bare loop train the same model on the same two cores.

    make bench-throughput                      (or: python -m benchmarks.throughput.run --help)

A Llama of about 14M parameters, sequence 256, two workers with one thread each, the same initial weights, batch,
micro-batch, optimizer, precision and text. All peers are started once and then train in turns (`turns.py`), so
each round compares them under the same conditions; ratios are taken within rounds, then their median. In every
round the matrix rate of both cores together is measured as well: that is the peak that utilisation refers to.

Start, compilation and the first steps are not counted. Everything inside a turn is: data, forward, backward,
all-reduce, optimizer and whatever a peer does besides.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
from benchmarks.turns import Contestant, PeerFailed, torchrun

HERE = Path(__file__).resolve().parent
VOCABULARY, SEQUENCE, LEARNING_RATE = 8192, 256, 3e-4
WORKERS = 2

#: Name of a peer → how it is started: `tutti` with settings, or a module of this directory with its arguments.
PEERS: dict[str, tuple[str, list[str]]] = {
    "tutti": ("tutti", ["sync.implementation=buckets"]),
    "tutti ddp": ("tutti", ["sync.implementation=ddp"]),
    "tutti compile": ("tutti", ["sync.implementation=buckets", "train.compile=true"]),
    "trainer": ("trainer", []),
    "trainer compile": ("trainer", ["compile"]),
    "bare": ("bare", []),
    "bare compile": ("bare", ["compile"]),
}
DEFAULT_PEERS = "tutti,tutti ddp,tutti compile,trainer,trainer compile,bare"
TUTTI_PEERS = ("tutti", "tutti ddp", "tutti compile")

#: (what, its peer's name, at least). Tutti's figure is that of its fastest variant.
TARGETS = (("Hugging Face Trainer", "trainer", 1.3), ("bare loop", "bare", 0.97))
TARGET_UTILISATION = 0.45

_START_SECONDS = 240.0
_TURN_SECONDS = 300.0


@dataclass
class Measured:
    """One number a round: tokens a second of each peer, its processor seconds a step (all ranks, without launchers),
    and FLOP/s of the machine."""

    tokens_per_second: dict[str, list[float]] = field(default_factory=dict)
    cpu_seconds: dict[str, list[float]] = field(default_factory=dict)
    peak: list[float] = field(default_factory=list)
    losses: dict[str, float] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peers", default=DEFAULT_PEERS, help=f"of: {', '.join(PEERS)}")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=2, help="steps of a turn")
    parser.add_argument("--warmup", type=int, default=4, help="steps before the first round")
    parser.add_argument("--batch", type=int, default=16, help="samples of a step over both workers")
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16"], default="auto")
    parser.add_argument("--size", default="14M", help="the model's size, by Tutti's dial")
    parser.add_argument("--cores", default=None, help="two cores, e.g. 0,1 (default: the first two)")
    parser.add_argument("--minutes", type=float, default=10.0, help="start no round that would end later")
    parser.add_argument(
        "--profile", action="store_true", help="profile Tutti's step also when targets are met"
    )
    parser.add_argument("--out", type=Path, default=HERE / "results")
    options = parser.parse_args()
    deadline = time.monotonic() + 60 * options.minutes
    pin(options.cores or first_cores(WORKERS))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    machine = describe_machine()
    work = Path(tempfile.mkdtemp(prefix="tutti-throughput-"))
    try:
        task = prepare(work, options)
        print(f"precision {task['precision']}: {task['precision_reason']}", flush=True)
        names = [name.strip() for name in options.peers.split(",")]
        measured = measure(work, names, task, options, lambda m: report(options, machine, task, m), deadline)
        page = report(options, machine, task, measured)
        if options.profile or any(not target["met"] for target in judge(task, measured)):
            profile(work, task, page)
        print("\n" + page.read_text())
        print(f"written to {page}")
    finally:
        shutil.rmtree(work, ignore_errors=True)


# Before: the same for all -------------------------------------------------------------------------------------


def prepare(work: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Text, initial weights and precision, written where the peers read them."""
    from tutti import api
    from tutti.config import parse_config
    from tutti.hardware import fastest_precision
    from tutti.models import build_model, count_parameters, flops_per_token

    config = parse_config(
        f"data: {{vocabulary: {VOCABULARY}, sequence: {SEQUENCE}}}\nmodel: {options.size}\n", "-"
    )
    print("preparing the text (once; it is cached)", flush=True)
    prepared = api.prepare(config)
    model, _ = build_model(
        config.model, vocabulary=prepared.vocabulary, sequence=SEQUENCE, seed=0, end_token=prepared.end_token
    )
    model.save_pretrained(work / "model")
    precision, reason = options.precision, "as asked for"
    if precision == "auto":
        precision, reason = fastest_precision("cpu", threads=1, seconds=0.5)
        if precision == "fp16":
            precision, reason = "fp32", f"fp16 is no format of this benchmark ({reason})"
    shape = model.config
    task = {
        "model": str(work / "model"),
        "parameters": count_parameters(model).total,
        "shape": f"{shape.num_hidden_layers} layers, width {shape.hidden_size}, {shape.num_attention_heads} heads, "
        f"feed-forward {shape.intermediate_size}, vocabulary {shape.vocab_size}, "
        f"head {'tied' if shape.tie_word_embeddings else 'of its own'}",
        "flops_per_token": flops_per_token(model, SEQUENCE),
        "files": [str(prepared.directory / s.tokens_file.name) for s in prepared.splits["train"].shards],
        "sequence": SEQUENCE,
        "batch": options.batch,
        "micro_batch": options.batch // WORKERS,
        "learning_rate": LEARNING_RATE,
        "precision": precision,
        "precision_reason": reason,
    }
    (work / "task.json").write_text(json.dumps(task))
    return task


def contestant(work: Path, name: str, task: dict[str, Any], options: argparse.Namespace) -> Contestant:
    """The peer `name`, not yet started."""
    kind, arguments = PEERS[name]
    directory = work / name.replace(" ", "-")
    if kind == "tutti":
        command = tutti_command(work, directory.name, task, arguments)
    else:
        command = torchrun(
            f"benchmarks.throughput.{kind}", [str(work / "task.json"), *arguments], _free_port()
        )
    return Contestant(name, command, directory, warmup=options.warmup, steps=options.steps)


def tutti_command(work: Path, name: str, task: dict[str, Any], settings: list[str]) -> list[str]:
    """Tutti's ordinary run of the same task; validation and checkpoints come after the last step of all."""
    config = f"""
name: {name}
runs: {work / "runs"}
data: {{vocabulary: {VOCABULARY}, sequence: {SEQUENCE}}}
model: {{path: {task["model"]}}}
train:
  steps: 1000000
  batch: {task["batch"]}
  micro_batch: {task["micro_batch"]}
  learning_rate: {task["learning_rate"]}
  schedule: constant
  warmup: 0
  precision: {task["precision"]}
replicas: {WORKERS}
evaluate: {{every: 1000000, samples: 2}}
checkpoint: {{every: 1000000}}
watch: {{stall_seconds: 3600, kill_after_seconds: 7200}}
"""
    path = work / f"{name}.yaml"
    path.write_text(config)
    return [sys.executable, "-m", "benchmarks.tutti_peer", str(path), *settings]


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


# The rounds ----------------------------------------------------------------------------------------------------


def measure(
    work: Path,
    names: list[str],
    task: dict[str, Any],
    options: argparse.Namespace,
    note: Any,
    deadline: float,
) -> Measured:
    """Start every peer, warm each up, then let them train in turns; `note(measured)` after every round."""
    measured = Measured()
    yardstick = [sys.executable, "-m", "benchmarks.throughput.peak", str(work / "task.json")]
    peaks = [
        Contestant(f"peak {r}", yardstick, work / f"peak-{r}", warmup=1, steps=1, ranks=1)
        for r in range(WORKERS)
    ]
    peers = {name: contestant(work, name, task, options) for name in names}
    try:
        for one in (*peaks, *peers.values()):
            one.start()
        for name in names:
            _attempt(measured, peers, name, lambda peer: peer.wait_ready(_START_SECONDS))
        print("all started; warming up", flush=True)
        for name in names:
            began = time.monotonic()
            _attempt(measured, peers, name, lambda peer: peer.take_turn(_TURN_SECONDS))
            print(f"  {name}: {time.monotonic() - began:.0f} s", flush=True)
        measure_peak(peaks)
        tokens = options.steps * task["batch"] * task["sequence"]
        longest = 0.0
        for number in range(options.rounds):
            began = time.monotonic()
            if began + longest > deadline:
                print(f"time is up after {number} rounds", flush=True)
                break
            measured.peak.append(measure_peak(peaks))
            alive = [name for name in names if name in peers]
            # Each round begins with another peer: none always follows the same one.
            for name in alive[number % len(alive) :] + alive[: number % len(alive)]:
                seconds = _attempt(measured, peers, name, lambda peer: peer.take_turn(_TURN_SECONDS))
                if seconds is not None:
                    measured.tokens_per_second.setdefault(name, []).append(tokens / seconds)
                    spent = sum(record["cpu_seconds"] for record in peers[name].records)
                    measured.cpu_seconds.setdefault(name, []).append(spent / options.steps)
                    loss = peers[name].records[0]["loss"]
                    if loss is not None:
                        measured.losses[name] = loss
            longest = max(longest, time.monotonic() - began)
            figures = ", ".join(f"{n} {v[-1]:.0f}" for n, v in measured.tokens_per_second.items())
            print(
                f"round {number + 1}, tokens/s: {figures}; peak {measured.peak[-1] / 1e9:.0f} GFLOP/s",
                flush=True,
            )
            note(measured)
    finally:
        for one in (*peaks, *peers.values()):
            one.stop()
    return measured


def _attempt(measured: Measured, peers: dict[str, Contestant], name: str, action: Any) -> Any:
    """`action(peer)`; a peer that fails is left out from now on, and said to be."""
    if name not in peers:
        return None
    try:
        return action(peers[name])
    except PeerFailed as failure:
        print(failure, flush=True)
        measured.failures[name] = str(failure)
        measured.tokens_per_second.pop(name, None)
        peers.pop(name).stop()
        return None


def measure_peak(peaks: list[Contestant]) -> float:
    """FLOP/s of all cores together: all multiply at the same time."""
    for one in peaks:
        one.wait_ready(_START_SECONDS)
    for one in peaks:
        one.release()
    for one in peaks:
        one.wait_ready(_TURN_SECONDS)
    return sum(one.records[0]["loss"] or 0.0 for one in peaks)


# After: what it means --------------------------------------------------------------------------------------------


def fastest_of_tutti(measured: Measured) -> str:
    """The variant of Tutti with the best median."""
    variants = [name for name in TUTTI_PEERS if name in measured.tokens_per_second]
    return max(variants, key=lambda n: median_and_spread(measured.tokens_per_second[n])["median"], default="")


def utilisation(task: dict[str, Any], measured: Measured, name: str) -> dict[str, Any]:
    """Model FLOP/s of a peer ÷ the peak measured in the same round."""
    rates = [task["flops_per_token"] * tokens for tokens in measured.tokens_per_second[name]]
    return ratios(rates, measured.peak)


def judge(task: dict[str, Any], measured: Measured) -> list[dict[str, Any]]:
    """Every target with what was reached; a target whose peer is missing is not met."""
    best = fastest_of_tutti(measured)
    if not best:
        return [{"what": "Tutti ran", "target": 1, "reached": None, "met": False}]
    own = measured.tokens_per_second[best]
    judged = []
    for what, name, least in TARGETS:
        found = ratios(own, measured.tokens_per_second[name]) if name in measured.tokens_per_second else None
        judged.append(_judged(f"{best} ÷ {what}", least, found))
    judged.append(
        _judged(f"{best}: share of the measured peak", TARGET_UTILISATION, utilisation(task, measured, best))
    )
    return judged


def _judged(what: str, least: float, found: dict[str, Any] | None) -> dict[str, Any]:
    met = found is not None and found["median"] >= least
    return {"what": what, "target": least, "reached": found, "met": met}


def report(
    options: argparse.Namespace, machine: dict[str, Any], task: dict[str, Any], measured: Measured
) -> Path:
    """Write the result as it stands."""
    judged = judge(task, measured)
    peers = {
        name: {
            "tokens_per_second": median_and_spread(values),
            "cpu_seconds_per_step": median_and_spread(measured.cpu_seconds[name]),
            "utilisation": utilisation(task, measured, name),
            "last_loss": measured.losses.get(name),
        }
        for name, values in measured.tokens_per_second.items()
    }
    data = {
        "benchmark": "throughput",
        "machine": machine,
        "load_average_after": round(os.getloadavg()[0], 2),
        "task": {key: value for key, value in task.items() if key not in ("model", "files")},
        "rounds": len(measured.peak),
        "steps_per_turn": options.steps,
        "peak_flops": median_and_spread(measured.peak),
        "peers": peers,
        "targets": judged,
        "failures": measured.failures,
    }
    return write_result(options.out, "throughput", data, _page(options, machine, task, measured, judged))


def _page(
    options: argparse.Namespace,
    machine: dict[str, Any],
    task: dict[str, Any],
    measured: Measured,
    judged: list[dict[str, Any]],
) -> str:
    rows = []
    for name, values in measured.tokens_per_second.items():
        speed, used = median_and_spread(values), utilisation(task, measured, name)
        against = [
            say_ratio(ratios(values, measured.tokens_per_second[other]))
            if other in measured.tokens_per_second
            else "–"
            for other in ("trainer", "trainer compile", "bare")
        ]
        rows.append(
            [
                name,
                f"{speed['median']:.0f} ({speed['least']:.0f} to {speed['most']:.0f})",
                f"{100 * used['median']:.1f} %",
                f"{statistics.median(measured.cpu_seconds[name]):.2f}",
                *against,
            ]
        )
    peak = median_and_spread(measured.peak)
    verdicts = [_verdict(target) for target in judged]
    failures = [f"- {name} failed: {text.splitlines()[0]}" for name, text in measured.failures.items()]
    return "\n".join(
        [
            "# Throughput",
            "",
            machine_line(machine) + ".",
            "",
            f"Llama of {task['parameters'] / 1e6:.1f}M parameters ({task['shape']}), sequence {task['sequence']}, "
            f"batch {task['batch']} over {WORKERS} workers with one thread each (micro-batch {task['micro_batch']}), "
            f"{task['precision']}: {task['precision_reason']}. {len(measured.peak)} rounds, {options.steps} steps a "
            "turn; medians, in brackets the least and the most of the rounds.",
            "",
            f"Peak: matrix products of both cores at once, measured in every round, {peak['median'] / 1e9:.0f} GFLOP/s "
            f"({peak['least'] / 1e9:.0f} to {peak['most'] / 1e9:.0f}); a token costs "
            f"{task['flops_per_token'] / 1e6:.1f} MFLOP.",
            "",
            table(
                [
                    "peer",
                    "tokens/s",
                    "of the peak",
                    "CPU s a step",
                    "÷ trainer",
                    "÷ trainer compile",
                    "÷ bare",
                ],
                rows,
            ),
            "",
            *verdicts,
            *failures,
            "",
            "Repeat: `make bench-throughput`.",
        ]
    )


def _verdict(target: dict[str, Any]) -> str:
    if target["reached"] is None:
        return f"- not measured: {target['what']} (target {target['target']})"
    reached, least = target["reached"]["median"], target["target"]
    word = "met" if target["met"] else "MISSED"
    return f"- {word}: {target['what']} = {say_ratio(target['reached'])}, target ≥ {least} ({reached / least - 1:+.1%})"


def profile(work: Path, task: dict[str, Any], page: Path) -> None:
    """Where Tutti's step spends its time, on one worker, beside the result."""
    from benchmarks.throughput.profile import profile_step

    text = profile_step(task)
    page.with_name(page.stem + "-profile.txt").write_text(text)
    with page.open("a", encoding="utf-8") as file:
        file.write(f"\nProfile of Tutti's step: `{page.stem}-profile.txt`.\n")


if __name__ == "__main__":
    main()
