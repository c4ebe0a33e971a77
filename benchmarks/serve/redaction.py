"""How much of the personal data in texts is found: by patterns alone, and with a model that Tutti trained.

    make bench-redaction DATA=DIR            (or: python -m benchmarks.serve.redaction --data DIR --help)

DIR holds the data set presidio_synth_pii: 1,006 texts that were made of 138 templates, with 17 kinds of personal data.
They are dealt into --folds parts; a model (MiniLM, 22M parameters, `task: tag`) learns from the texts of the other
parts and is asked about those of its own. --deal templates: it never saw the template of a text that it is judged by:
letters of a kind that is new to it. --deal texts: it did, with other names in it: letters as they always come. It
learns from each text --variants times, with other names, addresses and so on in their places, which are taken from the
texts that it learns from. It is the model at the end of a fixed number of epochs.

A model reads a text as the service does (`serve/guard/`): as a whole what is asked, sentence by sentence what is
answered. A span counts if its borders are right
(F1 of borders), or its kind as well (F1 of kinds); of single characters, whatever they are taken for, recall is what
would have been hidden. Trained runs stay in --work: what was interrupted goes on.
--parts: judge models of these parts only; of none: patterns alone.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, describe_machine, machine_line, table, write_result
from benchmarks.labelled import minilm, parser_of
from benchmarks.trained import train_to_the_end
from tutti import load_config
from tutti.redact.spans import merged
from tutti.serve.guard.redact import BySentence, Patterns, Redactor, Span, Tagger, Together

HERE = Path(__file__).resolve().parent
_NEVER_BEFORE = 1_000_000


def main() -> None:
    parser = parser_of(__doc__, HERE / "results")
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--deal", choices=["templates", "texts"], default="templates")
    parser.add_argument("--parts", nargs="*", type=int)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--variants", type=int, default=4)
    parser.add_argument("--set", nargs="*", default=["train.learning_rate=3e-4"], metavar="KEY=VALUE")
    parser.add_argument(
        "--work", type=Path, default=ROOT / "build" / "redaction", help="for runs and their data"
    )
    options = parser.parse_args()
    machine = describe_machine()
    texts = read(options.data / "presidio_synth_pii" / "train.jsonl")
    folds = deal(texts, options.folds, whole_templates=options.deal == "templates")
    parts = options.parts if options.parts is not None else list(range(options.folds))
    found: dict[str, dict[str, Counter[str]]] = {}

    def judge(way: str, redactor: Redactor, texts: list[dict[str, Any]]) -> None:
        counts = found.setdefault(way, {unit: Counter() for unit in UNITS})
        for one in texts:
            count(counts, one, merged(redactor.spans(one["text"])))

    judge("patterns", Patterns(), [one for part in folds for one in part])
    judge("patterns, for text to learn from", Patterns(sure=True), [one for part in folds for one in part])
    page = report(options, machine, folds, [], found)
    for done, number in enumerate(parts, 1):
        tagger = Tagger(train(options, folds, number), None)
        for how, model in (("as a whole", tagger), ("sentence by sentence", BySentence(tagger))):
            judge(f"model, {how}", model, folds[number])
            judge(f"patterns and model, {how}", Together([Patterns(), model]), folds[number])
        page = report(options, machine, folds, parts[:done], found)
    print(page.read_text())


def read(file: Path) -> list[dict[str, Any]]:
    """The texts, as `task: tag` takes them."""
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [
        {
            "text": line["full_text"],
            "template": line["template_id"],
            "spans": [
                {"start": one["start_position"], "end": one["end_position"], "label": one["entity_type"]}
                for one in sorted(line["spans"], key=lambda one: one["start_position"])
            ],
        }
        for line in lines
    ]


def deal(texts: list[dict[str, Any]], folds: int, *, whole_templates: bool) -> list[list[dict[str, Any]]]:
    """The texts in `folds` parts; `whole_templates`: those of one template are in one."""
    if not whole_templates:
        shuffled = random.Random(0).sample(texts, len(texts))
        return [shuffled[number::folds] for number in range(folds)]
    templates = sorted({one["template"] for one in texts})
    random.Random(0).shuffle(templates)
    part = {template: place % folds for place, template in enumerate(templates)}
    return [[one for one in texts if part[one["template"]] == number] for number in range(folds)]


def varied(texts: list[dict[str, Any]], seed: int) -> list[dict[str, Any]]:
    """`texts` with each personal value exchanged for another of its kind among them; seed 0: as they are."""
    values: dict[str, list[str]] = {}
    for one in texts:
        for span in one["spans"]:
            values.setdefault(span["label"], []).append(one["text"][span["start"] : span["end"]])
    draw = random.Random(seed)
    found = []
    for one in texts if seed else ():
        text, spans, reached = "", [], 0
        for span in one["spans"]:
            text += one["text"][reached : span["start"]]
            value, reached = draw.choice(values[span["label"]]), span["end"]
            spans.append({"start": len(text), "end": len(text) + len(value), "label": span["label"]})
            text += value
        found.append({"text": text + one["text"][reached:], "spans": spans})
    return found or texts


def train(options: argparse.Namespace, folds: list[list[dict[str, Any]]], number: int) -> Path:
    """The run that has not seen part `number`."""
    work = options.work.absolute()
    run = work / "runs" / f"{options.deal}-{number}-of-{len(folds)}"
    if (run / "report.json").exists() and json.loads((run / "report.json").read_text())[
        "state"
    ] == "finished":
        return run
    work.mkdir(parents=True, exist_ok=True)
    learned = [one for place, part in enumerate(folds) if place != number for one in part]
    known = {span["label"] for one in learned for span in one["spans"]}
    # A run wants something to be judged by; rare kinds are in no other template.
    judged = [one for one in folds[number] if all(span["label"] in known for span in one["spans"])]
    learned = [one for seed in range(options.variants) for one in varied(learned, seed)]
    for name, part in ((f"learned-{options.deal}", learned), (f"kept-{options.deal}", judged)):
        lines = [json.dumps({"text": one["text"], "spans": one["spans"]}) for one in part]
        (work / f"{name}-{number}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    config = load_config(
        None,
        [
            *(f"name={run.name}", f"runs={run.parent}", f"data.cache={work / 'cache'}", "task=tag"),
            *(
                f"model={options.model or minilm()}",
                f"data.source={work / f'learned-{options.deal}-{number}.jsonl'}",
            ),
            f"data.validation_source={work / f'kept-{options.deal}-{number}.jsonl'}",
            *("data.sequence=128", "replicas=1", f"train.epochs={options.epochs}"),
            *(f"evaluate.every={_NEVER_BEFORE}", f"checkpoint.every={_NEVER_BEFORE}", *options.set),
        ],
    )
    train_to_the_end(config, resume=run.exists())
    return run


def count(counts: dict[str, Counter[str]], one: dict[str, Any], spans: list[Span]) -> None:
    """What was found in a text, and what should have been."""
    right = [Span(span["start"], span["end"], span["label"]) for span in one["spans"]]
    for unit, view in UNITS.items():
        gold, told = view(right), view(spans)
        counts[unit].update(right=len(gold & told), found=len(told), personal=len(gold))


#: Kinds of the data set that have a form of their own: what patterns are for.
WITH_FORM = {"EMAIL_ADDRESS", "PHONE_NUMBER", "CREDIT_CARD", "IBAN_CODE", "IP_ADDRESS", "US_SSN"}
UNITS: dict[str, Callable[[list[Span]], set[Any]]] = {
    "kinds": lambda spans: set(spans),
    "borders": lambda spans: {(one.start, one.end) for one in spans},
    "characters": lambda spans: {place for one in spans for place in range(one.start, one.end)},
    "kinds with a form": lambda spans: {one for one in spans if one.kind in WITH_FORM},
    **{
        kind: lambda spans, kind=kind: {one for one in spans if one.kind == kind}
        for kind in sorted(WITH_FORM)
    },
}


def report(
    options: argparse.Namespace,
    machine: dict[str, Any],
    folds: list[list[dict[str, Any]]],
    parts: list[int],
    found: dict[str, dict[str, Counter[str]]],
) -> Path:
    """The page and its JSON."""
    rows = []
    for way, counts in found.items():
        for unit, of in counts.items():
            precision = of["right"] / max(1, of["found"])
            recall = of["right"] / max(1, of["personal"])
            f1 = 2 * of["right"] / max(1, of["found"] + of["personal"])
            rows.append([way, unit, f"{precision:.3f}", f"{recall:.3f}", f"{f1:.3f}", str(of["personal"])])
    judged = sum(len(folds[number]) for number in parts)
    page = (
        f"# Personal data that is found\n\n{machine_line(machine)}\n\nPatterns: in all {sum(map(len, folds))} texts of "
        f"presidio_synth_pii. With a model: in {judged} of them, {len(parts)} of {len(folds)} parts by {options.deal}"
        + (
            f"; it learned {options.epochs} epochs of the other parts' texts in {options.variants} variants "
            f"({' '.join(options.set)}).\n\n"
            if parts
            else " (not measured yet).\n\n"
        )
        + table(["way", "counted", "precision", "recall", "F1", "there are"], rows)
    )
    data = {"machine": machine, "parts": parts, "folds": len(folds), "set": options.set, "found": found}
    name = "redaction" if options.deal == "templates" else "redaction-texts"
    return write_result(options.out, name, data, page)


if __name__ == "__main__":
    main()
