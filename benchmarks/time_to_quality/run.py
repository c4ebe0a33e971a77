"""Time to quality: nanoGPT's CPU recipe as a plain PyTorch loop against Tutti, on one core.

    make bench-quality TEXT=input.txt     (or: python -m benchmarks.time_to_quality.run --text input.txt)

Two questions. *How soon* does Tutti reach the loss that the peer ends with? A short run of Tutti's recipe answers
it. *How far* does Tutti get in the time that the peer takes? A long run answers that. Every round trains the
peer, the short and the long run one after the other, each round in another order; ratios are taken within
rounds, then their median. The result is written after every round.

Loss is the mean of nats per character over the whole last 10 % of the text, in windows side by side as long as the
samples that were trained on (64 characters for both). Validation is outside both clocks. The text is Karpathy's
tiny Shakespeare (char-rnn, data/tinyshakespeare/input.txt).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

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

HERE = Path(__file__).resolve().parent
TARGET_TIME, TARGET_LOSS = 0.25, 1.60

#: A run: its curve [{wall_seconds, cpu_seconds, nats_per_character}], parameters, seed.
Run = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--text", type=Path, required=True, help="tiny Shakespeare's input.txt")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--core", default=None, help="the core to run on (default: the first)")
    parser.add_argument("--short", type=int, default=170, help="steps of the short run")
    parser.add_argument("--long", type=int, default=800, help="steps of the long run")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    options = parser.parse_args()
    pin(options.core or first_cores(1))
    machine = describe_machine()
    work = Path(tempfile.mkdtemp(prefix="tutti-quality-"))
    rounds: list[dict[str, Run]] = []
    try:
        for number in range(options.rounds):
            ways = [("peer", None), ("short", options.short), ("long", options.long)]
            found: dict[str, Run] = {}
            for name, steps in ways[number % 3 :] + ways[: number % 3]:
                found[name] = train(work, options.text, name, number, steps)
                last = found[name]["curve"][-1]
                print(
                    f"round {number + 1}, {name}: {last['nats_per_character']:.4f} nats/character after "
                    f"{last['wall_seconds']:.1f} s ({last['cpu_seconds']:.1f} s of processor time)",
                    flush=True,
                )
            rounds.append(found)
            page = report(options, machine, rounds)
        print("\n" + page.read_text())
        print(f"written to {page}")
    finally:
        shutil.rmtree(work, ignore_errors=True)


# One run --------------------------------------------------------------------------------------------------------


def train(work: Path, text: Path, name: str, seed: int, steps: int | None) -> Run:
    """Train the peer (`steps` None) or Tutti's recipe for `steps`, in a process and a session of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    if steps is None:
        out = work / f"peer-{seed}.json"
        arguments = [str(HERE / "peer.py"), "--text", str(text), "--seed", str(seed), "--out", str(out)]
        _call(arguments, environment)
        peer: Run = json.loads(out.read_text(encoding="utf-8"))
        return peer
    clock = work / f"{name}-{seed}.clock"
    settings = [
        f"name={name}-{seed}",
        f"runs={work / 'runs'}",
        f"data.source={text.resolve()}",
        f"data.cache={work / 'cache'}",
        f"train.steps={steps}",
        f"train.seed={seed}",
        f"evaluate.every={math.ceil(steps / 12)}",
        f"checkpoint.every={steps}",
    ]
    module = ["-m", "benchmarks.time_to_quality.clocked", str(HERE / "tutti.yaml")]
    _call([*module, *settings], {**environment, "CLOCK": str(clock)})
    return _curve_of(work / "runs" / f"{name}-{seed}", clock)


def _call(arguments: list[str], environment: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, *arguments],
        env=environment,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    if done.returncode:
        sys.exit(f"{' '.join(arguments)} failed:\n{done.stdout[-4000:]}")


def _curve_of(run: Path, clock: Path) -> Run:
    """Validation losses from the run's diary, times from the clock: one line for each, in the same order."""
    from tutti.core import read_events

    times = [json.loads(line) for line in clock.read_text(encoding="utf-8").splitlines()]
    losses = list(read_events(run, "validation"))
    started = next(read_events(run, "run_started"))
    curve = [
        {"step": loss["step"], **time, "nats_per_character": loss["loss"]}
        for time, loss in zip(times, losses, strict=True)
    ]
    return {"who": "tutti", "parameters": started["parameters"], "curve": curve}


# What it means --------------------------------------------------------------------------------------------------


def reached(run: Run, loss: float, clock: str) -> float:
    """Seconds on `clock` until `run` first validated at `loss` or less; infinite when it never did."""
    return next((p[clock] for p in run["curve"] if p["nats_per_character"] <= loss), math.inf)


def best_within(run: Run, seconds: float, clock: str) -> float:
    """The lowest loss that `run` had validated at by `seconds` on `clock`."""
    return min((p["nats_per_character"] for p in run["curve"] if p[clock] <= seconds), default=math.inf)


def judge(rounds: list[dict[str, Run]], clock: str) -> dict[str, Any]:
    """Both figures by `clock`, round by round: share of the peer's time, and loss within the peer's time."""
    ends = [found["peer"]["curve"][-1] for found in rounds]
    soon = [
        reached(found["short"], end["nats_per_character"], clock)
        for found, end in zip(rounds, ends, strict=True)
    ]
    far = [best_within(found["long"], end[clock], clock) for found, end in zip(rounds, ends, strict=True)]
    return {
        "peer_seconds": median_and_spread([end[clock] for end in ends]),
        "peer_loss": median_and_spread([end["nats_per_character"] for end in ends]),
        "seconds_to_peer_loss": median_and_spread(soon),
        "share_of_peer_time": ratios(soon, [end[clock] for end in ends]),
        "loss_within_peer_time": median_and_spread(far),
    }


def report(options: argparse.Namespace, machine: dict[str, Any], rounds: list[dict[str, Run]]) -> Path:
    """Write the result as it stands."""
    judged = {clock: judge(rounds, clock) for clock in ("wall_seconds", "cpu_seconds")}
    data = {
        "benchmark": "time to quality",
        "machine": machine,
        "load_average_after": round(os.getloadavg()[0], 2),
        "recipe": (HERE / "tutti.yaml").read_text(encoding="utf-8"),
        "steps": {"short": options.short, "long": options.long},
        "targets": {"share_of_peer_time": TARGET_TIME, "loss_within_peer_time": TARGET_LOSS},
        "judged": judged,
        "rounds": rounds,
    }
    return write_result(
        options.out, "time-to-quality", _finite(data), _page(options, machine, rounds, judged)
    )


def _finite(value: Any) -> Any:
    """JSON has no infinity: what was never reached is null."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _page(
    options: argparse.Namespace,
    machine: dict[str, Any],
    rounds: list[dict[str, Run]],
    judged: dict[str, dict[str, Any]],
) -> str:
    rows = [
        [
            what,
            *(say_ratio(judged[clock][key]) for clock in ("wall_seconds", "cpu_seconds")),
            target,
        ]
        for what, key, target in (
            ("peer: seconds", "peer_seconds", ""),
            ("peer: final loss", "peer_loss", ""),
            ("Tutti: seconds to the peer's loss", "seconds_to_peer_loss", ""),
            ("Tutti's time ÷ the peer's", "share_of_peer_time", f"≤ {TARGET_TIME}"),
            ("Tutti's loss within the peer's time", "loss_within_peer_time", f"≤ {TARGET_LOSS:.2f}"),
        )
    ]
    wall = judged["wall_seconds"]
    verdicts = [
        _verdict(
            "time to the peer's loss, share of the peer's time", wall["share_of_peer_time"], TARGET_TIME
        ),
        _verdict("loss within the peer's time", wall["loss_within_peer_time"], TARGET_LOSS),
    ]
    first = rounds[0]
    return "\n".join(
        [
            "# Time to quality",
            "",
            machine_line(machine) + ".",
            "",
            "Tiny Shakespeare by characters, one core, one thread, fp32. Loss: nats per character over the whole last "
            f"10 % of the text, context 64. Peer: {first['peer']['parameters']:,} parameters, 2000 iterations of "
            f"12 × 64. Tutti: {first['long']['parameters']:,} parameters; a short run of {options.short} steps and "
            f"a long one of {options.long}, of 16 × 64. {len(rounds)} rounds; medians, in brackets the least and "
            "the most.",
            "",
            table(["what", "wall time", "processor time", "target"], rows),
            "",
            *verdicts,
            "",
            "Repeat: `make bench-quality TEXT=input.txt`.",
        ]
    )


def _verdict(what: str, found: dict[str, Any], most: float) -> str:
    word = "met" if found["median"] <= most else "MISSED"
    return f"- {word}: {what} = {say_ratio(found)}, target ≤ {most} ({found['median'] / most - 1:+.1%})"


if __name__ == "__main__":
    main()
