"""What is explained: that a text has a label, or that some words of it are an entity; and how sure a model is of it.

How sure is counted in log-odds, ln(p ÷ (1 − p)): where a model is all but certain its chances hardly move, whatever is
hidden, while these do.

Shapes: n variants of a row, S tokens, L labels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tutti.core import DataError
from tutti.package import Asker
from tutti.tasks.classify import Classify
from tutti.tasks.entities import OUTSIDE, entities
from tutti.tasks.task import Example, Row

#: Nearer to 0 and to 1 chances are not told apart.
_LEAST = 1e-4


@dataclass(frozen=True)
class Claim:
    """`row`: in which of the example's rows it stands. `number`: of the label. `tags`: of an entity, the places of its
    words among those of the row and the number of the tag of each. `entity`: as the task tells it."""

    label: str
    row: int
    number: int = -1
    tags: tuple[tuple[int, int], ...] = ()
    entity: dict[str, Any] | None = None

    def log_odds(self, answer: NDArray[np.float64], *, multiple: bool) -> float:
        """By what the model answered to its row. Of tags it says the likeliest only: where that is another, this one
        has no chance."""
        if not self.tags:
            return _log_odds(_chances(answer, multiple)[self.number])
        said = [answer[2 * place + 1] if answer[2 * place] == tag else 0.0 for place, tag in self.tags]
        return float(np.mean([_log_odds(float(chance)) for chance in said]))

    def log_odds_of(self, logits: Tensor, starts: Sequence[int], *, multiple: bool) -> Tensor:
        """[n], by logits [n, L], or [n, S, L] of tags whose words begin at `starts`."""
        if not self.tags:
            return _one_against_all(logits, self.number, multiple)
        each = [_one_against_all(logits[:, starts[place]], tag, False) for place, tag in self.tags]
        total: Tensor = sum(each[1:], each[0]) / len(each)
        return total


def claims_of(
    asker: Asker,
    example: Example,
    rows: Sequence[Row],
    answers: Sequence[NDArray[np.float64]],
    label: str | None,
) -> list[Claim]:
    """What the model claims of `example`; `label`: this one, whether it claims it or not (of entities: those that it
    found of this kind).

    Raises:
        DataError: the model knows no such label.
    """
    names = asker.labels.names
    if isinstance(asker.task, Classify):
        if label is not None:
            _require_known(label, names)
            return [Claim(label, 0, names.index(label))]
        chances = _chances(answers[0], asker.task.config.multiple)
        said = [int(at) for at in np.flatnonzero(chances > 0.5)] if asker.task.config.multiple else []
        return [Claim(names[at], 0, at) for at in said or [int(chances.argmax())]]
    if label is not None:
        _require_known(label, sorted({name[2:] for name in names if name != OUTSIDE}))
    tags, where = [OUTSIDE] * len(example["words"]), dict[int, tuple[int, int]]()
    for number, (row, answer) in enumerate(zip(rows, answers, strict=True)):
        for place, word in enumerate(row["words"]):
            tags[word], where[word] = names[int(answer[2 * place])], (number, place)
    found = []
    for entity in entities(example, tags):
        if label is not None and entity["label"] != label:
            continue
        inside = [
            word
            for word, (start, end) in enumerate(example["words"])
            if start >= entity["start"] and end <= entity["end"] and word in where
        ]
        here = where[inside[0]][0]
        own = tuple((where[word][1], names.index(tags[word])) for word in inside if where[word][0] == here)
        found.append(Claim(entity["label"], here, tags=own, entity=_told(entity, example)))
    return found


def _told(entity: dict[str, Any], example: Example) -> dict[str, Any]:
    start, end = entity["start"], entity["end"]
    return {"text": example["text"][start:end], "label": entity["label"], "start": start, "end": end}


def _require_known(label: str, names: Sequence[str]) -> None:
    if label not in names:
        some = ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
        raise DataError(f"the model knows no label '{label}'", f"it knows {some}")


def _chances(logits: NDArray[np.float64], multiple: bool) -> NDArray[np.float64]:
    if multiple:
        return 1 / (1 + np.exp(-logits))
    apart = np.exp(logits - logits.max())
    chances: NDArray[np.float64] = apart / apart.sum()
    return chances


def _log_odds(chance: float) -> float:
    chance = min(max(chance, _LEAST), 1 - _LEAST)
    return math.log(chance / (1 - chance))


def _one_against_all(logits: Tensor, number: int, multiple: bool) -> Tensor:
    """[n, L] → [n]: ln(p ÷ (1 − p)) of label `number`."""
    own = logits[:, number]
    if multiple:
        return own
    others = [at for at in range(logits.shape[1]) if at != number]
    return own - logits[:, others].logsumexp(1)
