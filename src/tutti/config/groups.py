"""Several groups in one file: the configuration of each, and what is wrong with it, said at its place.

What the file says holds for every group. An item of the list `groups` says what one of them has of its own: a mapping
changes the keys that it names, anything else takes the place of the section (`model: 4M`).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError

from tutti.config.describe import field_at, section_of, short_form
from tutti.config.problems import KeyPath, Origin, Problem, SourceMap, dotted
from tutti.config.read import Document
from tutti.config.schema import Config
from tutti.config.suggest import nearest
from tutti.config.validate import validate
from tutti.core.errors import ConfigError

#: What a group may have of its own.
_OWN = ("model", "train", "replicas", "layout", "memory", "sync", "checkpoint", "evaluate", "watch")
_ORIGINS = ("size", "path", "config", "python")


def group_configs(config: Config) -> list[Config]:
    """The configuration of each group of `config`: that of an ordinary run in `runs/NAME/groups/0`, `1`, …

    Raises:
        ConfigError: the groups cannot cooperate; says why.
    """
    base, configs = config.model_dump(), []
    for number, own in enumerate(_overrides(config)):
        raw = _merge(base, own) | {
            "groups": 1,
            "name": str(number),
            "runs": f"{config.runs}/{config.name}/groups",
        }
        if raw["model"]["seed"] is None:
            raw["model"]["seed"] = raw["train"]["seed"] + number
        if raw["cooperate"]["max_age"] == "auto":
            raw["cooperate"]["max_age"] = 2 * count_groups(config) * config.cooperate.every
        try:
            configs.append(Config.model_validate(raw))
        except ValidationError as error:
            raise ConfigError(
                f"groups[{number}]: {error.errors()[0]['msg']}", "see `tutti schema`"
            ) from error
    for number, group in enumerate(configs):
        reason = _why_not(group, configs[0])
        if reason is not None:
            raise ConfigError(f"group {number} cannot cooperate: {reason}", "docs/how-to/cooperate.md")
    return configs


def count_groups(config: Config) -> int:
    """How many groups there are."""
    return config.groups if isinstance(config.groups, int) else len(config.groups)


def check_groups(document: Document, config: Config) -> list[Problem]:
    """What is wrong with the groups of `config`, as `document` (without short forms) says it."""
    problems: list[Problem] = []
    if isinstance(config.groups, list):
        if len(config.groups) < 2:
            said = "a list of groups has an item for each, of two or more; for one, leave `groups` out"
            return [Problem(document.sources.value(("groups",)), "groups", said)]
        for number, own in enumerate(config.groups):
            problems += _problems_of(document, number, own)
    if problems or count_groups(config) == 1:
        return problems
    try:
        group_configs(config)
    except ConfigError as error:
        problems.append(Problem(document.sources.key(("groups",)), "groups", error.problem))
    return problems


def _problems_of(document: Document, number: int, own: dict[str, Any]) -> list[Problem]:
    where = document.sources
    problems = []
    for key in [key for key in own if key not in _OWN]:
        known = field_at((key,)) is not None
        problems.append(
            Problem(
                where.key(("groups", number, key)),
                dotted(("groups", number, key)),
                f"holds for all groups together, or for none; a group may have its own {', '.join(_OWN)}"
                if known
                else "unknown key",
                () if known else tuple(nearest(key, _OWN)),
            )
        )
    if problems:
        return problems
    raw = {key: value for key, value in document.value.items() if key not in ("groups", "cooperate")}
    sources = SourceMap(where.file, dict(where.keys), dict(where.values))
    for path in _paths(own):
        sources.put(path, where.key(("groups", number, *path)), where.value(("groups", number, *path)))
    found = validate(_merge(raw, own), sources, (), Config)
    written = set(_origins(sources, own))
    return [
        Problem(
            problem.origin,
            ".".join(filter(None, [f"groups[{number}]", problem.path])),
            problem.reason,
            problem.suggestions,
        )
        for problem in (found if isinstance(found, list) else [])
        if problem.origin in written or problem.path == ""
    ]


def _paths(own: dict[str, Any], inside: KeyPath = ()) -> Iterator[KeyPath]:
    for key, value in own.items():
        yield (*inside, key)
        if isinstance(value, dict):
            yield from _paths(value, (*inside, key))


def _origins(sources: SourceMap, own: dict[str, Any]) -> Iterator[Origin]:
    for path in _paths(own):
        yield from (sources.key(path), sources.value(path))


def _overrides(config: Config) -> list[dict[str, Any]]:
    return [{}] * config.groups if isinstance(config.groups, int) else config.groups


def _merge(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    merged = copy.deepcopy(base)
    for key, value in own.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            if key == "model" and any(name in value for name in _ORIGINS):  # one takes the place of another
                merged[key] = {name: v for name, v in merged[key].items() if name not in _ORIGINS}
            merged[key] |= copy.deepcopy(value)
        else:
            field = field_at((key,))
            merged[key] = short_form(field)(value) if field is not None and section_of(field) else value
    if isinstance(merged.get("model"), dict):
        merged["model"].setdefault("seed", None)
    return merged


def _why_not(group: Config, first: Config) -> str | None:
    """Why `group` cannot cooperate with the `first`; None: it can."""
    if group.model.python is not None:
        return "a module of your own predicts no tokens; groups are of language models"
    if group.task.labelled:
        return f"task {group.task.kind} predicts no tokens; groups are of language models"
    if group.task.masked:
        return "what is hidden from one model another sees; groups are of language models that continue texts"
    if group.memory.budget is not None:
        return (
            "memory.budget does not count what is kept of other groups; leave it out, and set memory.recompute and "
            "memory.offload instead"
        )
    split = [name for name in ("pipeline", "tensor", "context") if getattr(group.layout, name) > 1]
    if split:
        return (
            f"layout.{split[0]} splits samples or logits over ranks, and what others predict is compared with whole "
            "logits of whole samples; use shard"
        )
    if group.cooperate.exchange == "weights":
        return None
    for key in ("batch", "seed"):
        mine, theirs = getattr(group.train, key), getattr(first.train, key)
        if mine != theirs:
            return (
                f"train.{key} is {mine}, that of group 0 {theirs}; with cooperate.exchange: predictions groups take "
                "the same samples in rotated order; use exchange: weights, or leave it the same"
            )
    return None
