"""Which keys `tutti tune` may try values of, and why not the others."""

from __future__ import annotations

from tutti.config.describe import field_at, section_at
from tutti.config.problems import dotted
from tutti.config.schema import Config
from tutti.config.suggest import suggest_key

_MEASURES = "it decides what is measured, so trials could not be compared"
_SPEED = "it changes what a run costs, not what it learns"
_LUCK = "a lucky seed says nothing of the next run"
_ONE_MODEL = "a search is of one model that is trained by itself"
#: Keys, and sections with all that is in them, that are no settings to search among, and why.
_FIXED = {
    **dict.fromkeys(("name", "runs", "search", "trackers"), "it does not change what a run learns"),
    **dict.fromkeys(("data", "task", "evaluate", "remember.source"), _MEASURES),
    **dict.fromkeys(("replicas", "each", "layout", "memory", "checkpoint", "watch", "alerts"), _SPEED),
    **dict.fromkeys(("train.micro_batch", "train.compile"), _SPEED),
    **dict.fromkeys(
        (f"sync.{key}" for key in ("implementation", "topology", "bucket_mb", "membership", "min_replicas")),
        _SPEED,
    ),
    **dict.fromkeys(("sync.shares", "sync.then"), _SPEED),
    **dict.fromkeys(("train.seed", "model.seed"), _LUCK),
    **dict.fromkeys(("groups", "cooperate"), _ONE_MODEL),
    "train.patience": "it ends a run early, which is the search's own business",
}
#: These all the same; the second, where examples and not tokens are scored.
_FREE, _FREE_WITH_METRIC = ("task.balance",), ("data.sequence", "data.vocabulary")


def why_fixed(key: str, config: Config) -> str | None:
    """Why the dotted `key` is no setting to search among; None: it is one."""
    free = _FREE + (_FREE_WITH_METRIC if config.task.asks else ())
    if key in free:
        return None
    return _FIXED.get(key) or _FIXED.get(key.partition(".")[0])


def guess_key(path: tuple[str, ...]) -> tuple[str, ...]:
    """Dotted keys that an unknown one at `path` may have meant."""
    *section, last = path
    if section and section_at(tuple(section)) is None:
        found = [(guess, last) for guess in suggest_key((), section[0])]
        return tuple(dotted(one) for one in found if field_at(one) is not None)
    return tuple(
        guess if "." in guess else dotted((*section, guess)) for guess in suggest_key(tuple(section), last)
    )
