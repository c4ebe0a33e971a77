"""What might be asked of a model of each task: to try the service out, and to measure how fast it is."""

from __future__ import annotations

from typing import Any

#: As a request has it in `input`.
_TRIALS: dict[str, Any] = {
    "classify": "My card is lost.",
    "relate": "The <e1>child</e1> was wrapped into the <e2>cradle</e2>.",
    "tag": "Anna Smith visits New York.",
    "embed": "My card is lost.",
    "recommend": [],
    "answer": {"question": "Who came?", "context": "Anna came at noon."},
}


def trial_of(kind: str) -> Any:
    """Something small."""
    return _TRIALS[kind]


def longer_trial(kind: str, times: int, names: tuple[str, ...]) -> Any:
    """A record that is about so many `times` as long; `names`: of the labels."""
    more = " And it was late in the day." * (times - 1)
    if kind == "recommend":
        return {"items": list(names[: 4 * times])}
    if kind == "answer":
        return _TRIALS[kind] | {"context": _TRIALS[kind]["context"] + more}
    return _TRIALS[kind] + more
