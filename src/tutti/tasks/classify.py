"""Sequence classification: one label for a text or a pair of texts, or any number of labels.

Text that is too long for the model loses its end (of a pair, the longer one does); how many did is said.

Shapes: B rows, S tokens, L labels.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Encoding
from torch import Tensor, nn

from tutti.config.task import RegulariseConfig, TaskConfig
from tutti.core import Batch, DataError, LossSum, Objective
from tutti.tasks.chunked_loss import IGNORED
from tutti.tasks.scored import Scored
from tutti.tasks.task import (
    Answers,
    Example,
    Labels,
    Record,
    Row,
    RowEncoder,
    Rows,
    Task,
    inputs_of,
    run_encoder,
)
from tutti.tasks.words import words_of


class Classify(Task):
    """Examples `{text, pair?, labels: […]}`; answers: the logits [L]."""

    kind = "classify"
    long = "their ends are cut off"
    layout = 1

    def __init__(self, config: TaskConfig, regularise: RegulariseConfig | None = None) -> None:
        super().__init__(config, regularise)
        self.main = "micro_f1" if config.multiple else "accuracy"

    def example(self, record: Record, *, labelled: bool = True) -> Example:
        example: Example = {"text": self.text_field(record, "text")}
        if self.has(record, "pair"):
            example["pair"] = self.text_field(record, "pair")
        if labelled:
            example["labels"] = self._labels(record)
        return example

    def _labels(self, record: Record) -> list[str]:
        value = self.field(record, "label")
        if self.config.multiple:
            several = value.split("|") if isinstance(value, str) else value
            if not isinstance(several, list | tuple):
                raise DataError(
                    f"{record.origin}: the label is {type(value).__name__}, not a list of labels",
                    "give a list, or text like `a|b`; for one label a text leave out task.multiple",
                )
            return sorted({_name(record, one) for one in several if one != ""})
        return [_name(record, value)]

    def texts(self, example: Example) -> list[str]:
        return [example["text"], example.get("pair", "")]

    def label_names(self, example: Example) -> Iterable[str]:
        labels: list[str] = example["labels"]
        return labels

    def labels(self, counted: Counter[str]) -> Labels:
        labels = super().labels(counted)
        if self.config.contrast and min(labels.counts) < 2:
            alone = labels.names[labels.counts.index(min(labels.counts))]
            raise DataError(
                f"the label '{alone}' has one training example, and task.contrast learns from what is alike",
                "give every label two or more (with data.validation_source none is kept aside), or leave out "
                "task.contrast",
            )
        return labels

    def shown(self, example: Example, encoder: RowEncoder) -> tuple[str, ...]:
        """What a model is given to read of `example`: a text, or two."""
        return (example["text"], example["pair"]) if "pair" in example else (example["text"],)

    def rows(self, examples: Sequence[Example], labels: Labels, encoder: RowEncoder) -> list[list[Row]]:
        shown = [self.shown(example, encoder) for example in examples]
        return self.rows_of(shown, examples, labels, encoder)

    def rows_of(
        self,
        shown: Sequence[tuple[str, ...]],
        examples: Sequence[Example],
        labels: Labels,
        encoder: RowEncoder,
    ) -> list[list[Row]]:
        """Of `examples` that were made such texts."""
        encoder.room(max(map(len, shown), default=1))
        tokenizer = encoder.tokenizer
        tokenizer.enable_truncation(encoder.length, strategy="longest_first")
        texts: list[Any] = [texts if len(texts) > 1 else texts[0] for texts in shown]
        rows = []
        for example, read, encoding in zip(examples, shown, tokenizer.encode_batch(texts), strict=True):
            row: Row = {
                "input_ids": encoding.ids,
                "words": _words(encoding, read),
                "cut": [int(bool(encoding.overflowing))],
            }
            if encoder.types:
                row["token_type_ids"] = encoding.type_ids
            if "labels" in example:
                row["labels"] = [labels.numbers[name] for name in example["labels"]]
            rows.append([row])
        return rows

    def batch(self, rows: Sequence[Row], pad: int) -> Batch:
        batch = inputs_of(rows, pad)
        given = [row.get("labels", ()) for row in rows]
        if not self.config.multiple:
            return batch | {"labels": torch.tensor([some[0] if some else IGNORED for some in given])}
        most = max(map(len, given))
        table = torch.full((len(rows), max(1, most)), IGNORED)
        for line, some in zip(table, given, strict=True):
            line[: len(some)] = torch.tensor(some, dtype=torch.int64)
        counts = torch.tensor([float("labels" in row) for row in rows])
        return batch | {"labels": table, "weight": counts}

    def blank(self, row: Row) -> Row:
        return {name: column for name, column in row.items() if name != "labels"}

    def objective(self, model: nn.Module, labels: Labels) -> Objective:
        if self.config.multiple:
            return SeveralLabels(model, self.regularise)
        weights = None
        if self.config.balance:
            counts = torch.tensor(labels.counts, dtype=torch.float32).clamp_min(
                1
            )  # 0: only former examples have it
            weights = counts.sum() / (len(counts) * counts)
        return OneLabel(model, weights, self.regularise)

    def width(self, rows: Rows, labels: Labels, model: nn.Module) -> int:
        return len(labels.names)

    def score(
        self, answers: Answers, rows: Rows, examples: Sequence[Example], labels: Labels
    ) -> dict[str, float]:
        from sklearn.metrics import f1_score, matthews_corrcoef

        if self.config.multiple:
            said = answers > 0
            true = np.array([[name in e["labels"] for name in labels.names] for e in examples])
            return {
                "micro_f1": float(f1_score(true, said, average="micro", zero_division=0)),
                "macro_f1": float(f1_score(true, said, average="macro", zero_division=0)),
                "exact": float((true == said).all(1).mean()),
            }
        true, said = np.array([labels.numbers[e["labels"][0]] for e in examples]), answers.argmax(1)
        return {
            "accuracy": float((true == said).mean()),
            "macro_f1": float(f1_score(true, said, average="macro", zero_division=0)),
            "mcc": float(matthews_corrcoef(true, said)),
        }

    def decode(
        self, answers: Answers, rows: Rows, examples: Sequence[Example], labels: Labels
    ) -> list[dict[str, Any]]:
        if self.config.multiple:
            chances = 1 / (1 + np.exp(-answers))
            return [
                {
                    "labels": [labels.names[at] for at in np.flatnonzero(line > 0.5)],
                    "scores": _scores(line, labels),
                }
                for line in chances
            ]
        apart = answers - answers.max(1, keepdims=True)
        chances = np.exp(apart) / np.exp(apart).sum(1, keepdims=True)
        return [
            {"label": labels.names[int(line.argmax())], "scores": _scores(line, labels)} for line in chances
        ]


def _name(record: Record, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise DataError(
            f"{record.origin}: the label is {value!r}, which is no name",
            "give each example a label: text or a whole number",
        )
    return str(value)


def _words(encoding: Encoding, texts: Sequence[str]) -> list[int]:
    """The word that each token is of, by number; −1: a special token. Space belongs to the word behind it, and where a
    second text begins, another word does."""
    ends = [[end for _, end in words_of(text)] for text in texts]
    return [
        -1 if text is None else bisect_right(ends[text], start) + text * (len(ends[0]) + 1)
        for text, (start, _) in zip(encoding.sequence_ids, encoding.offsets, strict=True)
    ]


def _scores(line: Any, labels: Labels) -> dict[str, float]:
    """The five likeliest labels."""
    return {labels.names[at]: round(float(line[at]), 4) for at in np.argsort(-line)[:5]}


class OneLabel(Scored):
    """Σ −log p(label), each times the weight of its label; batches: `inputs_of`, `labels` [B] (−100: none)."""

    def __init__(
        self, model: nn.Module, weights: Tensor | None = None, regularise: RegulariseConfig | None = None
    ) -> None:
        super().__init__(model, regularise)
        self.register_buffer("weights", weights, persistent=False)

    def logits(self, batch: Batch) -> Tensor:
        return run_encoder(self.model, batch)

    def loss(self, logits: Tensor, batch: Batch) -> LossSum:
        labels = batch["labels"]
        weights: Any = self.weights
        smoothing = self.regularise.label_smoothing if self.training else 0.0
        total = F.cross_entropy(
            logits, labels, weights, reduction="sum", ignore_index=IGNORED, label_smoothing=smoothing
        )
        return LossSum(total, (labels != IGNORED).sum())

    def chances(self, logits: Tensor, batch: Batch) -> Tensor:
        return logits[batch["labels"] != IGNORED].log_softmax(1)

    def count_targets(self, batch: Batch) -> int:
        return int((batch["labels"] != IGNORED).sum())


class SeveralLabels(Scored):
    """Mean over L of the binary cross-entropy, summed over rows; `labels` [B, any] (−100: no more), `weight` [B]."""

    def logits(self, batch: Batch) -> Tensor:
        return run_encoder(self.model, batch)

    def loss(self, logits: Tensor, batch: Batch) -> LossSum:
        labels, smoothing = batch["labels"], self.regularise.label_smoothing if self.training else 0.0
        there = labels != IGNORED
        true = torch.zeros_like(logits).scatter_add_(1, labels.clamp_min(0), there.to(logits.dtype))
        true = true * (1 - smoothing) + smoothing / 2
        each = F.binary_cross_entropy_with_logits(logits, true, reduction="none").mean(1)
        return LossSum((each * batch["weight"]).sum(), batch["weight"].sum())

    def chances(self, logits: Tensor, batch: Batch) -> Tensor:
        some = logits[batch["weight"] > 0].flatten()
        return torch.stack([F.logsigmoid(some), F.logsigmoid(-some)], 1)

    def count_targets(self, batch: Batch) -> int:
        return int(batch["weight"].sum())
