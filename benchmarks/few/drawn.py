"""A few examples of each label of a data set, the same ones whoever learns from them."""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np

#: Training and dev part of each data set.
DATA = {
    "banking77": ("train.tsv", "dev.tsv"),
    "sentfin": ("headline_train.jsonl", "headline_dev.jsonl"),
}


def draw(
    path: Path, work: Path, labels: int, seed: int, unlabelled: int = 0
) -> tuple[Path, list[dict[str, str]]]:
    """A file in `work` with `labels` examples of each label of `path`, and so many of the others."""
    by_label: dict[str, list[dict[str, str]]] = defaultdict(list)
    for record in _records(path):
        by_label[record["label"]].append({"text": record["text"], "label": record["label"]})
    dice = np.random.default_rng(seed)
    few, others = [], []
    for name in sorted(by_label):
        order = dice.permutation(len(by_label[name]))
        few += [by_label[name][at] for at in order[:labels]]
        others += [by_label[name][at] for at in order[labels:]]
    some = dice.permutation(len(others))[:unlabelled]
    work.mkdir(parents=True, exist_ok=True)
    return write_jsonl(work / "few.jsonl", few), [others[at] for at in some]


def write_jsonl(path: Path, records: list[dict[str, str]]) -> Path:
    """`records`, one a line."""
    path.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in records), encoding="utf-8")
    return path


def _records(path: Path) -> Iterator[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        if path.suffix == ".tsv":
            yield from csv.DictReader(file, delimiter="\t")
        else:
            yield from map(json.loads, file)
