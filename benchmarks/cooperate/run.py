"""Does it help two models to teach each other? Equal steps, equal samples, with and without.

    make bench-cooperate TEXT=input.txt     (or: python -m benchmarks.cooperate.run --text input.txt)

Two groups of one size train on the same text from different first weights: alone (the burn-in never ends), telling
each other predictions, and telling each other weights. Each seed does all three; what cooperation changes is taken
within seeds. Loss is the mean of nats per character over 256 windows of text that was kept aside, after the last step,
averaged over the two groups. The text is Karpathy's tiny Shakespeare (char-rnn, data/tinyshakespeare/input.txt).

Time is not compared: two groups share the machine with whatever else runs on it.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.common import describe_machine, machine_line, median_and_spread, table, write_result
from benchmarks.trained import train_to_the_end
from tutti import load_config

HERE = Path(__file__).resolve().parent
WAYS = ("alone", "predictions", "weights")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--text", type=Path, required=True, help="tiny Shakespeare's input.txt")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1600)
    parser.add_argument("--weight", type=float, default=0.5)
    parser.add_argument("--out", type=Path, default=HERE / "results")
    options = parser.parse_args()
    machine = describe_machine()
    work = Path(tempfile.mkdtemp(prefix="tutti-cooperate-"))
    found: list[dict[str, Any]] = []
    try:
        for seed in range(options.seeds):
            for way in WAYS:
                found.append(train(work, options, way, seed))
                print(found[-1], flush=True)
            page = report(options, machine, found)
        print("\n" + page.read_text() + f"\nwritten to {page}")
    finally:
        shutil.rmtree(work, ignore_errors=True)


def train(work: Path, options: argparse.Namespace, way: str, seed: int) -> dict[str, Any]:
    """One run of two groups."""
    exchange = "predictions" if way == "alone" else way
    burn_in = options.steps if way == "alone" else options.steps // 4
    config = load_config(
        None,
        [
            f"name={way}-{seed}",
            f"runs={work / 'runs'}",
            f"data={{source: {options.text}, tokenizer: characters, sequence: 64, split: tail, cache: {work}}}",
            "model={size: 200K}",
            f"train={{steps: {options.steps}, batch: 16, learning_rate: 0.003, precision: fp32, seed: {10 * seed}}}",
            f"evaluate={{every: {options.steps}, samples: 256}}",
            f"checkpoint.every={options.steps}",
            "replicas=1",
            "groups=2",
            f"cooperate={{exchange: {exchange}, every: 50, burn_in: {burn_in}, weight: {options.weight}}}",
        ],
    )
    figures = train_to_the_end(config)
    groups = figures["groups"]
    return {
        "way": way,
        "seed": seed,
        "losses": [group["validation_loss"] for group in groups],
        "learnt": [group["learnt"] for group in groups],
        "parameters": groups[0]["parameters"],
    }


def report(options: argparse.Namespace, machine: dict[str, Any], found: list[dict[str, Any]]) -> Path:
    """Write what has been measured so far."""
    losses = {(run["way"], run["seed"]): sum(run["losses"]) / len(run["losses"]) for run in found}
    seeds = sorted({run["seed"] for run in found})
    rows = []
    for way in WAYS:
        own = [losses[way, seed] for seed in seeds]
        change = median_and_spread([losses[way, seed] - losses["alone", seed] for seed in seeds])
        learnt = [learnt for run in found if run["way"] == way for learnt in run["learnt"]]
        targets, taught = (sum(part[key] for part in learnt) for key in ("targets", "taught"))
        sent = [part["share_of_allreduce"] for part in learnt]
        rows.append(
            [
                way,
                " ".join(f"{loss:.4f}" for loss in own),
                "–"
                if way == "alone"
                else f"{change['median']:+.4f} ({change['least']:+.4f} to {change['most']:+.4f})",
                f"{100 * taught / targets:.0f} %" if targets else "–",
                "–" if way == "alone" else f"{100 * sum(sent) / len(sent):.1f} %",
            ]
        )
    head = [
        "two groups",
        "nats a character, each seed",
        "against alone",
        "targets taught",
        "of all-reduce sent",
    ]
    page = "\n\n".join(
        [
            "# Cooperation: two groups with and without",
            (__doc__ or "").split("\n\n", 2)[2].strip(),
            f"{options.steps} steps of 16 × 64 characters; {found[0]['parameters']:,} parameters a group; "
            f"cooperate: {{every: 50, burn_in: {options.steps // 4}, weight: {options.weight}, temperature: 1}}.",
            table(head, rows),
            machine_line(machine),
        ]
    )
    data = {"machine": machine, "steps": options.steps, "weight": options.weight, "runs": found}
    return write_result(options.out, "cooperate", data, page)


if __name__ == "__main__":
    main()
