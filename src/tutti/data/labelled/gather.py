"""From files to the examples that count: read, checked, without duplicates, each in its part. Still without tokens."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from tutti.config.data import DataConfig
from tutti.config.task import RememberConfig
from tutti.core.errors import DataError
from tutti.data.labelled.catalogue import read_catalogue
from tutti.data.labelled.readable import readable
from tutti.data.listing import list_sources
from tutti.data.reading import check_encoding
from tutti.data.settings import FORMATS
from tutti.data.sources.records import read_records
from tutti.tasks.task import EmptyText, Example, Labels, TextTask

#: From so many times more examples of the commonest label than of the rarest, the user is told.
_UNBALANCED = 10
#: The part with examples of what the model knew.
FORMER = "former"
#: Of them, at most: what each weight means to them hardly changes with more.
_FORMER_MOST = 512
#: White space to `str.split`, so it is in no text that was split.
_BETWEEN = "\x1f"


@dataclass
class Gathered:
    """Examples by part, where each of them stands (`origins`), and what was found on the way. `described`: texts about
    labels, by their names."""

    parts: dict[str, list[Example]]
    origins: dict[str, list[str]]
    labels: Labels
    counts: dict[str, int]
    choices: list[str] = field(default_factory=list)
    described: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Found:
    """`text`: what it is known by, among others."""

    example: Example
    origin: str
    text: str


def gather(config: DataConfig, task: TextTask, remember: RememberConfig | None = None) -> Gathered:
    """Everything that `config` names, as examples of `task`; and of what `remember` names, some to train on, and some
    by which to tell what the model knew (part `former`).

    Raises:
        DataError: something cannot be read or used; says which file, which line, and what to do.
    """
    check_encoding(config.encoding)
    counts: Counter[str] = Counter()
    given = {"train": config.source, "validation": config.validation_source, "test": config.test_source}
    found = {
        part: list(_read(config, task, source, counts))
        for part, source in given.items()
        if source is not None
    }
    if not found["train"]:
        raise DataError("data.source holds no examples", "check that these are the right files")
    choices: list[str] = []
    if config.deduplicate and task.distinct:
        found = _without_duplicates(task, found, counts)
        if not found["train"]:  # nothing else takes the last of them
            judged = " and ".join(
                f"data.{part}_source ({_named(source)})"
                for part, source in given.items()
                if source is not None and part != "train"
            )
            raise DataError(
                f"all {counts['leaked']:,} examples of data.source ({_named(config.source)}) have the text of one in "
                f"{judged} and are left out",
                "give other examples to be judged by, or none (data.validation keeps some aside); data.deduplicate: "
                "false learns from those that it is judged by",
            )
    found |= _split_off(config, task, found, choices)
    if config.extra_source is not None:
        extra = _read(config, task, config.extra_source, counts)
        found["train"] = found["train"] + _not_among(found, extra, counts)
    if remember is not None and remember.source is not None:
        found |= _remembered(config, task, remember, found, counts, choices)
    described = read_catalogue(config, task.config.catalogue) if task.config.catalogue else {}
    labels = _labels(task, found, described)
    choices += _remarks(task, labels, counts)
    parts = {part: [one.example for one in some] for part, some in found.items() if some}
    origins = {part: [one.origin for one in found[part]] for part in parts}
    return Gathered(parts, origins, labels, dict(counts), choices, described)


def _named(source: str | Sequence[str]) -> str:
    return source if isinstance(source, str) else ", ".join(source)


def _read(
    config: DataConfig, task: TextTask, source: str | Sequence[str], counts: Counter[str]
) -> Iterator[_Found]:
    for file in list_sources(config, source, tuple(FORMATS)):
        counts["files"] += 1
        for record in read_records(file, config.encoding):
            counts["records"] += 1
            decoded = readable(record, config.on_bad_encoding)
            if decoded is None:
                counts["undecodable"] += 1
                continue
            try:
                example = task.example(decoded)
            except EmptyText as error:
                if config.on_empty == "fail":
                    hint = f"{error.hint}, or leave such out: data.on_empty: skip"
                    raise EmptyText(error.problem, hint) from error
                counts["empty"] += 1
                continue
            yield _Found(example, record.origin, known_by(task, example))


def known_by(task: TextTask, example: Example) -> str:
    """What identifies `example`, among others of `task`: its texts, but for how much white space is in them."""
    return _BETWEEN.join(" ".join(text.split()) for text in task.texts(example))


def _without_duplicates(
    task: TextTask, found: dict[str, list[_Found]], counts: Counter[str]
) -> dict[str, list[_Found]]:
    """Each example once in its part; and none to train on whose text is to be judged by."""
    judged = {one.text for part, some in found.items() if part != "train" for one in some}
    kept: dict[str, list[_Found]] = {}
    for part, some in found.items():
        seen: dict[str, set[tuple[str, ...]]] = {}
        kept[part] = []
        for one in some:
            names = tuple(task.label_names(one.example))
            if one.text in seen:
                same = names in seen[one.text]
                counts["duplicates" if same else "contradictions"] += 1
                if same:
                    continue
            elif part == "train" and one.text in judged:
                counts["leaked"] += 1
                continue
            seen.setdefault(one.text, set()).add(names)
            kept[part].append(one)
    return kept


def _not_among(found: dict[str, list[_Found]], extra: Iterable[_Found], counts: Counter[str]) -> list[_Found]:
    """Those of `extra` whose text is neither to be judged by nor labelled better, each text once."""
    texts = {one.text for some in found.values() for one in some}
    kept = []
    for one in extra:
        if one.text in texts:
            counts["known"] += 1
        else:
            texts.add(one.text)
            kept.append(one)
    counts["extra"] = len(kept)
    return kept


def _split_off(
    config: DataConfig, task: TextTask, found: dict[str, list[_Found]], choices: list[str]
) -> dict[str, list[_Found]]:
    """Train without what is kept for validation and test, where these have no source of their own.

    By the hash of the text alone, so equal texts stay together; a label's only examples stay to train on, where labels
    have to be known.
    """
    shares = {
        "validation": config.validation if config.validation_source is None else 0.0,
        "test": config.test if config.test_source is None else 0.0,
    }
    if not any(shares.values()):
        return {}
    parts: dict[str, list[_Found]] = {"train": []}
    left = Counter(name for one in found["train"] for name in set(task.label_names(one.example)))
    for one in found["train"]:
        place = _place(one.text)
        part = "train"
        if place < shares["validation"]:
            part = "validation"
        elif place < shares["validation"] + shares["test"]:
            part = "test"
        names = set(task.label_names(one.example))
        if part != "train" and task.closed and any(left[name] < 2 for name in names):
            part = "train"
        if part != "train":
            left.subtract(names)
        parts.setdefault(part, []).append(one)
    if found["train"] and not parts["train"]:
        aside = " and ".join(f"data.{part} = {share:g}" for part, share in shares.items() if share)
        raise DataError(
            f"{aside} keeps every one of {len(found['train']):,} examples aside, and none is left to train on",
            "give more examples, keep fewer aside, or name data.validation_source",
        )
    for part, share in shares.items():
        if share:
            choices.append(
                f"{len(parts.get(part, ()))} of {len(found['train'])} examples are kept for {part}, by the hash of "
                f"their text (data.{part} = {share:g})"
            )
    return parts


def _place(text: str) -> float:
    """Where `text` stands between 0 and 1, by the hash of its words."""
    words = " ".join(text.split()).encode()
    return int.from_bytes(hashlib.blake2b(words, digest_size=8).digest(), "big") / 2.0**64


def _remembered(
    config: DataConfig,
    task: TextTask,
    remember: RememberConfig,
    found: dict[str, list[_Found]],
    counts: Counter[str],
    choices: list[str],
) -> dict[str, list[_Found]]:
    """Training examples with some of what the model knew among them, and those by which its weights are weighed.

    Taken in the order of the hash of their text, so that more of them hold the fewer.
    """
    assert remember.source is not None
    known = {one.text for some in found.values() for one in some}
    former = {one.text: one for one in _read(config, task, remember.source, counts) if one.text not in known}
    if not former:
        raise DataError(
            "remember.source holds no example that is not among those to learn or to be judged by",
            "name the examples that the model was trained on before",
        )
    order = sorted(former.values(), key=lambda one: _place(one.text))
    new = found["train"]
    wanted = round(len(new) * remember.replay / (1 - remember.replay))
    parts = {"train": new + order[:wanted]}
    if wanted:
        taken = len(order[:wanted])
        less = f", all that there are: remember.replay asks for {wanted:,}" if taken < wanted else ""
        choices.append(
            f"{taken:,} of {len(order):,} former examples are learned again among {len(new):,} new ones{less}"
        )
    if remember.ewc:
        parts[FORMER] = order[:_FORMER_MOST]
    return parts


def _labels(task: TextTask, found: dict[str, list[_Found]], described: Iterable[str]) -> Labels:
    counted = Counter(dict.fromkeys(described, 0))
    counted.update(name for one in found["train"] for name in task.label_names(one.example))
    counted.update({name: 0 for one in found.get(FORMER, ()) for name in task.label_names(one.example)})
    labels = task.labels(counted)
    if not task.closed:
        return labels
    known = set(labels.names)
    for part in ("validation", "test"):
        for one in found.get(part, ()):
            for name in task.label_names(one.example):
                if name not in known:
                    raise DataError(
                        f"{one.origin} ({part}) has the label '{name}', which no training example has",
                        "give examples of it to train on, or leave these out",
                    )
    return labels


def _remarks(task: TextTask, labels: Labels, counts: Counter[str]) -> list[str]:
    said = []
    if labels.names:
        low, high = min(labels.counts), max(labels.counts)
        rarest = labels.names[labels.counts.index(low)]
        said.append(f"{len(labels.names)} {task.noun}, of which each has {low} to {high} {task.counted}")
        if task.kind == "classify" and high >= _UNBALANCED * max(low, 1) and not task.config.balance:
            said.append(
                f"labels are unbalanced ('{rarest}' has {low}, the commonest {high}): look at macro_f1 beside "
                f"accuracy; task.balance: true makes rare labels weigh more"
            )
    for key, words in (
        ("duplicates", "examples occur more than once and are taken once"),
        ("leaked", "examples to train on have the text of a validation or test example and are left out"),
        ("extra", "examples of data.extra_source are trained on as well"),
        ("known", "examples of data.extra_source have the text of another example and are left out"),
        ("contradictions", "examples have the same text as another one and another label; all are kept"),
        ("empty", "examples without text are left out"),
        ("undecodable", "records that do not decode are left out"),
    ):
        if counts[key]:
            said.append(f"{counts[key]:,} {words}")
    return said
