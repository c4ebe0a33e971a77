"""From an example to explanations: what the model claims of it, and the worth of each word."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tutti.explain.ablation import Ask, Weighed, by_ablation
from tutti.explain.claims import claims_of
from tutti.explain.gradients import by_gradients, has_gradients
from tutti.explain.words import Reading, hiding_token
from tutti.package import Asker
from tutti.tasks.task import Example

#: `auto`: gradients where there are any.
Method = Literal["auto", "gradients", "ablation"]


@dataclass(frozen=True)
class Explanation:
    """Why the model claims `label` (of `entity`, where it found one). In log-odds: `log_odds`, of the text; `without`,
    with every word hidden; `weights`, what each of `reading.words` is worth. `gap`: see `gradients`."""

    label: str
    entity: dict[str, Any] | None
    reading: Reading
    log_odds: float
    without: float
    weights: tuple[float, ...]
    method: Literal["gradients", "ablation"]
    gap: float | None

    @property
    def chance(self) -> float:
        """Of the claim, from 0 to 1."""
        return 1 / (1 + math.exp(-self.log_odds))

    def told(self) -> dict[str, Any]:
        """As JSON has it."""
        words = [
            {"text": word.text, "start": word.start, "end": word.end}
            | ({"part": word.part} if len(self.reading.parts) > 1 else {})
            | {"attribution": round(weight, 4)}
            for word, weight in zip(self.reading.words, self.weights, strict=True)
        ]
        told: dict[str, Any] = {"label": self.label, "chance": round(self.chance, 4)}
        if self.entity is not None:
            told["entity"] = self.entity
        told |= {
            "log_odds": round(self.log_odds, 4),
            "log_odds_without_words": round(self.without, 4),
            "method": self.method,
        }
        if self.gap is not None:
            told["gap"] = round(self.gap, 4)
        return told | self.reading.parts | {"words": words}


def explain(
    asker: Asker,
    example: Example,
    readings: Sequence[Reading],
    *,
    label: str | None = None,
    method: Method = "auto",
    ask: Ask | None = None,
) -> list[Explanation]:
    """Why the model says what it says of `example`, read as `readings` (`readings_of`); of `label`, whether it says so
    or not. `ask`: who is asked, in place of the model itself.

    Raises:
        DataError: the model knows no such label.
        ModelError: it has no gradients.
    """
    ask = ask or asker.answer
    multiple = asker.task.config.multiple
    hidden = hiding_token(asker.encoder)
    rows = [reading.row for reading in readings]
    claims = claims_of(asker, example, rows, ask(rows), label)
    gradients = method == "gradients" or (method == "auto" and has_gradients(asker))
    found = []
    for number, reading in enumerate(readings):
        own = [claim for claim in claims if claim.row == number]
        if not own:
            continue
        weighed: list[tuple[Weighed, float | None]]
        if gradients:
            weighed = [*by_gradients(asker, reading, hidden, own, multiple=multiple)]
        else:
            weighed = [(one, None) for one in by_ablation(ask, reading, hidden, own, multiple=multiple)]
        found += [
            Explanation(
                claim.label,
                claim.entity,
                reading,
                one.whole,
                one.nothing,
                tuple(one.weights),
                "gradients" if gradients else "ablation",
                gap,
            )
            for claim, (one, gap) in zip(own, weighed, strict=True)
        ]
    return found
