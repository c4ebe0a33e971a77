"""One way to turn text into tokens on disk, measured in a process of its own:

    python -m benchmarks.data.contender WAY FOLDER TOKENIZER WORK [WORKERS]

Prints a line of JSON: seconds, processor seconds of the process and all its children, bytes of text, tokens. Each way
does one small file first, so that what is imported and opened once is not in its rate; that is `start_seconds`.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_DOCUMENTS = 200


def raw(folder: Path, tokenizer: Path, work: Path, workers: int) -> dict[str, Any]:
    """`tokenizers` alone: texts in memory, numbers thrown away. Only encoding counts."""
    from tokenizers import Tokenizer

    encoder = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    seconds = tokens = size = 0.0
    for file in sorted(folder.glob("*.jsonl")):
        with file.open(encoding="utf-8") as lines:
            batch = []
            for line in lines:
                batch.append(json.loads(line)["text"])
                if len(batch) == _DOCUMENTS:
                    before = time.process_time()
                    tokens += sum(map(len, encoder.encode_batch_fast(batch, add_special_tokens=False)))
                    seconds += time.process_time() - before
                    size += sum(len(text.encode()) for text in batch)
                    batch = []
    return {"processor_seconds": seconds, "encoded": size, "tokens": tokens}


def tutti(folder: Path, tokenizer: Path, work: Path, workers: int, clean: Any = "off") -> dict[str, Any]:
    """`tutti prepare`."""
    from tutti.config.data import DataConfig
    from tutti.data import prepare

    config = DataConfig(
        source=f"{folder}/*.jsonl", tokenizer=str(tokenizer), cache=str(work), validation=0.0, clean=clean
    )
    prepared = prepare(config, workers=workers)
    split = prepared.splits["train"]
    dropped = {step.step: step.dropped for step in prepared.manifest.steps}
    return {"bytes": split.bytes, "tokens": split.tokens, "dropped": dropped}


def tutti_near(folder: Path, tokenizer: Path, work: Path, workers: int) -> dict[str, Any]:
    """`tutti prepare` with near duplicates."""
    return tutti(folder, tokenizer, work, workers, {"near_duplicates": 0.8, "index_memory": "32MB"})


def tutti_standard(folder: Path, tokenizer: Path, work: Path, workers: int) -> dict[str, Any]:
    """`tutti prepare` with everything that is usual."""
    return tutti(folder, tokenizer, work, workers, "standard")


def datatrove(folder: Path, tokenizer: Path, work: Path, workers: int) -> dict[str, Any]:
    """Hugging Face's datatrove: JsonlReader, DocumentTokenizer."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.tokens import DocumentTokenizer

    LocalPipelineExecutor(
        pipeline=[
            JsonlReader(str(folder), glob_pattern="*.jsonl"),
            DocumentTokenizer(
                output_folder=str(work / "out"),
                tokenizer_name_or_path=str(tokenizer / "tokenizer.json"),
                eos_token="<|endoftext|>",
                shuffle_documents=False,
            ),
        ],
        tasks=1,
        logging_dir=str(work / "logs"),
    ).run()
    size = sum(path.stat().st_size for path in (work / "out").glob("*.ds"))
    return {"tokens": size // 2}


def datasets_map(folder: Path, tokenizer: Path, work: Path, workers: int) -> dict[str, Any]:
    """Hugging Face's datasets: load_dataset, map with the tokenizer of transformers."""
    import datasets
    from transformers import AutoTokenizer

    encoder = AutoTokenizer.from_pretrained(str(tokenizer))
    table = datasets.load_dataset(
        "json",
        data_files=[str(path) for path in sorted(folder.glob("*.jsonl"))],
        split="train",
        cache_dir=str(work),
    )

    def encode(batch: dict[str, Any]) -> dict[str, Any]:
        return {
            "ids": encoder(batch["text"], add_special_tokens=False, return_attention_mask=False)["input_ids"]
        }

    made = table.map(encode, batched=True, remove_columns=table.column_names)
    return {"documents": len(made)}


WAYS: dict[str, Callable[[Path, Path, Path, int], dict[str, Any]]] = {
    "raw": raw,
    "tutti": tutti,
    "tutti, near duplicates": tutti_near,
    "tutti, standard": tutti_standard,
    "datatrove": datatrove,
    "datasets.map": datasets_map,
}


def _processor_seconds() -> float:
    return sum(
        used.ru_utime + used.ru_stime
        for used in (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    )


def main() -> None:
    way, folder, tokenizer, work, *more = sys.argv[1:]
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    do, workers = WAYS[way], int(more[0]) if more else 1
    do(Path(folder).parent / "small", Path(tokenizer), Path(work) / "small", workers)
    began, before = time.perf_counter(), _processor_seconds()
    found = do(Path(folder), Path(tokenizer), Path(work) / "all", workers)
    found = {
        "start_seconds": before,
        "seconds": time.perf_counter() - began,
        "processor_seconds": _processor_seconds() - before,
        **found,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
