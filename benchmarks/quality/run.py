"""What small models learn from a few megabytes of text, against what a compressor and word counts make of it.

    make bench-text DATA=DIR            (or: python -m benchmarks.quality.run --data DIR --help)

DIR holds the texts techdocs_en and chinese_poetry. Three questions:

- `techdocs`, `poems`: bits per byte of a causal model on the whole validation part. The floor is what xz needs for the
  validation part behind the training part (the size of both together less that of the first), which has seen as much.
- `dynasties`: an encoder pretrained here on poems (and on the training poems of the task, without their labels; what
  shares a passage with the dev part is left out), then fine-tuned to tell Tang from Song; accuracy on the dev part,
  whose authors the training part does not have. Beside it the same encoder that has read nothing before. Floor: naive
  Bayes on character n-grams. The task is printed in traditional characters, a third of the collections in simplified
  ones, where the same word is other characters; these are read in traditional ones (OpenCC).

Within a run nothing is chosen by looking at the figure: it is that of the last step. The recipe of the encoder was
revised after its figure on the dev part had been seen (0.80, 0.81), which favours the one it has now. Results are kept
one by one in --out, runs in --work: what was interrupted goes on, also in the middle of a run.
"""

from __future__ import annotations

import argparse
import json
import lzma
import shutil
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, describe_machine, machine_line, median_and_spread, table, write_result
from benchmarks.kept import Kept
from benchmarks.trained import train_to_the_end
from tutti import api, load_config
from tutti.core.files import write_text_atomically
from tutti.core.rundir import RunDirectory
from tutti.train.checkpoints.retention import entries

HERE = Path(__file__).resolve().parent
#: Of a language model: its text, and what is said of the run.
TEXTS = {
    "techdocs": (
        "techdocs_en",
        ["model=8M", "data.vocabulary=8192", "data.sequence=512", "train.batch=16", "train.optimizer=muon"],
        900,
    ),
    "poems": (
        "chinese_poetry",
        ["model=3M", "data.tokenizer=characters", "data.sequence=128", "train.batch=64"],
        1000,
    ),
}
ENCODER = ["model=3M", "data.tokenizer=characters", "data.sequence=128", "train.batch=64",
           "task=masked_language_model", "train.learning_rate=0.002"]  # fmt: skip
ENCODER_STEPS = 4500
TUNED_EPOCHS = 3
_ONCE = 1_000_000
#: Characters that two poems share by more than chance: two lines of five.
_PASSAGE = 10


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the texts")
    parser.add_argument("--only", nargs="*", choices=[*TEXTS, "dynasties"], default=[*TEXTS, "dynasties"])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2], help="of fine-tuning")
    parser.add_argument("--smoke", action="store_true", help="six steps each, for whoever changes this")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "quality", help="for runs")
    options = parser.parse_args()
    machine = describe_machine()
    kept = Kept(options.out / "quality", machine)
    for name in options.only:
        if name in TEXTS:
            show(kept.once(name, partial(language_model, options, name)))
            report(options.out, kept, machine)
            continue
        show(kept.once("encoder", partial(encoder, options)))
        for seed in options.seeds:
            for pretrained in (True, False):
                which = "pretrained" if pretrained else "new"
                show(kept.once(f"dynasties-{which}-{seed}", partial(tuned, options, seed, pretrained)))
                report(options.out, kept, machine)
    print("\n" + report(options.out, kept, machine).read_text())


def show(found: dict[str, Any] | None) -> None:
    if found is not None:
        print({key: value for key, value in found.items() if key != "machine"}, flush=True)


def language_model(options: argparse.Namespace, name: str) -> dict[str, Any]:
    """A causal model of the text `name`, and what xz makes of the same."""
    folder, words, steps = TEXTS[name]
    train, valid = (options.data.absolute() / folder / f"{part}.jsonl" for part in ("train", "valid"))
    run = train_run(options, name, [*words, *sources(train, valid)], steps)
    measured = api.evaluate(run)
    return {
        "kind": "language model", "name": name, "bits_per_byte": measured["bits_per_byte"],
        "xz_bits_per_byte": xz(train, valid), "targets": measured["targets"], **told(run),
    }  # fmt: skip


def encoder(options: argparse.Namespace) -> dict[str, Any]:
    """The encoder that has read poems."""
    task = options.data.absolute() / "chinese_poetry" / "tang_vs_song"
    read, valid = (traditional(options, part) for part in ("train.jsonl", "valid.jsonl"))
    words = [
        f"data.source=[{read}, {task / 'train.jsonl'}]",
        f"data.validation_source={valid}",
        f"data.clean={{decontaminate: {_PASSAGE}, against: [{task / 'dev.jsonl'}]}}",
    ]
    run = train_run(options, "encoder", [*ENCODER, *words], ENCODER_STEPS)
    return {"kind": "encoder", **judged(run), **told(run)}


def tuned(options: argparse.Namespace, seed: int, pretrained: bool) -> dict[str, Any]:
    """A classifier of poems, from the encoder or from one like it that has read nothing."""
    task = options.data.absolute() / "chinese_poetry" / "tang_vs_song"
    train, dev = (task / f"{part}.jsonl" for part in ("train", "dev"))
    export = options.work.absolute() / "runs" / "encoder" / "export"
    model = str(export) if pretrained else f"{{path: {export}, from_scratch: true}}"
    words = [
        f"model={model}",
        f"data.tokenizer={export}",
        "task=classify",
        "data.sequence=128",
        f"train.seed={seed}",
    ]
    name = f"dynasties-{'pretrained' if pretrained else 'new'}-{seed}"
    words += sources(train, dev)
    if not pretrained:
        words.append("train.learning_rate=0.001")
    run = train_run(options, name, words, None)
    return {
        "kind": "dynasties", "pretrained": pretrained, "seed": seed, **judged(run), **told(run),
        "naive_bayes": naive_bayes(train, dev),
    }  # fmt: skip


def traditional(options: argparse.Namespace, part: str) -> Path:
    """A copy of that part of the poems in traditional characters. A poem that is printed in them stays as it is: its
    edition has variants of its own."""
    from opencc import OpenCC

    copy: Path = options.work.absolute() / "traditional" / part
    if not copy.exists():
        copy.parent.mkdir(parents=True, exist_ok=True)
        lines = (options.data / "chinese_poetry" / part).read_text().splitlines()
        poems = [json.loads(line) for line in lines]
        ways = [OpenCC(name).convert for name in ("s2t", "t2s")]
        for poem in poems:
            text = poem["text"]
            changed = [sum(a != b for a, b in zip(text, way(text), strict=False)) for way in ways]
            if changed[0] > changed[1]:
                poem["text"] = ways[0](text)
        written = [json.dumps(poem, ensure_ascii=False) for poem in poems]
        write_text_atomically(copy, "\n".join(written) + "\n")
    return copy


def sources(train: Path, valid: Path) -> list[str]:
    return [f"data.source={train}", f"data.validation_source={valid}"]


def train_run(options: argparse.Namespace, name: str, words: list[str], steps: int | None) -> Path:
    """A run of `steps` (None: of some epochs): trained, or gone on with where it was interrupted."""
    runs = options.work.absolute() / "runs"
    place = RunDirectory.of(str(runs), name)
    if place.report_json.exists():
        report = json.loads(place.report_json.read_text())
        if report["state"] == "finished" and steps in (None, report["steps_planned"]):
            return place.path
    begun = bool(entries(place.checkpoints))
    if not begun:
        shutil.rmtree(place.path, ignore_errors=True)
    long = [f"train.steps={steps}"] if steps is not None else [f"train.epochs={TUNED_EPOCHS}"]
    if options.smoke:
        long = ["train.steps=6"]
    once = [f"evaluate.every={_ONCE}"]
    config = load_config(None, [f"name={name}", f"runs={runs}", *words, *once, *long])
    train_to_the_end(config, resume=begun)
    return place.path


def judged(run: Path) -> dict[str, Any]:
    """Its figures on the validation part."""
    return {key: value for key, value in api.evaluate(run).items() if key != "run"}


def told(run: Path) -> dict[str, Any]:
    report = json.loads((run / "report.json").read_text())
    return {key: report[key] for key in ("parameters", "steps", "tokens", "wall_seconds", "world_size")}


def texts(path: Path) -> list[str]:
    return [json.loads(line)["text"] for line in path.read_text().splitlines()]


def xz(train: Path, valid: Path) -> float:
    """Bits that a byte of the second costs behind the first."""
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": 1 << 27}]
    before, behind = ("\n".join(texts(path)).encode() for path in (train, valid))
    sizes = [len(lzma.compress(text, filters=filters)) for text in (before, before + b"\n" + behind)]
    return 8 * (sizes[1] - sizes[0]) / len(behind)


def naive_bayes(*parts: Path) -> float:
    """Accuracy on the dev part of naive Bayes on one to three characters."""
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.naive_bayes import MultinomialNB

    train, dev = ([json.loads(line) for line in part.read_text().splitlines()] for part in parts)
    counts = CountVectorizer(analyzer="char", ngram_range=(1, 3), min_df=2)
    model = MultinomialNB().fit(
        counts.fit_transform([one["text"] for one in train]), [one["label"] for one in train]
    )
    return float(model.score(counts.transform([one["text"] for one in dev]), [one["label"] for one in dev]))


def report(out: Path, kept: Kept, machine: dict[str, Any]) -> Path:
    """The page and its JSON, of every run that is kept."""
    found = kept.all()
    rows = [
        [one["name"], f"{one['parameters'] / 1e6:.1f}M", f"{one['tokens'] / 1e6:.1f}M",
         f"{one['wall_seconds'] / 60:.0f} min", f"{one['bits_per_byte']:.3f}", f"{one['xz_bits_per_byte']:.3f}"]
        for one in found if one["kind"] == "language model"
    ]  # fmt: skip
    tuned_rows = []
    for pretrained in (True, False):
        some = [one for one in found if one["kind"] == "dynasties" and one["pretrained"] == pretrained]
        if some:
            spread = median_and_spread([one["accuracy"] for one in some])
            mean = sum(one["accuracy"] for one in some) / len(some)
            what = "that has read poems" if pretrained else "that has read nothing"
            cells = (
                f"{mean:.3f}",
                f"{spread['least']:.3f} to {spread['most']:.3f}",
                f"{some[0]['naive_bayes']:.3f}",
            )
            tuned_rows.append([f"encoder {what}", str(len(some)), *cells])
    pretraining = "".join(
        f" The encoder: {one['parameters'] / 1e6:.1f}M parameters, {one['tokens'] / 1e6:.1f}M tokens in "
        f"{one['wall_seconds'] / 60:.0f} minutes; of hidden characters of unseen poems it guesses "
        f"{100 * one['accuracy']:.1f} % right."
        for one in found
        if one["kind"] == "encoder"
    )
    head = ["text", "parameters", "tokens read", "time", "bits per byte", "xz"]
    page = (
        f"# What is learned from text\n\n{machine_line(machine)}\n\nBits per byte on the whole validation part; xz: "
        "what it needs for the same behind the training part.\n\n"
        + table(head, rows)
        + "\n\nTang or Song, accuracy on the dev part "
        f"(authors that training has not), last step.{pretraining}\n\n"
        + table(["", "seeds", "mean accuracy", "least to most", "naive Bayes"], tuned_rows)
    )
    return write_result(out, "quality", {"machine": machine, "found": found}, page)


if __name__ == "__main__":
    main()
