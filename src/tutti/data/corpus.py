"""From a configuration to the documents that count: cleaned, and each in its part. Still without any text."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tutti.config.data import DataConfig
from tutti.config.task import RememberConfig
from tutti.core.errors import DataError
from tutti.data import alike
from tutti.data.listing import SourceFile, list_sources
from tutti.data.manifest import Counts, StepReport, left_out
from tutti.data.mixture import times_to_replay, times_to_take
from tutti.data.reading import TextSettings
from tutti.data.scan import Catalogue, contained, scan, unique
from tutti.data.segments import PlanOfPart, plan_parts
from tutti.data.settings import FORMAT
from tutti.data.split import assign, choose_split
from tutti.data.staging import stage, steps_of_units

_ENDS_ARE_KEPT = (
    "data.clean.decontaminate compares with clean.against alone: what is kept is the end of every document "
    "(data.split: tail)"
)


class Replay(NamedTuple):
    """Text that the model knew: the entries of the list of sources from `first` on, to be a `share` of the whole."""

    first: int
    share: float


@dataclass(frozen=True)
class Sources:
    """The files of `source` (behind them those of `remember.source`) and, where given, of `validation_source`."""

    main: list[SourceFile]
    validation: list[SourceFile]
    replay: Replay | None = None
    #: What `clean.against` names.
    against: tuple[SourceFile, ...] = ()

    @classmethod
    def of(cls, config: DataConfig, remember: RememberConfig | None = None) -> Sources:
        """List the files, those of `remember` behind the others; raises DataError as `list_sources`."""
        given, entries = config.validation_source, _listed(config.source)
        replay = None
        if remember is not None and remember.source is not None and remember.replay:
            replay = Replay(len(entries), remember.replay)
            entries = [*entries, *_listed(remember.source)]
        against = config.clean.against
        return cls(
            list_sources(config, entries),
            list_sources(config, given) if given is not None else [],
            replay,
            tuple(list_sources(config, against)) if against else (),
        )

    def key(self, config: DataConfig, tokenizer: str) -> str | None:
        """Names files, sizes, times and all settings: if nothing of it changed, nothing need be read.

        None when a file system does not say when a file changed. `tokenizer` names the tokenizer's content.
        """
        listed = [
            [(file.name, file.kind, file.size, file.stamp, file.entry * weighed) for file in part]
            for weighed, part in (
                (self._entries_matter(config), self.main),
                (False, self.validation),
                (False, self.against),
            )
        ]
        if any(file.stamp is None for file in [*self.main, *self.validation, *self.against]):
            return None
        fields = config.model_dump(
            mode="json",
            exclude={"source", "validation_source", "extra_source", "sequence", "cache", "remote_cache"},
        )
        named = [FORMAT, listed, config.validation_source is None, fields, tokenizer]
        return digest([*named, *(self.replay or ())])

    def _entries_matter(self, config: DataConfig) -> bool:
        return config.weights is not None or self.replay is not None


def _listed(entries: str | list[str]) -> list[str]:
    return [entries] if isinstance(entries, str) else entries


@dataclass(frozen=True)
class Corpus:
    """`key` names the content of the text and how it is divided, wherever it came from."""

    files: list[SourceFile]
    plan: dict[str, PlanOfPart]
    counts: Counts
    choices: list[str]
    key: str
    steps: list[StepReport]

    @property
    def train_bytes(self) -> int:
        """UTF-8 bytes of the text to train on."""
        return int(self.plan["train"].segments["bytes"].sum())


def read_corpus(
    config: DataConfig,
    sources: Sources,
    settings: TextSettings,
    staging: Path,
    *,
    workers: int,
    say: Callable[[str], None],
) -> Corpus:
    """Read everything once, clean it, leave out what is double, and divide the rest. What has to be made ready first
    lies in `staging`, which the plan refers to.

    Raises:
        DataError: bad text (see `reading`), no text at all, or a part that was asked for and stays empty.
        RunError: `staging` cannot be written.
    """
    files = len(sources.main) + len(sources.validation)
    say(f"reading {files} file{'' if files == 1 else 's'}")
    clean = config.clean.settled()
    parts_read = []
    for name, of_part in (("source", sources.main), ("validation_source", sources.validation)):
        items = stage(of_part, settings, clean, staging / name, workers=workers, say=say)
        catalogue = scan(items, settings, say)
        if not catalogue.usable.any() and of_part:
            raise _no_text(f"data.{name}", of_part, catalogue)
        parts_read.append(catalogue)
    main, held_out = parts_read
    merged = merge(main, held_out)
    kept = np.concatenate([_once(config, main), _once(config, held_out)])
    duplicates = int((merged.usable & ~kept).sum())
    steps = steps_of_units(merged.units)
    if steps:
        steps.append(alike.duplicates(merged, merged.usable, merged.usable & ~kept))
    shared = np.zeros(len(kept), dtype=bool)
    shared[: len(main.rows)] = kept[: len(main.rows)] & contained(
        main.rows["hash"], held_out.rows["hash"][held_out.usable]
    )
    kept &= ~shared
    if clean.near_duplicates:
        say("looking for near duplicates")
        doubles, report = alike.near_duplicates(clean, merged, kept, len(main.rows))
        steps.append(report)
        kept &= ~doubles
    former = np.zeros(len(kept), dtype=bool)
    if sources.replay is not None:
        former[: len(main.rows)] = main.entries() >= sources.replay.first
    parts, choices = _divide(config, merged, kept, former, len(main.rows) if sources.validation else None)
    if clean.decontaminate:
        trained, judged = (
            (kept & (parts == 0), kept & (parts != 0)) if parts is not None else (kept, ~kept & False)
        )
        if parts is None and (config.validation or config.test):
            choices.append(_ENDS_ARE_KEPT)
        dropped, report = alike.contaminated(config, merged, trained, judged, settings, staging, workers, say)
        steps.append(report)
        kept &= ~dropped
    times = None
    if config.weights is not None:
        names = [config.source] if isinstance(config.source, str) else config.source
        trained = kept & (parts == 0) if parts is not None else kept
        rows = merged.rows
        times, said = times_to_take(
            merged.entries(), rows["bytes"], rows["hash"], trained, config.weights, names
        )
        choices += said
    if sources.replay is not None:
        assert parts is not None, "_divide refuses the ends of documents"
        rows = merged.rows
        times, words = times_to_replay(
            former, rows["bytes"], rows["hash"], kept & (parts == 0), sources.replay.share
        )
        choices.append(words)
    plan = plan_parts(merged, kept, parts, (config.validation, config.test), times)
    _require_parts(config, plan, with_source=bool(sources.validation))
    counts = Counts(
        files=files,
        documents=int(merged.usable.sum()),
        empty=merged.empty,
        duplicates=duplicates,
        in_validation=int(shared.sum()),
        unreadable=merged.skipped.number,
        skipped=tuple(merged.skipped.named),
    )
    say(f"{counts.documents:,} documents, {merged.bytes / 1e6:.1f} MB; {left_out(counts, steps)}")
    assignment = b"tail" if parts is None else parts[kept].tobytes()
    content = hashlib.sha256(np.ascontiguousarray(merged.rows["hash"][kept]).tobytes() + assignment)
    if times is not None:
        content.update(times[kept].tobytes())
    shares = [config.validation, config.test] if parts is None else []
    # Without paths: the same text, moved, is the same.
    told = [FORMAT, content.hexdigest(), shares, counts.model_dump(mode="json", exclude={"skipped"})]
    if steps:
        told.append([step.model_dump(mode="json", exclude={"examples"}) for step in steps])
    return Corpus(merged.files, plan, counts, choices, digest(told), steps)


def _no_text(name: str, files: list[SourceFile], catalogue: Catalogue) -> DataError:
    steps = steps_of_units(catalogue.units)
    left = f"; {catalogue.skipped.number:,} were skipped" if catalogue.skipped.number else ""
    if steps and (most := max(steps, key=lambda step: step.dropped)).dropped:
        left += f"; the step '{most.step}' left out {most.dropped} documents"
    return DataError(f"there is no text in {name} ({len(files)} files{left})", "name text that has some")


def digest(value: object) -> str:
    """A short name for a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]


def _once(config: DataConfig, catalogue: Catalogue) -> NDArray[np.bool_]:
    """[documents] → usable ones, each content once where that is asked for."""
    kept = catalogue.usable.copy()
    if config.deduplicate:
        usable = np.flatnonzero(kept)
        kept[usable] = unique(catalogue.rows["hash"][usable])
    return kept


def merge(main: Catalogue, held_out: Catalogue) -> Catalogue:
    """One catalogue, `held_out` behind `main`."""
    skipped = main.skipped.copy()
    skipped.extend(held_out.skipped.number, held_out.skipped.named)
    behind = held_out.rows.copy()
    behind["file"] += len(main.files)
    return Catalogue(
        main.files + held_out.files,
        np.concatenate([main.rows, behind]),
        main.cuts | {row + len(main.rows): cuts for row, cuts in held_out.cuts.items()},
        skipped,
        main.empty + held_out.empty,
        np.concatenate([main.usable, held_out.usable]),
        main.units + held_out.units,
    )


def _divide(
    config: DataConfig,
    catalogue: Catalogue,
    kept: NDArray[np.bool_],
    former: NDArray[np.bool_],
    first_held_out: int | None,
) -> tuple[NDArray[np.int8] | None, list[str]]:
    """The part of each document (None: the tail of each), and the choices made. `former`: only trained on."""
    parts = np.zeros(len(kept), dtype=np.int8)
    if first_held_out is not None:
        parts[first_held_out:] = 1
        return parts, []
    if not config.validation and not config.test:
        return parts, []
    new = kept & ~former
    way, choice = choose_split(config, int(new.sum()))
    choices = [choice] if choice else []
    if way == "tail" and former.any():
        raise DataError(
            "with remember.source whole documents are kept aside, and data.source has too few of them, or "
            "data.split says tail",
            "give data.validation_source, or set data.split: document",
        )
    if way == "tail":
        return None, choices
    parts[new] = assign(catalogue.rows[new], config.validation, config.test)
    return parts, choices


def _require_parts(config: DataConfig, plan: dict[str, PlanOfPart], *, with_source: bool) -> None:
    if not len(plan["train"].segments):
        raise DataError(
            "nothing is left to train on", "data.source holds nothing that data.validation_source has not"
        )
    for name, share in (("validation", config.validation), ("test", config.test)):
        if share and not with_source and not len(plan[name].segments):
            raise DataError(
                f"data.{name} is {share}, but no text falls to the {name} part",
                f"give more text, set data.split: tail, or data.{name}: 0.0",
            )
