"""From a configuration to the documents that count: cleaned, and each in its part. Still without any text."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tutti.config.data import DataConfig
from tutti.core.errors import DataError
from tutti.data.listing import SourceFile, list_sources
from tutti.data.manifest import Counts, Skipped
from tutti.data.reading import TextSettings
from tutti.data.scan import Catalogue, contained, scan, unique
from tutti.data.segments import PlanOfPart, plan_parts
from tutti.data.settings import FORMAT
from tutti.data.split import assign, choose_split


@dataclass(frozen=True)
class Sources:
    """The files of `source` and, where given, of `validation_source`."""

    main: list[SourceFile]
    validation: list[SourceFile]

    @classmethod
    def of(cls, config: DataConfig) -> Sources:
        """List the files; raises DataError as `list_sources`."""
        given = config.validation_source
        return cls(
            list_sources(config, config.source), list_sources(config, given) if given is not None else []
        )

    def key(self, config: DataConfig, tokenizer: str) -> str | None:
        """Names files, sizes, times and all settings: if nothing of it changed, nothing need be read.

        None when a file system does not say when a file changed. `tokenizer` names the tokenizer's content.
        """
        listed = [
            [(file.name, file.kind, file.size, file.stamp) for file in part]
            for part in (self.main, self.validation)
        ]
        if any(file.stamp is None for file in [*self.main, *self.validation]):
            return None
        fields = config.model_dump(
            mode="json", exclude={"source", "validation_source", "extra_source", "sequence", "cache"}
        )
        return digest([FORMAT, listed, config.validation_source is None, fields, tokenizer])


@dataclass(frozen=True)
class Corpus:
    """`key` names the content of the text and how it is divided, wherever it came from."""

    files: list[SourceFile]
    plan: dict[str, PlanOfPart]
    counts: Counts
    choices: list[str]
    key: str

    @property
    def train_bytes(self) -> int:
        """UTF-8 bytes of the text to train on."""
        return int(self.plan["train"].segments["bytes"].sum())


def read_corpus(
    config: DataConfig, sources: Sources, settings: TextSettings, say: Callable[[str], None]
) -> Corpus:
    """Read everything once, leave out what is double, and divide the rest.

    Raises:
        DataError: bad text (see `reading`), no text at all, or a part that was asked for and stays empty.
    """
    files = len(sources.main) + len(sources.validation)
    say(f"reading {files} file{'' if files == 1 else 's'}")
    main = scan(sources.main, settings, say)
    held_out = scan(sources.validation, settings, say)
    for catalogue, name in ((main, "data.source"), (held_out, "data.validation_source")):
        if not len(catalogue.rows) and (name == "data.source" or sources.validation):
            left = f"; {len(catalogue.skipped)} were skipped" if catalogue.skipped else ""
            raise DataError(
                f"there is no text in {name} ({len(catalogue.files)} files{left})", "name text that has some"
            )
    kept_main, kept_held_out = _once(config, main), _once(config, held_out)
    duplicates = int((~kept_main).sum() + (~kept_held_out).sum())
    shared = kept_main & contained(main.rows["hash"], held_out.rows["hash"])
    kept_main &= ~shared
    merged = _merge(main, held_out)
    kept = np.concatenate([kept_main, kept_held_out])
    parts, choices = _divide(config, merged, kept, len(main.rows) if sources.validation else None)
    plan = plan_parts(merged, kept, parts, (config.validation, config.test))
    _require_parts(config, plan, with_source=bool(sources.validation))
    counts = Counts(
        files=len(merged.files),
        documents=len(merged.rows),
        empty=merged.empty,
        duplicates=duplicates,
        in_validation=int(shared.sum()),
        skipped=tuple(Skipped(name=name, reason=reason) for name, reason in merged.skipped),
    )
    say(f"{counts.documents:,} documents, {merged.bytes / 1e6:.1f} MB; {_left_out(counts)}")
    assignment = b"tail" if parts is None else parts[kept].tobytes()
    content = hashlib.sha256(
        np.ascontiguousarray(merged.rows["hash"][kept]).tobytes() + assignment
    ).hexdigest()
    shares = [config.validation, config.test] if parts is None else []
    return Corpus(
        merged.files, plan, counts, choices, digest([FORMAT, content, shares, counts.model_dump(mode="json")])
    )


def digest(value: object) -> str:
    """A short name for a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]


def _once(config: DataConfig, catalogue: Catalogue) -> NDArray[np.bool_]:
    return unique(catalogue.rows["hash"]) if config.deduplicate else np.ones(len(catalogue.rows), dtype=bool)


def _merge(main: Catalogue, held_out: Catalogue) -> Catalogue:
    """One catalogue, `held_out` behind `main`."""
    behind = held_out.rows.copy()
    behind["file"] += len(main.files)
    return Catalogue(
        main.files + held_out.files,
        np.concatenate([main.rows, behind]),
        main.cuts | {row + len(main.rows): cuts for row, cuts in held_out.cuts.items()},
        main.skipped + held_out.skipped,
        main.empty + held_out.empty,
    )


def _divide(
    config: DataConfig, catalogue: Catalogue, kept: NDArray[np.bool_], first_held_out: int | None
) -> tuple[NDArray[np.int8] | None, list[str]]:
    """The part of each document (None: the tail of each), and the choices made."""
    parts = np.zeros(len(kept), dtype=np.int8)
    if first_held_out is not None:
        parts[first_held_out:] = 1
        return parts, []
    if not config.validation and not config.test:
        return parts, []
    way, choice = choose_split(config, int(kept.sum()))
    choices = [choice] if choice else []
    if way == "tail":
        return None, choices
    parts[kept] = assign(catalogue.rows[kept], config.validation, config.test)
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


def _left_out(counts: Counts) -> str:
    left = [
        f"{number:,} {what}"
        for number, what in (
            (counts.duplicates, "duplicates"),
            (counts.in_validation, "also in validation"),
            (counts.empty, "empty"),
            (len(counts.skipped), "unreadable"),
        )
        if number
    ]
    return f"left out: {', '.join(left)}" if left else "nothing left out"
