"""Relation classification: what two marked entities of a text have to do with each other.

The text marks them, `The <e1>child</e1> was wrapped into the <e2>cradle</e2>.`; an encoder is given the marks as signs
that its tokenizer knows (`$ child $`, `# cradle #`: Wu and He 2019, arXiv 1905.08284), and classifies the text. Of one
that is too long, what stands far from both entities is left out.

Score: as the task of SemEval 2010 counts it. Labels like `Cause-Effect(e1,e2)` and `Cause-Effect(e2,e1)` are one
relation with a direction, which has to be right; macro-F1 is the mean over relations, of which `task.none` is none.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from tutti.config.task import RegulariseConfig, TaskConfig
from tutti.core import DataError
from tutti.tasks.classify import Classify
from tutti.tasks.task import Answers, Example, Labels, Record, Row, RowEncoder, Rows

_MARKED = re.compile(r"<(e[12])>(.*?)</\1>", re.DOTALL)
_SIGNS = {"e1": "$", "e2": "#"}
#: Relations that a message names.
_NAMED = 8
_DIRECTION = re.compile(r"\(e[12], ?e[12]\)\Z")


class Relate(Classify):
    """Examples `{text, labels: [label]}`, the text with its marks; answers: the logits [L]."""

    kind = "relate"
    long = "what stands far from both entities is left out"

    def __init__(self, config: TaskConfig, regularise: RegulariseConfig | None = None) -> None:
        super().__init__(config, regularise)
        self.main = "macro_f1"

    def example(self, record: Record, *, labelled: bool = True) -> Example:
        example = super().example(record, labelled=labelled)
        marked = [match[1] for match in _MARKED.finditer(example["text"])]
        if sorted(marked) != ["e1", "e2"]:
            raise DataError(
                f"{record.origin} marks {', '.join(marked) or 'nothing'}, not two entities",
                "mark each of the two once: `The <e1>child</e1> was wrapped into the <e2>cradle</e2>.`",
            )
        return example

    def labels(self, counted: Counter[str]) -> Labels:
        labels = super().labels(counted)
        relations = sorted({relation_of(name) for name in labels.names})
        if self.config.none is not None and self.config.none not in relations:
            raise DataError(
                f"no training example is of the relation '{self.config.none}' that task.none names; there are "
                f"{', '.join(relations[:_NAMED])}{', …' if len(relations) > _NAMED else ''}",
                "write it as the examples do, without a direction; or leave task.none out",
            )
        return labels

    def shown(self, example: Example, encoder: RowEncoder) -> tuple[str, ...]:
        """The text with signs for marks, as much of it as a row holds."""
        encoder.tokenizer.no_truncation()
        text, kept = example["text"], len(example["text"])
        shown = _with_signs(text)
        while len(encoder.tokenizer.encode(shown).ids) > encoder.length and kept > 0:
            kept = kept * 3 // 4
            shown = _with_signs(_around(text, kept))
        return (shown,)

    def rows(self, examples: Sequence[Example], labels: Labels, encoder: RowEncoder) -> list[list[Row]]:
        shown = [self.shown(example, encoder) for example in examples]
        found = self.rows_of(shown, examples, labels, encoder)
        for (row,), example, (text,) in zip(found, examples, shown, strict=True):
            row["cut"] = [int(text != _with_signs(example["text"]) or bool(row["cut"][0]))]
        return found

    def score(
        self, answers: Answers, rows: Rows, examples: Sequence[Example], labels: Labels
    ) -> dict[str, float]:
        true = [example["labels"][0] for example in examples]
        said = [labels.names[at] for at in answers.argmax(1)]
        relations = sorted({relation_of(name) for name in labels.names} - {self.config.none})
        each = []
        for relation in relations:
            right = sum(a == b and relation_of(a) == relation for a, b in zip(true, said, strict=True))
            had = sum(relation_of(name) == relation for name in true)
            claimed = sum(relation_of(name) == relation for name in said)
            each.append(2 * right / (had + claimed) if had + claimed else 0.0)
        same = np.array([a == b for a, b in zip(true, said, strict=True)])
        return {"macro_f1": float(np.mean(each)), "accuracy": float(same.mean())}

    def decode(
        self, answers: Answers, rows: Rows, examples: Sequence[Example], labels: Labels
    ) -> list[dict[str, Any]]:
        said = super().decode(answers, rows, examples, labels)
        for one, example in zip(said, examples, strict=True):
            one["entities"] = {match[1]: match[2] for match in _MARKED.finditer(example["text"])}
        return said


def relation_of(label: str) -> str:
    """`label` without its direction."""
    return _DIRECTION.sub("", label)


def _with_signs(text: str) -> str:
    return _MARKED.sub(lambda match: f"{_SIGNS[match[1]]} {match[2]} {_SIGNS[match[1]]}", text)


def _around(text: str, characters: int) -> str:
    """The two entities, and about so many characters of what stands next to them; never a half of a mark."""
    first, second = _MARKED.finditer(text)
    before, between, after = text[: first.start()], text[first.end() : second.start()], text[second.end() :]
    room = characters // 4
    inner = between if len(between) <= 2 * room else f"{between[:room]} … {between[len(between) - room :]}"
    return f"{before[len(before) - min(room, len(before)) :]}{first[0]}{inner}{second[0]}{after[:room]}"
