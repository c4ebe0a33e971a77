"""Embeddings: texts that belong together get vectors that point the same way, by contrast with texts that do not.

Examples are pairs, a query and a text that answers it. A sample of the run is a group of G pairs, drawn anew in every
epoch, in which each query is told apart from the other texts, and each text from the other queries (InfoNCE: van den
Oord et al. 2018, arXiv 1807.03748; both ways, as in CLIP: Radford et al. 2021, arXiv 2103.00020):

    L = Σᵢ ½ (−log softmaxⱼ(qᵢ·tⱼ / τ)ᵢ − log softmaxⱼ(tᵢ·qⱼ / τ)ᵢ)        τ = 0.05

q and t are means over tokens, of length 1. Pairs in a group with the same text do not count against each other. As a
group is a sample, the loss is the same on any number of workers; what other trainers call in-batch negatives depends on
how a batch is cut.

Judged is retrieval among all texts of the part: `recall@k`, the share of queries whose text is among the k most alike,
and `mrr`, the mean of 1 ÷ rank.

Shapes: n pairs, G pairs a group, S tokens, D width.
"""

from __future__ import annotations

import json
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tutti.config.task import RegulariseConfig, TaskConfig
from tutti.core import Batch, LossSum, Objective
from tutti.tasks.dense import packed
from tutti.tasks.task import Answers, Example, Labels, Record, Row, RowEncoder, Rows, Task, inputs_of
from tutti.tasks.teachers import Thinker

_TEMPERATURE = 0.05
_CUTS = (1, 10)
#: Pairs of a group, where nothing is said.
_TOGETHER = 16
#: Queries that are compared with all texts at once.
_AT_ONCE = 1024


class Embed(Task):
    """Examples `{query, text}`, or one of the two to be asked about; answers: vectors of both [2 D], or of one [D]."""

    kind = "embed"
    long = "their ends are cut off"
    main = "mrr"

    def __init__(self, config: TaskConfig, regularise: RegulariseConfig | None = None) -> None:
        super().__init__(config, regularise)
        self.group = config.together or _TOGETHER

    def example(self, record: Record, *, labelled: bool = True) -> Example:
        names = ["query", "text"]
        if not labelled:
            names = ["text"] if self.has(record, "text") else ["query"]
        return {name: self.text_field(record, name) for name in names}

    def texts(self, example: Example) -> list[str]:
        return list(example.values())

    def label_names(self, example: Example) -> Iterable[str]:
        return iter(())

    def labels(self, counted: Counter[str]) -> Labels:
        return Labels((), ())

    def rows(self, examples: Sequence[Example], labels: Labels, encoder: RowEncoder) -> list[list[Row]]:
        encoder.room(1)
        encoder.tokenizer.enable_truncation(encoder.length)
        rows: list[list[Row]] = []
        for example in examples:
            sides = encoder.tokenizer.encode_batch(list(example.values()))
            row: Row = {
                "input_ids": [number for side in sides for number in side.ids],
                "split": [len(sides[0].ids)],
                "same": [zlib.crc32(list(example.values())[-1].encode()) >> 1],
                "cut": [int(any(side.overflowing for side in sides))],
                "there": [int(len(sides) == 2)],
            }
            rows.append([row])
        return rows

    def batch(self, rows: Sequence[Row], pad: int) -> Batch:
        sides: list[Row] = [{"input_ids": row["input_ids"][: row["split"][0]]} for row in rows]
        if len(rows[0]["input_ids"]) > rows[0]["split"][0]:
            sides += [{"input_ids": row["input_ids"][row["split"][0] :]} for row in rows]
        batch = inputs_of(sides, pad)
        return batch | {name: torch.tensor([row[name][0] for row in rows]) for name in ("same", "there")}

    def blank(self, row: Row) -> Row:
        return row | {"there": [0]}

    def alone(self, row: Row) -> Row:
        return row | {"input_ids": row["input_ids"][: row["split"][0]], "there": [0]}

    def objective(self, model: nn.Module, labels: Labels) -> Objective:
        return Contrast(model, self.group)

    def width(self, rows: Rows, labels: Labels, model: nn.Module) -> int:
        config: Any = model.config
        return 2 * int(config.get_text_config().hidden_size)

    def score(
        self, answers: Answers, rows: Rows, examples: Sequence[Example], labels: Labels
    ) -> dict[str, float]:
        queries, texts = np.split(answers, 2, axis=1)
        same = np.array([rows[number]["same"][0] for number in range(len(rows))])
        _, first, number = np.unique(same, return_index=True, return_inverse=True)
        ranks = []
        for start in range(0, len(queries), _AT_ONCE):
            alike = queries[start : start + _AT_ONCE] @ texts[first].T
            own = np.take_along_axis(alike, number[start : start + _AT_ONCE, None], 1)
            # Halfway among equals, so that a model to which all is alike, or no number, finds nothing.
            ranks.append((1 + (alike > own).sum(1) + alike.shape[1] - (alike < own).sum(1)) / 2)
        rank = np.concatenate(ranks)
        found = {f"recall@{cut}": float((rank <= cut).mean()) for cut in _CUTS}
        return {"mrr": float((1 / rank).mean())} | found

    def decode(
        self, answers: Answers, rows: Rows, examples: Sequence[Example], labels: Labels
    ) -> list[dict[str, Any]]:
        return [{"embedding": line} for line in answers.round(6).tolist()]

    def exported(self, model: nn.Module, length: int) -> dict[str, str]:
        """What tells sentence-transformers to take the mean over tokens, with length 1."""
        config: Any = model.config
        parts = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
        modules = [
            {"idx": at, "name": str(at), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for at, (path, kind) in enumerate(parts)
        ]
        pooling = {
            "word_embedding_dimension": config.get_text_config().hidden_size,
            "pooling_mode_mean_tokens": True,
            "pooling_mode_cls_token": False,
        }
        files = {
            "modules.json": modules,
            "1_Pooling/config.json": pooling,
            "sentence_bert_config.json": {"max_seq_length": length, "do_lower_case": False},
            "config_sentence_transformers.json": {"similarity_fn_name": "cosine"},
        }
        return {name: json.dumps(content, indent=2) + "\n" for name, content in files.items()}


class Contrast(Thinker):
    """L; batches: `inputs_of` n queries and behind them n texts, `same` [n] (a number for each text), `there` [n]."""

    def __init__(self, model: nn.Module, group: int) -> None:
        super().__init__(model)
        self._group = group

    def forward(self, batch: Batch) -> LossSum:
        """Sum of L over the pairs that are there, and their number."""
        vectors = self._vectors(batch)
        there = batch["there"].bool()
        if len(vectors) == len(there):  # single texts, to be asked about
            self.answer(vectors)
            return LossSum(vectors.sum() * 0, there.sum() * 0)
        queries, texts = vectors.chunk(2)
        self.answer(torch.cat([queries, texts], 1).view(-1, self._group * 2 * vectors.shape[1]))
        alike = self._alike(vectors)
        own = torch.arange(self._group, device=there.device).repeat(len(there) // self._group)[there]
        total = -self.chances(alike, batch).gather(1, own.repeat(2)[:, None]).sum() / 2
        return self.taught(LossSum(total, there.sum()), alike, batch)

    def logits(self, batch: Batch) -> Tensor:
        """How alike the queries (rows) and texts (columns) of each group are, over τ: [groups, G, G]."""
        return self._alike(self._vectors(batch))

    def chances(self, logits: Tensor, batch: Batch) -> Tensor:
        """Log probabilities [2 pairs, G] of each text for a query, then of each query for a text, of what is there."""
        same, there = (batch[name].view(-1, self._group) for name in ("same", "there"))
        itself = torch.eye(self._group, dtype=torch.bool, device=same.device)
        apart = (same[:, :, None] != same[:, None, :]) & there.bool()[:, None, :]
        # The second direction reads down the columns.
        tables = torch.cat([logits, logits.transpose(1, 2)])
        told = tables.masked_fill(~(apart | itself).repeat(2, 1, 1), -1e9).log_softmax(2)
        return told[there.bool().repeat(2, 1)]

    def _alike(self, vectors: Tensor) -> Tensor:
        queries, texts = (side.view(-1, self._group, side.shape[1]) for side in vectors.chunk(2))
        with torch.autocast(vectors.device.type, enabled=False):  # little work, and τ makes much of rounding
            return queries @ texts.transpose(1, 2) / _TEMPERATURE

    def count_targets(self, batch: Batch) -> int:
        """Pairs that are there."""
        return int(batch["there"].sum())

    def _vectors(self, batch: Batch) -> Tensor:
        """[rows, D]: means over tokens, of length 1."""
        mask = batch["attention_mask"]
        with packed(mask):
            hidden: Tensor = self.model(input_ids=batch["input_ids"], attention_mask=mask).last_hidden_state
        weight = mask[:, :, None].to(hidden.dtype)
        mean = (hidden * weight).sum(1) / weight.sum(1).clamp_min(1)
        return nn.functional.normalize(mean.float(), dim=1)
