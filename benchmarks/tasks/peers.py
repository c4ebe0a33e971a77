"""Data of other shapes as files that a run reads, and what needs no learning: the least that a model has to beat."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from tutti.config.task import TaskConfig
from tutti.tasks import make_writing_task

#: Users of msweb that are kept aside, of 32,711.
_JUDGED_USERS = 3000


def relations(folder: Path, work: Path) -> dict[str, Path]:
    """SemEval's blocks: number and sentence, relation, comment."""
    lines = []
    for block in re.split(r"\r?\n\r?\n", (folder / "TRAIN_FILE.TXT").read_text(encoding="utf-8").strip()):
        sentence, relation = block.splitlines()[:2]
        text = sentence.split("\t", 1)[1].strip().removeprefix('"').removesuffix('"')
        lines.append({"text": text, "label": relation.strip()})
    return {"source": _write(work / "relations.jsonl", lines)}


def visits(folder: Path, work: Path) -> dict[str, Path]:
    """msweb's lines: A describes an item, C begins a user, V is a visit. Users in a random order, the first aside."""
    users: list[list[str]] = []
    described = []
    for line in (folder / "anonymous-msweb.data").read_text(encoding="latin-1").splitlines():
        sort, item, *rest = line.split(",")
        if sort == "C":
            users.append([])
        elif sort == "V":
            users[-1].append(item)
        elif sort == "A":
            title, address = re.findall(r'"(.*?)"', ",".join(rest))
            described.append({"item": item, "text": f"{title} {address.replace('/', ' ')}"})
    order = np.random.default_rng(0).permutation(len(users))
    return {
        "validation_source": _write(
            work / "aside.jsonl", ({"items": users[n]} for n in order[:_JUDGED_USERS])
        ),
        "source": _write(work / "visits.jsonl", ({"items": users[n]} for n in order[_JUDGED_USERS:])),
        "catalogue": _write(work / "items.jsonl", described),
    }


def texts(folder: Path, work: Path) -> dict[str, Path]:
    """What a model reads before it summarises: the technical documents in the folder beside, and its own."""
    read = []
    for path, field in (
        (folder.parent / "techdocs_en" / "train.jsonl", "text"),
        (folder / "train.jsonl", "document"),
    ):
        with path.open(encoding="utf-8") as file:
            read += [{"text": json.loads(line)[field]} for line in file]
    return {"source": _write(work / "texts.jsonl", read)}


def pairs(folder: Path, work: Path) -> dict[str, Path]:
    """Lines side by side in two files."""
    files = {}
    for part, name in (("source", "train"), ("validation_source", "dev")):
        texts = [(folder / f"{name}.{one}").read_text(encoding="utf-8").splitlines() for one in ("en", "ja")]
        both = ({"source": a, "target": b} for a, b in zip(*texts, strict=True))
        files[part] = _write(work / f"{name}.jsonl", both)
    return files


def collaborative_filter(train: Path, judged: Path) -> dict[str, float]:
    """Item-to-item: what was had together most often, by the cosine of the items' users (Sarwar et al. 2001), summed
    over what somebody had. HR and NDCG at 10 of everybody's last item."""
    had, wanted = _items(train), [items for items in _items(judged) if len(items) > 1]
    numbers = {name: n for n, name in enumerate(sorted({name for items in had for name in items}))}
    table = np.zeros((len(had), len(numbers)))
    for line, items in zip(table, had, strict=True):
        line[[numbers[name] for name in items]] = 1
    together = table.T @ table
    size = np.sqrt(np.diag(together))
    alike = together / np.outer(size, size)
    np.fill_diagonal(alike, 0)
    ranks = []
    for items in wanted:
        known = [numbers[name] for name in items[:-1] if name in numbers]
        likely = alike[known].sum(0)
        likely[known] = -1
        at = numbers.get(items[-1])
        if at is None:
            ranks.append(math.inf)
            continue
        # Halfway among equals, as the models are judged.
        better, worse = int((likely > likely[at]).sum()), int((likely < likely[at]).sum())
        ranks.append((1 + better + len(likely) - worse) / 2)
    gains = [1 / math.log2(1 + rank) if rank <= 10 else 0.0 for rank in ranks]
    return {"hr@10": float(np.mean([rank <= 10 for rank in ranks])), "ndcg@10": float(np.mean(gains))}


def copied(kind: str, judged: Path, fields: tuple[str, str], cut: Callable[[str], str]) -> dict[str, float]:
    """What a text is worth that `cut` takes from the one that was given."""
    task = make_writing_task(TaskConfig.model_validate({"kind": kind}))
    lines = [json.loads(line) for line in judged.read_text(encoding="utf-8").splitlines()]
    given, wanted = fields
    return task.score([cut(line[given]) for line in lines], [{"wanted": line[wanted]} for line in lines])


def first_sentence(text: str) -> str:
    """Up to the first full stop before a space."""
    return re.split(r"(?<=[.!?])\s", text.strip(), maxsplit=1)[0]


def _items(path: Path) -> list[list[str]]:
    return [json.loads(line)["items"] for line in path.read_text(encoding="utf-8").splitlines()]


def _write(path: Path, lines: Iterable[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    return path
