"""Ways to make a trained model smaller, each beside the naive one that it has to beat.

    make bench-compress RUNS="runs/a runs/b runs/c"     (or: python -m benchmarks.compress.run RUN… --help)

RUNS: runs with labels, alike but for their seeds. Of each recipe: the metric on the validation examples, and how far
what the model thinks is from what it thought before, mean KL(before ‖ after) over targets, which a few hundred
examples decide where the metric does not. A method is worth having if it beats its naive baseline in every run.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.common import describe_machine, machine_line, median_and_spread, table, write_result
from tutti.compress.asked import AskedSubject
from tutti.compress.make import Maker
from tutti.compress.recipes import BEFORE, Recipe
from tutti.package import open_package, package_bytes
from tutti.tasks.scored import Scored
from tutti.trained import objective_with

HERE = Path(__file__).resolve().parent
#: The naive way, and what has to beat it.
PAIRS = (
    ("magnitude:0.4", "wanda:0.4"),
    ("magnitude:0.5", "wanda:0.5"),
    ("int4", "int4-gptq"),
    ("int4", "int4-awq"),
)
_AT_ONCE = 32


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=HERE / "results")
    options = parser.parse_args()
    machine = describe_machine()
    found: dict[str, list[dict[str, float]]] = {}
    subjects = {run: AskedSubject.of(run) for run in options.runs}
    if len({subject.job.prepared.fingerprint for subject in subjects.values()}) > 1:
        parser.error("these runs have learned from unlike data; measure those of each data set by themselves")
    options.data = options.runs[0].resolve().name.rstrip("-_0123456789")
    for run, subject in subjects.items():
        for name, figures in measure(subject).items():
            found.setdefault(name, []).append(figures)
            print(run, name, figures, flush=True)
    page = report(options, machine, found)
    print("\n" + page.read_text() + f"\nwritten to {page}")


def measure(subject: AskedSubject) -> dict[str, dict[str, float]]:
    """Of each recipe: `metric`, `divergence`, `bytes`."""
    names = dict.fromkeys([BEFORE.name, *(name for pair in PAIRS for name in pair)])
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        maker = Maker(subject, Path(folder))
        for name in names:
            made = maker.make(Recipe.of(name))
            model = open_package(made.directory).objective.model
            found[name] = {
                "metric": made.quality[subject.metric.name],
                "divergence": divergence(subject, model),
                "bytes": float(package_bytes(made.directory)),
            }
    return found


@torch.no_grad()
def divergence(subject: AskedSubject, model: nn.Module) -> float:
    """Mean KL(before ‖ after) over the targets of the validation examples, nats."""
    source = subject.job.source("validation")
    before, after = (objective_with(subject.job, one).eval() for one in (subject.model, model))
    assert isinstance(before, Scored)
    assert isinstance(after, Scored)
    total, targets = 0.0, 0
    for start in range(0, source.samples_in_epoch(0), _AT_ONCE):
        batch = source.load(0, range(start, min(start + _AT_ONCE, source.samples_in_epoch(0))))
        p, q = (one.chances(one.logits(batch), batch) for one in (before, after))
        total += float((p.exp() * (p - q)).sum())
        targets += len(p)
    return total / max(1, targets)


def report(
    options: argparse.Namespace, machine: dict[str, Any], found: dict[str, list[dict[str, float]]]
) -> Path:
    """The page."""
    lines = [
        [
            name,
            _spread([one["metric"] for one in runs], 4),
            _spread([one["divergence"] for one in runs], 5),
            f"{runs[0]['bytes'] / 1e6:.1f}",
        ]
        for name, runs in found.items()
    ]
    verdicts = []
    for naive, better in PAIRS:
        pairs = list(zip(found[naive], found[better], strict=True))
        nearer = sum(b["divergence"] < a["divergence"] for a, b in pairs)
        gain = [b["metric"] - a["metric"] for a, b in pairs]
        verdicts.append([f"{better} beside {naive}", f"{nearer} of {len(pairs)}", _spread(gain, 4)])
    text = (
        f"# Making models smaller: what each way costs\n\n{machine_line(machine)}\n\n"
        f"`{options.data}`: {len(options.runs)} runs, alike but for their seeds; medians, in brackets the smallest and "
        "the largest.\n\n"
        + table(("recipe", "metric", "KL(before ‖ after), nats", "MB"), lines)
        + "\n\n"
        + table(("", "nearer to the model as it was, runs", "metric gained"), verdicts)
        + '\n\nRepeat: `make bench-compress RUNS="…"`.\n'
    )
    data = {"benchmark": "compress", "data": options.data, "machine": machine, "runs": found}
    return write_result(options.out, f"compress-{options.data}", data, text)


def _spread(values: list[float], digits: int) -> str:
    found = median_and_spread(values)
    return f"{found['median']:.{digits}f} ({found['least']:.{digits}f} to {found['most']:.{digits}f})"


if __name__ == "__main__":
    main()
