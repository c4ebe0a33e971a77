"""Next-item recommendation: what somebody wants next who had these things, in this order.

A causal model reads what was had, item by item, after a token that begins; every prefix foretells the next item (as
SASRec does: Kang and McAuley 2018, arXiv 1808.09781), with the whole softmax over all items instead of negative
samples. Its words are the items, so any causal Hugging Face architecture will do, and what is exported is one.

Judged is the last item of each example, given all before it, among the items that were not had yet (leave-one-out):

    HR@k    share of examples whose item is among the k likeliest
    NDCG@k  mean of 1 / log₂(1 + rank) where the rank is k or better, else 0 (one right item: its ideal is 1)

Examples with one item say nothing about a next one and are not judged. Of a history that is too long
the beginning is not read, but what stands there was had.

Shapes: B rows, S items, V items that there are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from tutti.config.task import RegulariseConfig
from tutti.core import Batch, DataError, LossSum, Objective
from tutti.tasks.chunked_loss import IGNORED
from tutti.tasks.scored import Scored
from tutti.tasks.task import BETWEEN, Answers, Example, Labels, Record, Row, RowEncoder, Rows, Task, padded

#: Items that an answer names.
SHOWN = 20
_CUTS = (1, 5, 10)


class Recommend(Task):
    """Examples `{items: […]}`; answers: the rank of the last item from 1 (0: not judged), then `SHOWN` items' numbers
    (−1: no more), then their chances."""

    kind = "recommend"
    asked = "items"
    long = "only what was had last is read"
    main = "ndcg@10"
    noun = "items"
    words = "labels"
    closed = False
    distinct = False
    layout = 1

    def example(self, record: Record, *, labelled: bool = True) -> Example:
        value = self.field(record, "items")
        value = value.split("|") if isinstance(value, str) else value
        called = self.config.fields.get("items", "items")
        if not isinstance(value, list | tuple):
            raise DataError(
                f"{record.origin}: '{called}' is {type(value).__name__}, not a list of items",
                "give a list, or text like `a|b|c`, of what somebody had, in order",
            )
        items = [_name(record, one) for one in value if one != ""]
        if labelled and not items:
            raise DataError(
                f"{record.origin}: '{called}' is empty", "leave out those who had nothing: they teach nothing"
            )
        items = items if self.config.repeats else list(dict.fromkeys(items))
        return {"items": items} if labelled else {"items": items, "open": True}

    def texts(self, example: Example) -> list[str]:
        return list(example["items"])

    def label_names(self, example: Example) -> Iterable[str]:
        items: list[str] = example["items"]
        return items

    def labels(self, counted: Counter[str]) -> Labels:
        """Items, the commonest first."""
        names = sorted(counted, key=lambda name: (-counted[name], name))
        if len(names) < 2:
            raise DataError(
                f"the training examples have {len(names)} item{'' if len(names) == 1 else 's'}",
                "there must be two or more to choose among",
            )
        return Labels(tuple(names), tuple(counted[name] for name in names))

    def rows(self, examples: Sequence[Example], labels: Labels, encoder: RowEncoder) -> list[list[Row]]:
        rows, unknown = [], len(labels.names)
        for example in examples:
            had = [encoder.pad, *(labels.numbers.get(name, unknown) for name in example["items"])]
            targets = [IGNORED] * len(had) if example.get("open") else had[1:]
            ids = had[: len(targets)]
            row: Row = {
                "input_ids": ids[-encoder.length :],
                "labels": targets[-encoder.length :],
                "earlier": ids[1 : -encoder.length],
                "cut": [int(len(ids) > encoder.length)],
            }
            rows.append([row])
        return rows

    def batch(self, rows: Sequence[Row], pad: int) -> Batch:
        # Padding comes behind what is read, so a causal model needs no mask.
        return {
            "input_ids": padded([row["input_ids"] for row in rows], pad),
            "labels": padded([row["labels"] for row in rows], IGNORED),
            "earlier": padded([row["earlier"] for row in rows], pad),
            "last": torch.tensor([len(row["input_ids"]) - 1 for row in rows]),
        }

    def blank(self, row: Row) -> Row:
        return row | {"labels": [IGNORED] * len(row["labels"])}

    def objective(self, model: nn.Module, labels: Labels) -> Objective:
        return NextItem(model, len(labels.names), self.config.repeats, self.regularise)

    def width(self, rows: Rows, labels: Labels, model: nn.Module) -> int:
        return 1 + 2 * SHOWN

    def score(
        self, answers: Answers, rows: Rows, examples: Sequence[Example], labels: Labels
    ) -> dict[str, float]:
        ranks = answers[answers[:, 0] > 0, 0]
        found: dict[str, float] = {}
        for cut in _CUTS:
            found[f"hr@{cut}"] = float((ranks <= cut).mean()) if len(ranks) else 0.0
        gains = np.where(ranks <= _CUTS[-1], 1 / np.log2(1 + ranks), 0.0)
        return found | {f"ndcg@{_CUTS[-1]}": float(gains.mean()) if len(ranks) else 0.0}

    def decode(
        self, answers: Answers, rows: Rows, examples: Sequence[Example], labels: Labels
    ) -> list[dict[str, Any]]:
        said = []
        for line in answers:
            numbers, chances = line[1 : 1 + SHOWN].astype(int), line[1 + SHOWN :]
            pairs = [(at, chance) for at, chance in zip(numbers, chances, strict=True) if at >= 0]
            said.append(
                {"items": [{"item": labels.names[at], "score": round(chance, 4)} for at, chance in pairs]}
            )
        return said


class NextItem(Scored):
    """Σ −log p(item | what was had before it); batches: `input_ids` and `labels` [B, S] (−100: no target), `last` [B],
    and `earlier` [B, any], what was had before anything that is read."""

    def __init__(
        self, model: nn.Module, items: int, repeats: bool, regularise: RegulariseConfig | None = None
    ) -> None:
        super().__init__(model, regularise)
        self._items, self._repeats = items, repeats

    def logits(self, batch: Batch) -> Tensor:
        logits: Tensor = self.model(input_ids=batch["input_ids"], use_cache=False).logits
        return logits[..., : self._items].float()

    def loss(self, logits: Tensor, batch: Batch) -> LossSum:
        labels = self._targets(batch)
        smoothing = self.regularise.label_smoothing if self.training else 0.0
        total = F.cross_entropy(
            logits.flatten(0, 1), labels.flatten(), reduction="sum", ignore_index=IGNORED, label_smoothing=smoothing
        )  # fmt: skip
        return LossSum(total, (labels != IGNORED).sum())

    def chances(self, logits: Tensor, batch: Batch) -> Tensor:
        return logits[self._targets(batch) != IGNORED].log_softmax(1)

    def count_targets(self, batch: Batch) -> int:
        return int((self._targets(batch) != IGNORED).sum())

    def answer_with(self, logits: Tensor, batch: Batch) -> None:
        """Of each row what comes last: its rank among what was not had before, and the likeliest of those."""
        if self.answers is None:
            return
        had, last, items = batch["input_ids"], batch["last"], self._items
        rows = torch.arange(len(had), device=had.device)
        chances, wanted = logits[rows, last].softmax(1), batch["labels"][rows, last]
        if not self._repeats:
            seen = torch.zeros(len(had), items + 2, device=had.device, dtype=torch.bool)
            seen.scatter_(1, torch.cat([had, batch["earlier"]], 1), True)
            chances = chances.masked_fill(seen[:, :items], -1.0)
        own = chances.gather(1, wanted.clamp(0, items - 1)[:, None])
        # Halfway among equals, so that a model to which all is alike, or no number, finds nothing.
        middle = (1 + (chances > own).sum(1) + items - (chances < own).sum(1)) / 2
        ranks = torch.where(wanted < items, middle, items + 1)
        ranks = ranks * ((wanted != IGNORED) & (last > 0))
        best = chances.topk(min(SHOWN, items), dim=1)
        numbers = torch.where(best.values >= 0, best.indices, -1)
        filler = torch.full((len(had), SHOWN - numbers.shape[1]), -1.0, device=had.device)
        self.answer(torch.cat([ranks[:, None], numbers, filler, best.values, filler], 1))

    def _targets(self, batch: Batch) -> Tensor:
        """Items that nobody had to train on have no number to learn."""
        return batch["labels"].masked_fill(batch["labels"] >= self._items, IGNORED)


def start_from(model: nn.Module, vectors: NDArray[np.float32]) -> None:
    """Let items with like descriptions begin alike: `vectors` [V, any] become the first of the embeddings' numbers, as
    large as these are."""
    table: Any = model.get_input_embeddings()  # type: ignore[operator]
    weight: Tensor = table.weight.data
    items, width = vectors.shape[0], min(vectors.shape[1], weight.shape[1])
    part = torch.from_numpy(vectors[:, :width]).to(weight.dtype)
    weight[:items, :width] = part * (weight[:items].std() / part.std().clamp_min(1e-12))


def _name(record: Record, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int) or BETWEEN in str(value):
        raise DataError(
            f"{record.origin}: the item {value!r} has no usable name",
            "items are named by text without tabs, or by whole numbers",
        )
    return str(value)
