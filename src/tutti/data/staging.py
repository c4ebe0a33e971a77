"""Text that has to be parsed or cleaned first is made ready once: documents side by side in files that can be read
anywhere, with a row for each.

Work is cut into units (a stretch of a large file, or several small files), which processes share out. A unit is
finished when its record (`NAME.json`, written last) is there; one that a killed predecessor finished is taken as it is,
where the files have not changed. What was made ready is removed when the text is tokenized.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError

from tutti.config.clean import CleanConfig
from tutti.core.errors import DataError
from tutti.core.files import write_json_atomically
from tutti.core.rundir import unwritable
from tutti.data.cleaning.cleaner import Cleaner, Tally, steps_of, summed
from tutti.data.cleaning.step import Step
from tutti.data.compressed import is_compressed
from tutti.data.content import halves, start_digest
from tutti.data.listing import SourceFile, UnreadableFile, reachable
from tutti.data.manifest import Skipped, StepReport
from tutti.data.near.signatures import band_keys, sign
from tutti.data.processes import share_out
from tutti.data.reading import BadText, TextSettings
from tutti.data.settings import BATCH_CHARACTERS, BYTES_WORTH_PROCESSES, UNIT_BYTES
from tutti.data.skips import Skips
from tutti.data.sources.document import Bad, Document, Stretch
from tutti.data.sources.documents import cut, documents

#: `part`: which stretch of the unit; `number`: of the row, as `Stretch.place` takes it; the others as in `scan.ROW`.
READY = np.dtype(
    [
        ("part", "<i4"),
        ("number", "<i8"),
        ("offset", "<i8"),
        ("length", "<i8"),
        ("characters", "<i8"),
        ("hash", "<u8", 2),
    ]
)
_ROWS_AT_ONCE = 1 << 14
_READ = "read"


@dataclass(frozen=True)
class Unit:
    """What is made ready together. `digest`: of what it is made from and how; "": cannot be told."""

    name: str
    stretches: tuple[Stretch, ...]
    digest: str

    @property
    def size(self) -> int:
        """Bytes to read, about."""
        return sum(_size(stretch) for stretch in self.stretches)


class UnitRecord(BaseModel):
    """What a unit came to. `failed`: numbers of stretches whose file is left out. `unreadable`, `skipped`: as in
    `Counts`."""

    digest: str
    documents: int
    size: int
    empty: int
    failed: list[int]
    unreadable: int
    skipped: list[Skipped]
    steps: list[StepReport]


@dataclass(frozen=True)
class StagedUnit:
    """A unit that is ready."""

    directory: Path
    unit: Unit
    record: UnitRecord

    @property
    def text(self) -> Path:
        """Its documents, in UTF-8, one behind the other."""
        return self.directory / f"{self.unit.name}.text"

    @property
    def signatures(self) -> Path:
        """As `near.signatures.sign`."""
        return self.directory / f"{self.unit.name}.signatures.npy"

    @property
    def keys(self) -> Path:
        """As `near.signatures.band_keys`."""
        return self.directory / f"{self.unit.name}.keys.npy"

    def rows(self) -> NDArray[Any]:
        """[documents] of `READY`."""
        rows: NDArray[Any] = np.load(self.directory / f"{self.unit.name}.rows.npy")
        return rows

    def file(self) -> SourceFile:
        """Its text as a file to read segments from."""
        return SourceFile(str(self.text), "ready", self.record.size, None, explicit=False)


@dataclass(frozen=True)
class StageJob:
    """What all units share."""

    directory: Path
    settings: TextSettings
    clean: CleanConfig

    def start(self) -> Callable[[Unit], UnitRecord]:
        """As `processes.Job`."""
        steps = steps_of(self.clean)
        return lambda unit: _stage_unit(self, steps, unit)


def is_clean(clean: CleanConfig) -> bool:
    """Whether `clean`, which is settled, asks for nothing."""
    return not any(clean.model_dump(exclude={"preset", "against", "index_memory"}).values())


def stage(
    files: Sequence[SourceFile],
    settings: TextSettings,
    clean: CleanConfig,
    directory: Path,
    *,
    workers: int,
    say: Callable[[str], None],
) -> list[SourceFile | StagedUnit]:
    """What need not be made ready as it is, and in its place what was. `clean` is settled.

    Raises:
        DataError: a library is missing, or as `sources.documents` where no policy leaves it out.
        RunError: the directory cannot be written.
    """
    plan = _plan(files, settings, clean)
    units = [item for item in plan if isinstance(item, Unit)]
    if not units:
        return [item for item in plan if isinstance(item, SourceFile)]
    steps_of(clean)  # what is missing is told before work begins
    directory.mkdir(parents=True, exist_ok=True)
    done = {unit.name: record for unit in units if (record := _find_finished(directory, unit)) is not None}
    if done:
        say(f"{len(done)} of {len(units)} stretches of text were made ready before")
    pending = [unit for unit in units if unit.name not in done]
    of_pending = [stretch.file for unit in pending for stretch in unit.stretches]
    worth = sum(unit.size for unit in pending) >= BYTES_WORTH_PROCESSES and reachable(of_pending)
    processes = min(workers, len(pending)) if worth else 1
    for unit, record in share_out(StageJob(directory, settings, clean), pending, processes):
        done[unit.name] = record
        say(
            f"read {unit.name}: {record.documents:,} documents, {record.size / 1e6:.1f} MB "
            f"({len(done)} of {len(units)})"
        )
    return [StagedUnit(directory, item, done[item.name]) if isinstance(item, Unit) else item for item in plan]


def _plan(files: Sequence[SourceFile], settings: TextSettings, clean: CleanConfig) -> list[SourceFile | Unit]:
    """Files as they are, and units, in the order of `files`. It does not depend on the number of workers."""
    everything = not is_clean(clean)
    how = repr((settings, clean))
    plan: list[SourceFile | Unit] = []
    held: list[Stretch] = []
    size = 0

    def close() -> None:
        nonlocal size
        if held:
            plan.append(_unit(f"unit-{len(plan):06d}", tuple(held), how))
            held.clear()
            size = 0

    for file in files:
        plain = file.kind in ("text", "jsonl", "python") and not is_compressed(file.name)
        if plain and not everything:
            close()
            plan.append(file)
            continue
        for stretch in cut(Stretch(file), UNIT_BYTES, settings):
            if held and size + _size(stretch) > UNIT_BYTES:
                close()
            held.append(stretch)
            size += _size(stretch)
    close()
    return plan


def _unit(name: str, stretches: tuple[Stretch, ...], how: str) -> Unit:
    known = all(stretch.file.stamp is not None for stretch in stretches)
    digest = hashlib.sha256(repr((stretches, how)).encode()).hexdigest() if known else ""
    return Unit(name, stretches, digest)


def _size(stretch: Stretch) -> int:
    if stretch.file.kind == "jsonl" and stretch.stop > 0:
        return stretch.stop - stretch.start
    whole = stretch.start == 0 and stretch.stop == -1
    return max(stretch.file.size, 1) if whole else UNIT_BYTES


def _find_finished(directory: Path, unit: Unit) -> UnitRecord | None:
    """The record of an earlier attempt at the same; else None."""
    try:
        record = UnitRecord.model_validate(json.loads((directory / f"{unit.name}.json").read_text()))
    except (OSError, ValueError, ValidationError):
        return None
    text = StagedUnit(directory, unit, record).text
    same = unit.digest and record.digest == unit.digest
    return record if same and text.is_file() and text.stat().st_size == record.size else None


def _stage_unit(job: StageJob, steps: list[Step], unit: Unit) -> UnitRecord:
    try:
        return _Ready(job, steps, unit).write()
    except OSError as error:  # sources report their own errors
        raise unwritable(job.directory, error) from error


class _Ready:
    """Writes the files of one unit."""

    def __init__(self, job: StageJob, steps: list[Step], unit: Unit) -> None:
        self._job = job
        self._unit = unit
        self._cleaner = Cleaner(steps)
        self._read = Tally(_READ)
        self._blocks: list[NDArray[Any]] = []
        self._documents = 0
        self._open: list[tuple[Any, ...]] = []
        self._empty = 0
        self._failed: list[int] = []
        self._skipped = Skips()

    def write(self) -> UnitRecord:
        base = self._job.directory / self._unit.name
        with base.with_suffix(".text").open("wb") as out:
            for part, stretch in enumerate(self._unit.stretches):
                self._stretch(part, stretch, out)
            size = out.tell()
        rows = self._rows()
        np.save(base.with_suffix(".rows.npy"), rows)
        if self._job.clean.near_duplicates:
            signatures = _sign(base.with_suffix(".text"), rows)
            np.save(base.with_suffix(".signatures.npy"), signatures)
            threshold = float(self._job.clean.near_duplicates)
            np.save(base.with_suffix(".keys.npy"), band_keys(signatures, threshold))
        record = UnitRecord(
            digest=self._unit.digest,
            documents=len(rows),
            size=size,
            empty=self._empty,
            failed=self._failed,
            unreadable=self._skipped.number,
            skipped=self._skipped.named,
            steps=[self._read.report(), *self._cleaner.reports()],
        )
        write_json_atomically(base.with_suffix(".json"), record.model_dump(mode="json"))
        return record

    def _stretch(self, part: int, stretch: Stretch, out: BinaryIO) -> None:
        began, rows, seen = out.tell(), self._documents, self._read.seen
        tallies = copy.deepcopy((self._read, self._cleaner.tallies, self._empty, self._skipped))
        reason, settings = "", self._job.settings
        try:
            for found in documents(stretch, settings):
                self._read.seen += 1
                if isinstance(found, Bad):
                    self._skip(stretch.place(found.number), found.reason)
                else:
                    self._document(part, stretch, found, out)
        except BadText as error:
            if stretch.file.kind != "python" and settings.on_bad_encoding != "skip":
                raise
            reason = error.reason
        except UnreadableFile as error:
            if settings.on_bad_file != "skip":
                raise UnreadableFile(error.problem, f"{error.hint}, or set data.on_bad_file: skip") from error
            reason = "damaged" if "damaged" in error.problem else "unreadable"
        if reason:  # all of the file or nothing
            self._read, self._cleaner.tallies, self._empty, self._skipped = tallies
            self._read.seen += 1
            self._skip(stretch.file.name, reason)
            self._failed.append(part)
            out.seek(began)
            out.truncate()
            self._blocks, self._open, self._documents = [self._rows()[:rows]], [], rows
        elif self._read.seen == seen and stretch.file.explicit and (stretch.start, stretch.stop) == (0, -1):
            raise _nothing_in(stretch.file)

    def _document(self, part: int, stretch: Stretch, document: Document, out: BinaryIO) -> None:
        where = stretch.place(document.number)
        text = self._cleaner.clean(document.text, stretch.kind, where)
        if text is None:
            return
        if not text:
            self._empty += 1
            return
        data = text.encode()
        digest = halves(start_digest(data))
        self._open.append((part, document.number, out.tell(), len(data), len(text), digest))
        out.write(data)
        self._documents += 1
        if len(self._open) >= _ROWS_AT_ONCE:
            self._blocks.append(np.array(self._open, dtype=READY))
            self._open = []

    def _skip(self, where: str, reason: str) -> None:
        self._read.dropped += 1
        self._read.reasons[reason] += 1
        self._skipped.add(where, reason)

    def _rows(self) -> NDArray[Any]:
        self._blocks = [np.concatenate([*self._blocks, np.array(self._open, dtype=READY)])]
        self._open = []
        return self._blocks[0]


def _nothing_in(file: SourceFile) -> DataError:
    if file.kind == "pdf":
        return DataError(
            f"{file.name} has no text in it", "its pages may be pictures: recognise their text first (OCR)"
        )
    return DataError(f"{file.name} is empty", "name a file that holds text")


def _sign(text: Path, rows: NDArray[Any]) -> NDArray[np.uint16]:
    """Signatures of all documents, a batch at a time."""
    found = [sign([])]
    with text.open("rb") as file:
        bounds = np.searchsorted(
            np.cumsum(rows["characters"]), np.arange(0, int(rows["characters"].sum()), BATCH_CHARACTERS)
        )
        edges = np.unique([0, *bounds.tolist(), len(rows)])
        for low, high in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
            found.append(sign([file.read(int(length)).decode() for length in rows["length"][low:high]]))
    return np.concatenate(found)


def steps_of_units(units: Sequence[StagedUnit]) -> list[StepReport]:
    """What reading and cleaning did in all of `units`."""
    return summed([unit.record.steps for unit in units])
