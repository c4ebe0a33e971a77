"""A large corpus of real text: copies of real documents that are not alike.

Behind every fourth word of a copy stands its number, so no five words are the same in two of them: neither exact nor
near duplicates. The first copy is as it was.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

_FOURTH_WORD = re.compile(r"((?:\S+\s+){4})")
_FILE_BYTES = 50_000_000


def real_texts(data: Path) -> list[str]:
    """English documents of `data`: technical ones and speeches."""
    texts = []
    for part in ("train", "valid", "test"):
        path = data / "techdocs_en" / f"{part}.jsonl"
        if path.exists():
            texts += [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]
    for path in sorted((data / "gov_speeches_en").rglob("*.txt")):
        texts.append(path.read_text(encoding="utf-8", errors="replace"))
    return texts


def copies(texts: list[str]) -> Iterator[str]:
    """Without end."""
    number = 0
    while True:
        for text in texts:
            yield text if number == 0 else _FOURTH_WORD.sub(rf"\g<1>{number} ", text)
        number += 1


def make(data: Path, folder: Path, megabytes: int) -> list[Path]:
    """JSONL files of `megabytes` of text in all; those that are there already are taken as they are."""
    folder.mkdir(parents=True, exist_ok=True)
    done = folder / "done.json"
    if not done.exists():
        made, written, file = 0, 0, None
        for text in copies(real_texts(data)):
            if file is None or written > _FILE_BYTES:
                file = (folder / f"{made // _FILE_BYTES:04d}-{made}.jsonl").open("w", encoding="utf-8")
                written = 0
            file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
            size = len(text.encode())
            made, written = made + size, written + size
            if made >= megabytes * 1e6:
                break
        if file is not None:
            file.close()
        done.write_text(json.dumps({"bytes": made}))
    return sorted(folder.glob("*.jsonl"))
