"""A run that others join: what `--listen` asks for, the key that lets them in, and what they are offered."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tutti import __version__
from tutti.config import Config, count_groups, dump_config
from tutti.config.agreement import SyncConfig
from tutti.core.address import bracketed
from tutti.core.errors import ConfigError, RunError
from tutti.core.events import EventWriter
from tutti.core.rundir import RunDirectory, unwritable
from tutti.launch.meeting import Meeting, meeting_here
from tutti.supervise.door import Door, House
from tutti.sync.channel import SECRET_BYTES
from tutti.sync.server import ServerAddress


@dataclass(frozen=True)
class Reception:
    """`here`: how many replicas start on this machine; the others are seats for those who come. `key`: a file with the
    run's key; None: one is made, as `join.key` in the run's directory."""

    host: str
    port: int
    here: int
    key: Path | None

    @classmethod
    def of(cls, listen: str, here: int | None, key: Path | None) -> Reception:
        """As the command line has it. Raises ConfigError for what cannot be."""
        host, port = split_address(listen)
        if host in ("0.0.0.0", "::", "*"):
            raise ConfigError(
                f"--listen {listen} is not how others find this machine",
                "give its address in the network, or its name",
            )
        if here is None:
            raise ConfigError(
                "--listen needs --here: how many of the replicas start on this machine",
                "for example replicas=4 --listen 10.0.0.1:29400 --here 2: two others come by `tutti join`",
            )
        return cls(host, port, here, key)

    @property
    def address(self) -> str:
        """HOST:PORT, as `tutti join` takes it."""
        return f"{bracketed(self.host)}:{self.port}"

    def check_before(self, config: Config) -> None:
        """Raises ConfigError for what a configuration may not leave open, or ask for, where others are to join."""
        if count_groups(config) > 1:
            raise ConfigError("groups train on one machine", "leave --listen out")
        if config.replicas == "auto":
            raise ConfigError(
                "--listen needs a number of replicas: `auto` looks at this machine alone",
                "count those of all machines, for example replicas=4",
            )

    def invitation(self, run: RunDirectory, config: Config) -> str:
        """What the user has to do next."""
        assert isinstance(config.replicas, int)
        free = config.replicas - self.here
        return (
            f"{self.here} of {config.replicas} replicas start here, {free} may come from other machines at any time:\n"
            f"    tutti join {self.address} --key join.key        (copy {self.key_file(run)} there first)"
        )

    def check(self, config: Config, sync: SyncConfig) -> None:
        """Raises ConfigError where nobody could come into a run of `config` by `sync`, in which nothing is `auto`."""
        assert isinstance(config.replicas, int)
        if not 1 <= self.here < config.replicas:
            raise ConfigError(
                f"--here {self.here} leaves no place for others: the run has replicas = {config.replicas}",
                "`replicas` counts those of all machines; give --here at least 1 and fewer than that",
            )
        if sync.policy != "server" and sync.membership != "elastic":
            raise ConfigError(
                "--listen needs members that may come and go, and those of this run are fixed",
                "see sync.membership; torchrun starts fixed members on several machines (docs/how-to/several-hosts.md)",
            )
        if self.key is not None:
            read_key(self.key)

    @contextmanager
    def door(
        self, run: RunDirectory, config: Config, prepared: Path, note: Callable[..., None]
    ) -> Iterator[Door]:
        """The door, open for those who have the key, as long as it lasts."""
        assert isinstance(config.replicas, int)

        def receive(events: list[dict[str, Any]]) -> None:
            for event in events:
                event.pop("time", None)  # by another clock
                writer = EventWriter(run.events, int(event.pop("rank")), replica=int(event.pop("replica")))
                with closing(writer):
                    writer.write(str(event.pop("kind")), **event)

        paths = [path for path in sorted(prepared.rglob("*")) if path.is_file()]
        house = House(
            {str(path.relative_to(prepared)): path for path in paths}, software(), config.layout.ranks
        )
        seats = range(self.here, config.replicas)
        with closing(Door(self.host, self.port, self._key(run), seats, house, note, receive)) as door:
            yield door

    @contextmanager
    def meeting(
        self,
        door: Door,
        config: Config,
        secret: bytes,
        *,
        prepared: Path,
        server: ServerAddress | None,
        measure: bool = False,
    ) -> Iterator[Meeting]:
        """Where replicas meet, which guests are told. `measure`: to find out how `config` had best be run."""
        fewest = 1 if measure else config.sync.min_replicas  # who measures says who is missing
        with meeting_here(self.host, lighthouse=server is None, min_replicas=fewest) as meeting:
            door.give(
                {
                    "measure": measure,
                    "config": dump_config(config),
                    "secret": secret.hex(),
                    "lighthouse": meeting.lighthouse,
                    "store": meeting.store,
                    "server": [server.address, server.secret.hex()] if server is not None else None,
                    "prepared": prepared.name,
                }
            )
            yield meeting

    def key_file(self, run: RunDirectory) -> Path:
        """Where the key is, or will be."""
        return self.key if self.key is not None else run.path / "join.key"

    def _key(self, run: RunDirectory) -> bytes:
        path = self.key_file(run)
        if self.key is None and not path.exists():
            beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
            try:
                descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                with os.fdopen(descriptor, "w") as file:
                    file.write(secrets.token_hex(SECRET_BYTES) + "\n")
                beside.rename(path)
            except OSError as error:
                beside.unlink(missing_ok=True)
                raise unwritable(path, error) from error
        return read_key(path)


def split_address(address: str) -> tuple[str, int]:
    """Host and port of HOST:PORT. Raises ConfigError where it is none."""
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    good = host and not re.search(r"[\s/]", host) and port.isascii() and port.isdecimal()
    if not good or not 0 < int(port) < 65536:
        raise ConfigError(
            f"{address} is no address with a port", "write it as HOST:PORT, for example 10.0.0.1:29400"
        )
    return host, int(port)


def read_key(path: Path) -> bytes:
    """The key in `path`. Raises RunError where there is none."""
    try:
        key = bytes.fromhex(path.read_text(encoding="ascii"))
    except OSError as error:
        raise RunError(
            f"the key {path} cannot be read: {error.strerror or error}",
            "copy join.key from the run's directory on its first machine",
        ) from error
    except ValueError:
        key = b""
    if len(key) != SECRET_BYTES:
        raise RunError(
            f"{path} is no key: it should hold {2 * SECRET_BYTES} hexadecimal digits",
            "copy join.key from the run's directory on its first machine, or make one: openssl rand -hex 32",
        )
    return key


def software() -> str:
    """What all machines of a run have to agree on."""
    return f"torch {torch.__version__}, tutti {__version__}"


def meeting_of(answer: dict[str, Any]) -> tuple[Meeting, ServerAddress | None]:
    """Where a guest meets the others, from the work that it was given."""
    host, port = answer["store"]
    served = answer["server"]
    server = ServerAddress(served[0], bytes.fromhex(served[1])) if served else None
    return Meeting(answer["lighthouse"], (host, int(port))), server
