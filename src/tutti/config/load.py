"""A file and overrides → a `Config` (or a `ServiceConfig`), or one error that names everything that is wrong."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path

from tutti.config.fields import Section
from tutti.config.groups import check_groups
from tutti.config.overrides import apply_overrides, expand_short_forms
from tutti.config.problems import InvalidConfig, Origin, Problem, SourceMap
from tutti.config.read import LARGEST_BYTES, Document, read_yaml
from tutti.config.schema import Config
from tutti.config.search import check_search
from tutti.config.service import ServiceConfig
from tutti.config.validate import Root, validate
from tutti.core.errors import ConfigError

_START = "`tutti init` writes a file to start from"
_SCHEMA = "`tutti schema` shows every key and what it takes"
_SERVICE = "what a service can be told: docs/reference/service.md"


def load_config(path: Path | str | None, overrides: Sequence[str] = ()) -> Config:
    """Read the file at `path` (None: defaults only) and apply dotted `overrides` such as `train.steps=200`.

    Raises:
        ConfigError: with every problem of the file and the overrides: place, reason, and what was
            probably meant. When it is an `InvalidConfig`, its `problems` hold them one by one.
    """
    if path is None:
        return parse_config(None, "defaults", overrides)
    return parse_config(_read_text(Path(path), _START), str(path), overrides)


def parse_config(text: str | None, file: str, overrides: Sequence[str] = ()) -> Config:
    """The same for a text that is called `file` in messages; None stands for a file that says nothing.

    Raises:
        ConfigError: as `load_config`.
    """
    document = _document(text, file, _START, overrides, Config)
    result = validate(document.value, document.sources, document.broken, Config)
    found = (
        result
        if isinstance(result, list)
        else [*check_groups(document, result), *check_search(document, result)]
    )
    return _sound(document, result, found, _SCHEMA)


def load_service(path: Path | None, overrides: Sequence[str] = ()) -> ServiceConfig:
    """The settings of a service: the file at `path` (None: defaults only), with dotted `overrides` such as
    `limits.texts=2`.

    Raises:
        ConfigError: as `load_config`.
    """
    text = None if path is None else _read_text(path, _SERVICE)
    document = _document(text, "defaults" if path is None else str(path), _SERVICE, overrides, ServiceConfig)
    result = validate(document.value, document.sources, document.broken, ServiceConfig)
    return _sound(document, result, result if isinstance(result, list) else [], _SERVICE)


def _document(
    text: str | None, file: str, start: str, overrides: Sequence[str], root: type[Section]
) -> Document:
    """What the file and the overrides say. Raises ConfigError where that is nothing that could be judged."""
    document = Document({}, SourceMap(file)) if text is None else read_yaml(text, file)
    if document.value is None and (document.problems or document.broken):
        found = [*document.problems, *document.broken.values()]
        raise InvalidConfig(found, "mend this place first; other problems show after it")
    if document.value is None:
        raise ConfigError(f"{file} has no settings in it", start)
    if not isinstance(document.value, dict):
        problem = Problem(Origin(file), "", "a configuration is `key: value` lines; this is something else")
        raise InvalidConfig([problem], start)
    document.sources.keys[()] = document.sources.values[()] = Origin(file)
    expand_short_forms(document, root)
    apply_overrides(document, overrides, root)
    return document


def _sound(document: Document, result: Root | list[Problem], found: list[Problem], hint: str) -> Root:
    """`result`, if nothing is wrong with the document, and `found` is empty."""
    problems = [*document.problems, *document.broken.values(), *found]
    if problems or isinstance(result, list):
        raise InvalidConfig(problems, hint)
    return result


def _read_text(path: Path, start: str) -> str:
    """Raises ConfigError when there is no readable text at `path`."""
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_BYTES + 1)
    except FileNotFoundError as error:
        hint = "an override follows the file: tutti train FILE key=value" if "=" in path.name else start
        raise ConfigError(f"there is no file {path}", hint) from error
    except IsADirectoryError as error:
        raise ConfigError(f"{path} is a directory, not a file", _which_of(path)) from error
    except PermissionError as error:
        raise ConfigError(f"{path} may not be read by you", f"try: chmod u+r {path}") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        name = errno.errorcode.get(getattr(error, "errno", None) or 0, "")
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(
            f"{str(path)[:200]!r} cannot be read: {reason} {name}".rstrip(), "check the path"
        ) from error
    return _decode(content, path, start)


def _decode(content: bytes, path: Path, start: str) -> str:
    if not content.strip():
        raise ConfigError(f"{path} is empty", start)
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ConfigError(f"{path} is UTF-16 text", f"save it as UTF-8: iconv -f UTF-16 -t UTF-8 {path}")
    if b"\0" in content[:8192]:
        raise ConfigError(f"{path} is a binary file, not text", start)
    if len(content) > LARGEST_BYTES:
        raise ConfigError(
            f"{path} is larger than {LARGEST_BYTES // 1024} KiB", "is this the right file? " + start
        )
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{path}:{line}: byte {error.start} (0x{content[error.start]:02x}) is not UTF-8 text",
            "save the file as UTF-8",
        ) from error


def _which_of(directory: Path) -> str:
    try:
        inside = sorted(item.name for item in directory.iterdir() if item.suffix in (".yaml", ".yml"))[:3]
    except OSError:
        inside = []
    return f"in it are: {', '.join(inside)}" if inside else "name the YAML file itself"
