"""Keys of a service: a file that holds their hashes, and what each may do.

A key is 256 random bits, so nobody can try all of them, and SHA-256 without salt keeps it as well as a slow hash would.
It is shown once, when it is made; the file does not have it. The file is replaced as a whole and read again whenever it
has changed: whatever `tutti keys` does counts for the next request.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tutti.core.errors import ConfigError
from tutti.core.files import write_json_atomically
from tutti.serve.guard.scopes import SCOPES, Scope

#: What a key begins with, so that people and scanners of code know it for one.
PREFIX = "sk-tutti-"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_FORM = ConfigDict(extra="forbid", strict=True, frozen=True)


class Quota(BaseModel):
    """How much a key may ask for; None: as much as it likes. Tokens are those read and written."""

    model_config = _FORM
    requests_per_minute: int | None = Field(default=None, gt=0)
    requests_per_day: int | None = Field(default=None, gt=0)
    tokens_per_minute: int | None = Field(default=None, gt=0)
    tokens_per_day: int | None = Field(default=None, gt=0)


class Secret(BaseModel):
    """What a key is known by. `sha256`: of the key, in hexadecimal; `until`: seconds since 1970; None: for good."""

    model_config = _FORM
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    until: float | None = None


class Key(BaseModel):
    """Of one user or program. `made`, `expires`: seconds since 1970. `secrets`: two for a while after it was rotated,
    the newest last."""

    model_config = _FORM
    name: str = Field(pattern=f"^{_NAME.pattern}$")
    scopes: tuple[Scope, ...]
    made: float
    expires: float | None = None
    quota: Quota = Quota()
    secrets: tuple[Secret, ...]

    def knows(self, digest: str, now: float) -> bool:
        """Whether a key with this hash is this one, now. Takes as long for a wrong one."""
        found = False
        for secret in self.secrets:
            same = hmac.compare_digest(secret.sha256, digest)
            found |= same and (secret.until is None or now < secret.until)
        return found and (self.expires is None or now < self.expires)

    def allows(self, scope: Scope | None) -> bool:
        """Whether it may do what needs `scope`; `admin` may do everything."""
        return scope is None or scope in self.scopes or "admin" in self.scopes


class _File(BaseModel):
    model_config = _FORM
    keys: tuple[Key, ...]


class Keyring:
    """The keys in the file at `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen: tuple[int, ...] | None = None
        self._keys: tuple[Key, ...] = ()

    @property
    def keys(self) -> tuple[Key, ...]:
        """All of them, as the file has them now.

        Raises:
            ConfigError: there is no such file, others may read it, or it is damaged.
        """
        try:
            found = self.path.stat()
        except OSError as error:
            raise ConfigError(
                f"there is no file of keys at {self.path}: {error.strerror}",
                f"make a key: tutti keys add NAME --scope generate --file {self.path}",
            ) from error
        seen = (found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_size, found.st_mode)
        if seen != self._seen:
            if stat.S_IMODE(found.st_mode) & 0o077:
                raise ConfigError(
                    f"{self.path} can be read or written by others", f"try: chmod 600 {self.path}"
                )
            self._keys, self._seen = _read(self.path), seen
        return self._keys

    def check(self) -> None:
        """Raise ConfigError where the file cannot be used."""
        assert self.keys is not None

    def find(self, given: str) -> Key | None:
        """The key that was `given`, if it is known and has not run out. Every key is compared, found or not.

        Raises:
            ConfigError: as `keys`.
        """
        digest, now, found = hashed(given), time.time(), None
        for key in self.keys:
            if key.knows(digest, now):
                found = key
        return found

    def add(self, name: str, scopes: Sequence[str], expires: float | None, quota: Quota) -> str:
        """Make a key, and the file if there is none; returns the key, which can be had only now.

        Raises:
            ConfigError: the name is taken or no name, a scope is none, or the file cannot be used.
        """
        if _NAME.fullmatch(name) is None:
            raise ConfigError(
                f"{name!r} is no name for a key", "take letters, digits, dots, dashes; at most 64"
            )
        known = tuple(one for one in SCOPES if one in scopes)
        if unknown := set(scopes) - set(known):
            raise ConfigError(f"there is no scope '{min(unknown)}'", f"scopes are {', '.join(SCOPES)}")
        if not known:
            raise ConfigError("a key without a scope opens nothing", f"give --scope: {', '.join(SCOPES)}")
        with self._changing() as keys:
            if any(key.name == name for key in keys):
                raise ConfigError(f"there is a key '{name}' already", "rotate it, or take another name")
            given = _draw()
            now = time.time()
            secret = Secret(sha256=hashed(given))
            keys.append(
                Key(
                    name=name, scopes=known, made=now, expires=expires, quota=quota,
                    secrets=(secret,),
                )
            )  # fmt: skip
        return given

    def rotate(self, name: str, keep_seconds: float) -> str:
        """Give key `name` a new secret, which is returned; the old one is good for `keep_seconds` more.

        Raises:
            ConfigError: there is no such key, or the file cannot be used.
        """
        with self._changing() as keys:
            place = _place(keys, name)
            given, now = _draw(), time.time()
            old = [secret for secret in keys[place].secrets if secret.until is None or now < secret.until]
            ends = now + keep_seconds
            kept = [Secret(sha256=one.sha256, until=min(one.until or ends, ends)) for one in old]
            new = (*(kept if keep_seconds > 0 else ()), Secret(sha256=hashed(given)))
            keys[place] = keys[place].model_copy(update={"secrets": new})
        return given

    def revoke(self, name: str) -> None:
        """Forget key `name`. Raises ConfigError as `rotate`."""
        with self._changing() as keys:
            del keys[_place(keys, name)]

    @contextmanager
    def _changing(self) -> Iterator[list[Key]]:
        """The keys, to be changed: what they are at the end is written, and nobody else writes meanwhile."""
        try:
            beside = os.open(self.path.with_name(f".{self.path.name}.lock"), os.O_CREAT | os.O_RDWR, 0o600)
        except OSError as error:
            raise ConfigError(f"cannot write beside {self.path}: {error.strerror}", "check --file") from error
        try:
            fcntl.flock(beside, fcntl.LOCK_EX)
            keys = list(self.keys) if self.path.exists() else []
            yield keys
            content = _File(keys=tuple(keys)).model_dump(mode="json", exclude_none=True)
            before = os.umask(0o077)  # the file is nobody else's from its first byte on
            try:
                write_json_atomically(self.path, content)
            finally:
                os.umask(before)
        finally:
            os.close(beside)


class OneKey:
    """A service with a single key, which may do everything; kept as its hash."""

    def __init__(self, key: str) -> None:
        self._key = Key(
            name="key", scopes=("admin",), made=time.time(), secrets=(Secret(sha256=hashed(key)),)
        )

    def find(self, given: str) -> Key | None:
        """The key, if it is the one that was `given`."""
        return self._key if self._key.knows(hashed(given), time.time()) else None


def hashed(key: str) -> str:
    """SHA-256 of `key`, in hexadecimal."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def _draw() -> str:
    return PREFIX + secrets.token_urlsafe(32)


def _place(keys: list[Key], name: str) -> int:
    for place, key in enumerate(keys):
        if key.name == name:
            return place
    raise ConfigError(
        f"there is no key '{name}'", f"there are: {', '.join(key.name for key in keys) or 'none'}"
    )


def _read(path: Path) -> tuple[Key, ...]:
    try:
        found = _File.model_validate_json(path.read_bytes()).keys
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", "check its owner and mode") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigError(
            f"{path} is no file of keys: {where + ': ' if where else ''}{first['msg']}",
            "`tutti keys` writes such files; bring back the last good one",
        ) from error
    names = [key.name for key in found]
    if len(set(names)) < len(names):
        raise ConfigError(f"{path} has two keys of one name", "take one of them out")
    return found


def as_json(key: Key) -> dict[str, object]:
    """What may be shown of `key`."""
    shown: dict[str, object] = json.loads(key.model_dump_json(exclude={"secrets"}))
    return shown | {"rotating_until": next((one.until for one in key.secrets if one.until is not None), None)}
