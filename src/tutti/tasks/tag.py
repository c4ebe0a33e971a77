"""Token classification: names and other entities in a text.

An example comes as words with a BIO tag each (CoNLL), or as text with spans (JSONL). Either way it becomes a text, the
places of its words, and a tag for each. A model reads sub-words: the first of each word is asked for the word's tag,
the others, and what is padding, are neither learned nor scored. No token reaches beyond a word (`tasks.words`). A text
that is longer than the model goes on in another row, at the border of a word.

Shapes: B rows, S tokens, W words of a row, L labels.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tutti.config.task import RegulariseConfig, TaskConfig
from tutti.core import Batch, DataError, LossSum, Objective
from tutti.tasks.chunked_loss import IGNORED
from tutti.tasks.entities import OUTSIDE, entities, tags_of_spans
from tutti.tasks.scored import Scored
from tutti.tasks.task import (
    Answers,
    EmptyText,
    Example,
    Labels,
    Record,
    Row,
    RowEncoder,
    Rows,
    Task,
    inputs_of,
    padded,
    run_encoder,
)
from tutti.tasks.words import first_tokens, windows, words_of

_TAG = re.compile(r"(?:O|[BI]-.+)\Z", re.DOTALL)


class Tag(Task):
    """Examples `{text, words: [[start, end], …], tags: […]}`; answers: of each word the number of its tag and the
    chance of it [2 W]."""

    kind = "tag"
    long = "they are read in pieces"
    counted = "words"
    layout = 1

    def __init__(self, config: TaskConfig, regularise: RegulariseConfig | None = None) -> None:
        super().__init__(config, regularise)
        self.main = "f1"

    def example(self, record: Record, *, labelled: bool = True) -> Example:
        if self.has(record, "tokens"):
            return self._of_tokens(record, labelled)
        text = self.text_field(record, "text")
        words = words_of(text)
        example: Example = {"text": text, "words": [list(word) for word in words]}
        if labelled:
            example["tags"] = tags_of_spans(record, self.field(record, "spans"), text, words)
        return example

    def _of_tokens(self, record: Record, labelled: bool) -> Example:
        tokens = self.field(record, "tokens")
        if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
            raise DataError(f"{record.origin}: the tokens are no list of texts", 'give tokens: ["…", …]')
        if not any(token.strip() for token in tokens):
            raise EmptyText(f"{record.origin} has no tokens", "mend or delete the record")
        words, at = [], 0
        for token in tokens:
            words.append([at, at + len(token)])
            at += len(token) + 1
        example: Example = {"text": " ".join(tokens), "words": words}
        if labelled:
            tags = self.field(record, "tags")
            if not isinstance(tags, list) or len(tags) != len(tokens):
                count = len(tags) if isinstance(tags, list) else "no"
                raise DataError(
                    f"{record.origin} has {len(tokens)} tokens but {count} tags", "give each token one tag"
                )
            for token, tag in zip(tokens, tags, strict=True):
                if not isinstance(tag, str) or not _TAG.match(tag):
                    raise DataError(
                        f"{record.origin}: the tag of {token[:40]!r} is {tag!r}",
                        "tags are O, B-KIND (an entity begins) and I-KIND (it goes on)",
                    )
            example["tags"] = tags
        return example

    def texts(self, example: Example) -> list[str]:
        return [example["text"]]

    def label_names(self, example: Example) -> Iterable[str]:
        tags: list[str] = example["tags"]
        return tags

    def labels(self, counted: Counter[str]) -> Labels:
        kinds = sorted({name[2:] for name in counted if name != OUTSIDE})
        if not kinds:
            raise DataError(
                "no training example has an entity", "check task.fields, and that the tags are BIO"
            )
        names = (OUTSIDE, *(f"{part}-{kind}" for kind in kinds for part in "BI"))
        return Labels(names, tuple(counted[name] for name in names))

    def rows(self, examples: Sequence[Example], labels: Labels, encoder: RowEncoder) -> list[list[Row]]:
        tokenizer = encoder.tokenizer
        tokenizer.no_truncation()
        room = encoder.room(1)
        before, after = _around(encoder)
        encodings = tokenizer.encode_batch(
            [example["text"] for example in examples], add_special_tokens=False
        )
        found = []
        for example, encoding in zip(examples, encodings, strict=True):
            firsts = first_tokens(example["words"], encoding.offsets)
            rows = []
            for start, stop in windows(firsts, len(encoding.ids), room):
                here = [word for word, at in enumerate(firsts) if at is not None and start <= at < stop]
                row: Row = {
                    "input_ids": [*before, *encoding.ids[start:stop], *after],
                    "starts": [firsts[word] - start + len(before) for word in here],  # type: ignore[operator]
                    "words": here,
                    "cut": [int(start > 0)],
                }
                if encoder.types:
                    row["token_type_ids"] = [0] * len(row["input_ids"])
                if "tags" in example:
                    row["tags"] = [labels.numbers[example["tags"][word]] for word in here]
                rows.append(row)
            found.append(rows)
        return found

    def batch(self, rows: Sequence[Row], pad: int) -> Batch:
        batch = inputs_of(rows, pad)
        labels = torch.full_like(batch["input_ids"], IGNORED)
        for line, row in zip(labels, rows, strict=True):
            if row.get("tags"):
                line[torch.tensor(row["starts"])] = torch.tensor(row["tags"], dtype=torch.int64)
        return batch | {"labels": labels, "starts": padded([row["starts"] for row in rows], -1)}

    def blank(self, row: Row) -> Row:
        return {name: column for name, column in row.items() if name != "tags"}

    def objective(self, model: nn.Module, labels: Labels) -> Objective:
        return Tags(model, self.regularise)

    def width(self, rows: Rows, labels: Labels, model: nn.Module) -> int:
        return 2 * max((len(rows[number]["starts"]) for number in range(len(rows))), default=0)

    def score(
        self, answers: Answers, rows: Rows, examples: Sequence[Example], labels: Labels
    ) -> dict[str, float]:
        from nervaluate.evaluator import Evaluator

        said = [tags for tags, _ in self._tags(answers, rows, examples, labels)]
        true = [example["tags"] for example in examples]
        kinds = sorted({name[2:] for name in labels.names if name != OUTSIDE})
        found = Evaluator(_listed(examples, true), _listed(examples, said), tags=kinds, loader="dict")
        strict = found.evaluate()["overall"]["strict"]
        right = sum(
            a == b for one, other in zip(true, said, strict=True) for a, b in zip(one, other, strict=True)
        )
        return {
            "f1": float(strict.f1),
            "precision": float(strict.precision),
            "recall": float(strict.recall),
            "word_accuracy": right / max(1, sum(map(len, true))),
        }

    def decode(
        self, answers: Answers, rows: Rows, examples: Sequence[Example], labels: Labels
    ) -> list[dict[str, Any]]:
        return [
            {"entities": [_scored(entity, example, chances) for entity in entities(example, tags)]}
            for example, (tags, chances) in zip(
                examples, self._tags(answers, rows, examples, labels), strict=True
            )
        ]

    def _tags(
        self, answers: Answers, rows: Rows, examples: Sequence[Example], labels: Labels
    ) -> list[tuple[list[str], list[float]]]:
        """Of each example a tag for every word, and its chance; a word that the tokenizer leaves nothing of is
        outside."""
        found = [([OUTSIDE] * len(e["words"]), [0.0] * len(e["words"])) for e in examples]
        for number, line in enumerate(answers.tolist()):
            row, (tags, chances) = rows[number], found[int(rows.example[number])]
            for place, word in enumerate(row["words"]):
                tags[word], chances[word] = labels.names[int(line[2 * place])], line[2 * place + 1]
        return found


def _scored(entity: dict[str, Any], example: Example, chances: Sequence[float]) -> dict[str, Any]:
    """`entity` with `score`, the mean chance of the tags of its words."""
    own = [
        chance
        for (start, end), chance in zip(example["words"], chances, strict=True)
        if start >= entity["start"] and end <= entity["end"]
    ]
    return entity | {"score": round(sum(own) / len(own), 4)}


def _listed(examples: Sequence[Example], tags: Sequence[Sequence[str]]) -> list[list[dict[str, Any]]]:
    """Entities as nervaluate takes them, whose ends are inside."""
    return [
        [
            {"label": e["label"], "start": e["start"], "end": e["end"] - 1}
            for e in entities(example, of_example)
        ]
        for example, of_example in zip(examples, tags, strict=True)
    ]


def _around(encoder: RowEncoder) -> tuple[list[int], list[int]]:
    """The special tokens that the tokenizer puts before and behind a text."""
    encoding = encoder.tokenizer.encode("a")
    inside = [at for at, special in enumerate(encoding.special_tokens_mask) if not special]
    return encoding.ids[: inside[0]], encoding.ids[inside[-1] + 1 :]


class Tags(Scored):
    """Σ −log p(tag) over the words; batches: `inputs_of`, `labels` [B, S] (−100: not asked), `starts` [B, W]."""

    def logits(self, batch: Batch) -> Tensor:
        return run_encoder(self.model, batch)

    def loss(self, logits: Tensor, batch: Batch) -> LossSum:
        labels = batch["labels"]
        smoothing = self.regularise.label_smoothing if self.training else 0.0
        total = F.cross_entropy(
            logits.flatten(0, 1),
            labels.flatten(),
            reduction="sum",
            ignore_index=IGNORED,
            label_smoothing=smoothing,
        )
        return LossSum(total, (labels != IGNORED).sum())

    def chances(self, logits: Tensor, batch: Batch) -> Tensor:
        return logits[batch["labels"] != IGNORED].log_softmax(1)

    def answer_with(self, logits: Tensor, batch: Batch) -> None:
        if self.answers is not None:
            starts = batch["starts"]
            best = logits.softmax(2).max(2)
            said = torch.stack([best.indices.double(), best.values.double()], 2)  # [B, S, 2]
            told = (
                said.gather(1, starts.clamp_min(0)[:, :, None].expand(-1, -1, 2)) * (starts >= 0)[:, :, None]
            )
            self.answer(told.flatten(1))

    def count_targets(self, batch: Batch) -> int:
        return int((batch["labels"] != IGNORED).sum())
