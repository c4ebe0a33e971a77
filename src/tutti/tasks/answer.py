"""Extractive question answering: the stretch of a text that answers a question, or that there is none.

A text that is too long for one row goes on in another that begins `stride` tokens before the first ends, so no answer
is cut in two; the likeliest stretch of all rows is the answer. Where examples without an answer were learned, a stretch
has to beat the class token, which stands for "none".

Shapes: B rows, S tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tutti.config.task import RegulariseConfig, TaskConfig
from tutti.core import Batch, DataError, LossSum, Objective
from tutti.tasks.chunked_loss import IGNORED
from tutti.tasks.dense import packed
from tutti.tasks.scored import Scored
from tutti.tasks.task import Answers, Example, Labels, Record, Row, RowEncoder, Rows, Task, inputs_of

#: Tokens of the longest answer, and by how many rows of one text overlap.
_LONGEST, _STRIDE = 30, 64
#: Tokens around question and context, of any tokenizer, at most.
_AROUND = 4
#: Signs of what is no answer that a message shows.
_SHOWN = 80
#: Logit of what cannot be.
_NEVER = -1e9


class Answer(Task):
    """Examples `{question, context, answers: [{text, start}]}`.

    Answers of the model, for each row: start, end (tokens) and score of the likeliest stretch, and the score of none.
    """

    kind = "answer"
    asked = None
    long = "their texts are read in pieces that overlap"

    def __init__(self, config: TaskConfig, regularise: RegulariseConfig | None = None) -> None:
        super().__init__(config, regularise)
        self.main = "f1"

    def example(self, record: Record, *, labelled: bool = True) -> Example:
        example: Example = {
            "question": self.text_field(record, "question"),
            "context": self.text_field(record, "context"),
        }
        if labelled:
            example["answers"] = [_answer(record, one, example["context"]) for one in self._listed(record)]
            if not example["answers"] and not self.config.unanswerable:
                raise DataError(
                    f"{record.origin} has no answer, and this model is never to say that there is none",
                    "set task.unanswerable: true before it is trained, or leave such questions out",
                )
        return example

    def _listed(self, record: Record) -> list[Any]:
        value = self.field(record, "answers")
        if isinstance(value, dict):  # as `datasets` has SQuAD's: a list of texts and a list of starts
            texts, starts = value.get("text", []), value.get("answer_start", [])
            if not isinstance(texts, list) or not isinstance(starts, list) or len(texts) != len(starts):
                raise DataError(
                    f"{record.origin}: the texts and starts of the answers are no two lists of one length "
                    f"({_shown(texts)} and {_shown(starts)})",
                    'give answers: {"text": ["…"], "answer_start": [7]}, or [{"text": "…", "answer_start": 7}]',
                )
            value = [{"text": text, "answer_start": start} for text, start in zip(texts, starts, strict=True)]
        if not isinstance(value, list):
            raise DataError(
                f"{record.origin}: the answers are no list",
                'give answers: [{"text": "…", "answer_start": 7}], or []',
            )
        return value

    def texts(self, example: Example) -> list[str]:
        return [example["question"], example["context"]]

    def label_names(self, example: Example) -> Iterable[str]:
        return iter(())

    def labels(self, counted: object) -> Labels:
        return Labels((), ())

    def rows(self, examples: Sequence[Example], labels: Labels, encoder: RowEncoder) -> list[list[Row]]:
        tokenizer = encoder.tokenizer
        tokenizer.no_truncation()
        room = encoder.room(2)
        asked = tokenizer.encode_batch([e["question"] for e in examples], add_special_tokens=False)
        # A question leaves half of the room to its text: pieces of that need more than they have in common.
        most = max(1, encoder.length // 2 - _AROUND)
        questions = [
            e["question"] if len(q.ids) <= most else e["question"][: q.offsets[most - 1][1]]
            for e, q in zip(examples, asked, strict=True)
        ]
        # The tokenizer takes no overlap that leaves a piece nothing of its own.
        stride = min(_STRIDE, encoder.length // 4, room - most - 1)
        tokenizer.enable_truncation(encoder.length, stride=stride, strategy="only_second")
        pairs = [(question, e["context"]) for question, e in zip(questions, examples, strict=True)]
        found = []
        for example, question, encoding in zip(
            examples, questions, tokenizer.encode_batch(pairs), strict=True
        ):
            pieces = [encoding, *encoding.overflowing]
            rows = [_row(piece, example, encoder.types, number) for number, piece in enumerate(pieces)]
            rows[0]["cut"] = [int(question != example["question"])]
            found.append(rows)
        return found

    def batch(self, rows: Sequence[Row], pad: int) -> Batch:
        batch = inputs_of(rows, pad)
        inside = torch.zeros_like(batch["input_ids"])
        for line, row in zip(inside, rows, strict=True):
            line[: len(row["begins"])] = torch.tensor([begin >= 0 for begin in row["begins"]])
        given = [row.get("places") or [IGNORED, IGNORED] for row in rows]
        return batch | {"inside": inside, "places": torch.tensor([list(pair) for pair in given])}

    def blank(self, row: Row) -> Row:
        return {name: column for name, column in row.items() if name != "places"}

    def objective(self, model: nn.Module, labels: Labels) -> Objective:
        return Spans(model, self.regularise)

    def width(self, rows: Rows, labels: Labels, model: nn.Module) -> int:
        return 4

    def score(
        self, answers: Answers, rows: Rows, examples: Sequence[Example], labels: Labels
    ) -> dict[str, float]:
        from torchmetrics.functional.text import squad

        said = self.decode(answers, rows, examples, labels)
        predicted: Any = [{"prediction_text": one["answer"], "id": str(at)} for at, one in enumerate(said)]
        true: list[Any] = []
        for at, example in enumerate(examples):
            texts = [one["text"] for one in example["answers"]] or [""]
            true.append({"answers": {"text": texts, "answer_start": [0] * len(texts)}, "id": str(at)})
        found = squad(predicted, true)
        return {"f1": float(found["f1"]) / 100, "exact": float(found["exact_match"]) / 100}

    def decode(
        self, answers: Answers, rows: Rows, examples: Sequence[Example], labels: Labels
    ) -> list[dict[str, Any]]:
        best: list[tuple[float, str, int]] = [(-float("inf"), "", -1)] * len(examples)
        none = [float("inf")] * len(examples)
        for number, (start, end, score, nothing) in enumerate(answers.tolist()):
            example, row = int(rows.example[number]), rows[number]
            none[example] = min(none[example], nothing)
            begin = row["begins"][int(start)]
            if begin >= 0 and score > best[example][0]:
                context = examples[example]["context"]
                begin, stop = _without_space(context, begin, row["ends"][int(end)])
                best[example] = (score, context[begin:stop], begin)
        return [
            self._said(text, begin, score, nothing)
            for (score, text, begin), nothing in zip(best, none, strict=True)
        ]

    def _said(self, text: str, begin: int, score: float, nothing: float) -> dict[str, Any]:
        """The answer `text` at `begin` with its `score`, or that there is none, which has the score `nothing`."""
        if begin < 0:  # the context has no token, as if it were of spaces alone
            return {"answer": "", "start": None, "score": 0.0}
        if self.config.unanswerable and nothing > score:
            return {"answer": "", "start": None, "score": round(nothing - score, 4)}
        return {"answer": text, "start": begin, "score": round(score - nothing, 4)}


def _shown(value: Any) -> str:
    """`value`, or its beginning, for a message."""
    return repr(value)[:_SHOWN]


def _answer(record: Record, one: Any, context: str) -> dict[str, Any]:
    try:
        text, start = one["text"], one.get("answer_start", one.get("start"))
        if not isinstance(text, str) or not text.strip() or not isinstance(start, int):
            raise TypeError
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{record.origin}: {_shown(one)} is no answer",
            'answers are like {"text": "…", "answer_start": 7}',
        ) from error
    if start < 0 or context[start : start + len(text)] != text:
        there = context[max(0, start) : max(0, start + len(text))]
        raise DataError(
            f"{record.origin}: the answer {text[:60]!r} does not stand in its context at {start} "
            f"(there is {there[:60]!r})",
            "answer_start counts characters from 0",
        )
    start, stop = _without_space(context, start, start + len(text))
    return {"text": context[start:stop], "start": start}


def _without_space(text: str, start: int, stop: int) -> tuple[int, int]:
    """Where `text` from `start` to `stop` begins and ends but for space: some tokenizers count that to a word."""
    bare = text[start:stop].lstrip()
    start = stop - len(bare)
    return start, start + len(bare.rstrip())


def _row(piece: Any, example: Example, types: bool, number: int) -> Row:
    of_context = [sequence == 1 for sequence in piece.sequence_ids]
    begins = [begin if ours else -1 for (begin, _), ours in zip(piece.offsets, of_context, strict=True)]
    ends = [end if ours else -1 for (_, end), ours in zip(piece.offsets, of_context, strict=True)]
    row: Row = {"input_ids": piece.ids, "begins": begins, "ends": ends, "cut": [int(number > 0)]}
    if types:
        row["token_type_ids"] = piece.type_ids
    if "answers" in example:
        row["places"] = [0, 0]
        if example["answers"]:
            start = example["answers"][0]["start"]
            stop = start + len(example["answers"][0]["text"])
            inside = [
                at
                for at, (b, e) in enumerate(zip(begins, ends, strict=True))
                if b < stop and e > start and b >= 0
            ]
            # Only where the whole answer stands in this piece.
            if inside and begins[inside[0]] <= start and ends[inside[-1]] >= stop:
                row["places"] = [inside[0], inside[-1]]
    return row


class Spans(Scored):
    """½ Σ −log p(start) − log p(end); batches: `inputs_of`, `inside` [B, S], `places` [B, 2] (−100: not asked).

    Logits: [B, 2, S], starts and ends.
    """

    def logits(self, batch: Batch) -> Tensor:
        names = ("input_ids", "attention_mask", "token_type_ids")
        with packed(batch["attention_mask"]):
            output = self.model(**{name: batch[name] for name in names if name in batch})
        both = torch.stack([output.start_logits, output.end_logits], 1).float()
        return both.masked_fill(batch["attention_mask"][:, None] == 0, _NEVER)

    def loss(self, logits: Tensor, batch: Batch) -> LossSum:
        places = batch["places"]
        total = F.cross_entropy(
            logits.flatten(0, 1),
            places.flatten(),
            reduction="sum",
            ignore_index=IGNORED,
        )
        return LossSum(total / 2, (places[:, 0] != IGNORED).sum())

    def chances(self, logits: Tensor, batch: Batch) -> Tensor:
        return logits[batch["places"][:, 0] != IGNORED].flatten(0, 1).log_softmax(1)

    def answer_with(self, logits: Tensor, batch: Batch) -> None:
        if self.answers is not None:
            self.answer(likeliest(logits[:, 0], logits[:, 1], batch["inside"].bool()))

    def count_targets(self, batch: Batch) -> int:
        return int((batch["places"][:, 0] != IGNORED).sum())


def likeliest(starts: Tensor, ends: Tensor, inside: Tensor) -> Tensor:
    """[B, 4]: start, end and score (sum of logits) of the likeliest stretch `inside` [B, S], and the score of none."""
    both = starts[:, :, None] + ends[:, None, :]
    tokens = starts.shape[1]
    behind = torch.arange(tokens, device=starts.device)
    reach = behind[None, :] - behind[:, None]
    possible = inside[:, :, None] & inside[:, None, :] & (reach >= 0) & (reach < _LONGEST)
    score, at = both.masked_fill(~possible, _NEVER).flatten(1).max(1)
    return torch.stack([at // tokens, at % tokens, score, starts[:, 0] + ends[:, 0]], 1).double()
