"""Which files a `source` means: local paths, folders, globs and fsspec URLs become one ordered list.

The order is that of the list in the configuration, and inside one entry that of the sorted paths, so that
the same files always make the same token stream.
"""

from __future__ import annotations

import difflib
import glob
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

import fsspec

from tutti.config.data import DataConfig
from tutti.core.errors import DataError
from tutti.data.compressed import COMPRESSIONS, READ_ERRORS, decompressed, file_name, inner_name
from tutti.data.remote import RemoteCache, stamp_of
from tutti.data.settings import CODE, CODE_ENDINGS, ENDINGS, HUB, TEXT_FORMATS
from tutti.data.sources.hub import version_of
from tutti.data.stdlib import stdlib_files

_fsspec: Any = fsspec  # it has no types

Kind = Literal[
    "text", "jsonl", "python", "csv", "tsv", "conll", "json", "parquet", "hub", "html", "pdf", "code", "ready"
]


class UnreadableFile(DataError):
    """A whole file that cannot be read; the policy `data.on_bad_file: skip` leaves it out."""


@dataclass(frozen=True)
class SourceFile:
    """One file to read.

    `name`: a local path, a URL, or of kind `hub` the address of a data set. `kind`: `code` is text, `ready` what
    `staging` wrote. `size`: bytes, -1 where the file system
    does not say. `stamp`: changes when the content does; None where the file system has no such thing. `explicit`:
    named by the user himself. `entry`: the number of the entry in the list of sources that it belongs to.
    """

    name: str
    kind: Kind
    size: int
    stamp: str | None
    explicit: bool
    entry: int = 0


def list_sources(
    config: DataConfig, source: str | Sequence[str], endings: Sequence[str] = ENDINGS
) -> list[SourceFile]:
    """The files of `source`, each once; of folders those that end in one of `endings`.

    Raises:
        DataError: a path that does not exist, a glob without a match, a folder without text.
    """
    entries = [source] if isinstance(source, str) else list(source)
    if not entries:
        raise DataError("data.source is an empty list", "name a file, a folder, a glob or `python-stdlib`")
    files: dict[str, SourceFile] = {}
    known = (*endings, *(ending + how for ending in endings for how in COMPRESSIONS))
    for number, entry in enumerate(entries):
        for file in sorted(_expand(config, entry, known), key=lambda file: file.name):
            files.setdefault(file.name, replace(file, entry=number))
    return list(files.values())


def open_binary(name: str, remote: RemoteCache | None = None) -> BinaryIO:
    """Open a local path or URL for reading what is in it, decompressed; with `remote` from a copy that it keeps."""
    try:
        if not is_url(name):
            file: BinaryIO = Path(name).open("rb")  # noqa: SIM115 - closed by who asked for it
        elif remote is not None:
            file = remote.open(name)
        else:
            file = cast(BinaryIO, _fsspec.open(name, "rb").open())
        return decompressed(name, file)
    except READ_ERRORS as error:
        raise unreadable(name, error) from error


def unreadable(name: str, error: Exception) -> UnreadableFile:
    """The user's words for a file that is there but cannot be read."""
    said = getattr(error, "strerror", None) or str(error) or type(error).__name__
    if isinstance(error, OSError) and error.errno:
        return UnreadableFile(f"{name} cannot be read: {said}", "check the path and its permissions")
    return UnreadableFile(f"{name} is damaged: {said}", "fetch or write it again")


def reachable(files: Sequence[SourceFile]) -> bool:
    """Whether another process sees the same files."""
    return not any(file.name.startswith("memory://") for file in files)


def is_url(name: str) -> bool:
    """Whether fsspec, not the operating system, opens `name`."""
    return "://" in name


def _expand(config: DataConfig, entry: str, endings: tuple[str, ...]) -> Iterator[SourceFile]:
    if entry == "python-stdlib":
        return (_local(path, "python", explicit=False) for path in stdlib_files())
    if entry.startswith(HUB):
        return iter((SourceFile(entry, "hub", -1, version_of(entry), explicit=True),))
    if entry.startswith(CODE):
        found = _expand(config, entry.removeprefix(CODE), CODE_ENDINGS)
        return (replace(file, kind="code") for file in found)
    if is_url(entry):
        return _remote(config, entry, endings)
    return _on_this_machine(config, entry, endings)


def _kind(config: DataConfig, name: str) -> Kind:
    if config.format == "auto":
        return cast(Kind, TEXT_FORMATS.get(Path(inner_name(name)).suffix.lower(), "text"))
    return config.format


def _local(path: Path, kind: Kind, *, explicit: bool) -> SourceFile:
    try:
        stat = path.stat()
    except OSError as error:
        raise unreadable(str(path), error) from error
    return SourceFile(str(path), kind, stat.st_size, str(stat.st_mtime_ns), explicit)


def _on_this_machine(config: DataConfig, entry: str, endings: tuple[str, ...]) -> Iterator[SourceFile]:
    path = Path(entry).expanduser()
    if path.is_file():
        yield _local(path.absolute(), _kind(config, entry), explicit=True)
    elif path.is_dir():
        names = _walk(path.absolute())
        chosen = [name for name in names if name.lower().endswith(endings)]
        if not chosen:
            raise _nothing_in(entry, names, endings)
        yield from (_local(Path(name), _kind(config, name), explicit=False) for name in chosen)
    elif glob.has_magic(entry):
        matches = [Path(name) for name in glob.glob(str(path), recursive=True)]  # noqa: PTH207 - `~` and `**`
        chosen_paths = [match.absolute() for match in matches if match.is_file()]
        if not chosen_paths:
            raise DataError(
                f"no file matches {entry}", "check the pattern; `**` matches folders at any depth"
            )
        yield from (_local(match, _kind(config, match.name), explicit=False) for match in chosen_paths)
    else:
        raise _missing(entry, path)


def _walk(folder: Path) -> list[str]:
    """All files below `folder`, also behind links, but hidden ones (`.git` and the like are no text of the user's).

    Raises:
        UnreadableFile: a folder below it cannot be read.
    """

    def fail(error: OSError) -> None:
        raise unreadable(str(error.filename), error) from error

    found, known = [], set[tuple[int, int]]()
    for directory, directories, files in os.walk(folder, onerror=fail, followlinks=True):
        stat = os.stat(directory)  # noqa: PTH116 - of what a link leads to, once, also where links go round
        if (stat.st_dev, stat.st_ino) in known:
            directories.clear()
            continue
        known.add((stat.st_dev, stat.st_ino))
        directories[:] = sorted(name for name in directories if not name.startswith("."))
        found += [str(Path(directory) / name) for name in files if not name.startswith(".")]
    return found


def _remote(config: DataConfig, entry: str, endings: tuple[str, ...]) -> Iterator[SourceFile]:
    try:
        filesystem, path = _fsspec.core.url_to_fs(entry)
        explicit = bool(filesystem.isfile(path))
        if explicit:
            found = {path: filesystem.info(path)}
        elif filesystem.isdir(path):
            everything = filesystem.find(path, detail=True)
            found = {n: info for n, info in everything.items() if file_name(n).lower().endswith(endings)}
            if not found:
                raise _nothing_in(entry, everything, endings)
        else:
            matches = filesystem.glob(path, detail=True) if glob.has_magic(path) else {}
            found = {name: info for name, info in matches.items() if info.get("type") != "directory"}
    except ImportError as error:
        raise DataError(
            f"{entry} needs a package that is not installed: {error}", "install it with pip"
        ) from error
    except OSError as error:
        raise unreadable(entry, error) from error
    except DataError:
        raise
    except ValueError as error:  # fsspec: unknown protocol
        raise DataError(f"{entry} cannot be opened: {error}", "check the part before `://`") from error
    if not found:
        raise DataError(f"there is nothing at {entry}", "check the URL")
    named = _named_as(entry, filesystem, path)
    for name, info in found.items():
        url = named(name)
        yield SourceFile(url, _kind(config, url), int(info.get("size") or -1), stamp_of(info), explicit)


def _named_as(entry: str, filesystem: Any, path: str) -> Callable[[str], str]:
    """What to call a file below `entry`, whose `path` the file system took out of it: with host, name and archive."""
    head, *rest = entry.split("::")
    head = head.rstrip("/")
    if not path.strip("/") or not head.endswith(path.rstrip("/")):
        return lambda name: str(filesystem.unstrip_protocol(name))
    before = head[: len(head) - len(path.rstrip("/"))]
    return lambda name: "::".join([before + name, *rest])


def _nothing_in(entry: str, names: Iterable[str], known: Sequence[str]) -> DataError:
    endings = Counter(Path(name).suffix or "(no ending)" for name in names)
    if not endings:
        return DataError(f"the folder {entry} is empty", "name a folder that holds text")
    there = ", ".join(f"{count} × {ending}" for ending, count in endings.most_common(3))
    plain = [ending for ending in known if not ending.endswith(COMPRESSIONS)]
    return DataError(
        f"the folder {entry} has no file that ends in {', '.join(plain[:12])} (it has {there})",
        f"name the files by a glob, such as '{entry.rstrip('/')}/**/*{endings.most_common(1)[0][0]}'",
    )


def _missing(entry: str, path: Path) -> DataError:
    siblings = [item.name for item in path.parent.iterdir()] if path.parent.is_dir() else []
    guesses = difflib.get_close_matches(path.name, [*siblings, "python-stdlib"], n=1)
    if not guesses:
        return DataError(
            f"there is no file or folder {entry}",
            "check data.source; relative paths start at the current folder",
        )
    guess = guesses[0] if guesses[0] == "python-stdlib" else str(path.parent / guesses[0])
    return DataError(f"there is no file or folder {entry}", f"did you mean {guess}?")
