"""All replicas of one arm as processes, on hosts of their own or side by side on this one, from start to end."""

from __future__ import annotations

import multiprocessing
import os
import secrets
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from benchmarks.network import peers, replica
from benchmarks.network.arms import Arm
from benchmarks.network.hosts import DEVICE, Hosts, address
from benchmarks.network.origin import Origin
from benchmarks.network.processes import start
from benchmarks.network.servers import serve
from tutti.sync.server import ServerAddress

_SERVERS_SECONDS = 120
#: Where the processes of one torch world meet on the first host; on loopback a free port is looked for.
_STORE_PORT = 29400


class FleetFailed(Exception):
    """A replica died, or all were too slow; the message ends with what was last heard."""


def train(origin: Origin, arm: Arm, run: Path, *, hosts: Hosts | None, paced: bool, seconds: float) -> None:
    """Train in `run`, which `origin` has branched. `hosts`: None: all on loopback. `paced`: at the setting's pace.

    Raises:
        FleetFailed: it did not end well within `seconds`.
    """
    setting = origin.setting
    task: dict[str, Any] = {
        "run": str(run),
        "prepared": str(origin.prepared),
        "launcher_pid": os.getpid(),
        "link": hosts is not None,
        "compute_seconds": setting.compute_seconds if paced else 0,
        "optimizer_seconds": setting.optimizer_seconds if paced else 0,
        "secret": secrets.token_hex(32),
        "replicas": setting.replicas,
        "peer": arm.peer,
        "sync": arm.sync,
    }
    entry = replica.main if arm.peer is None else peers.main
    port = _free_port() if hosts is None else _STORE_PORT
    served = _parameter_server(hosts, setting.replicas) if arm.served else None
    task["parameter_server"] = served
    with _servers(hosts, run) as servers:
        task["servers"] = servers if arm.elastic or arm.peer is not None else None
        workers: list[BaseProcess] = []
        beside: list[BaseProcess] = []
        try:
            if served is not None:
                space, log = _space(hosts, setting.replicas), run / "logs" / "server.log"
                beside.append(start(space, log, _environment(hosts), replica.serve, task))
            for number in range(setting.replicas):
                own = task | {"replica": number, "host": _name(hosts, number)}
                world = {} if arm.elastic else _world(hosts, number, setting.replicas, port)
                environment = _environment(hosts) | world
                workers.append(start(_space(hosts, number), _log(run, number), environment, entry, own))
            _wait(workers, beside, run, seconds)
        finally:
            _end([*workers, *beside])


def _parameter_server(hosts: Hosts | None, replicas: int) -> ServerAddress:
    """Where a parameter server will listen: on a host of its own, if there are any, which is the last."""
    port = _free_port() if hosts is None else _STORE_PORT
    return ServerAddress(f"tcp://{_name(hosts, replicas)}:{port}", secrets.token_bytes(32))


def _name(hosts: Hosts | None, number: int) -> str:
    """What others call the host of replica `number`."""
    return "localhost" if hosts is None else address(number)


def _space(hosts: Hosts | None, number: int) -> str | None:
    return None if hosts is None else hosts.space(number)


def _log(run: Path, number: int) -> Path:
    return run / "logs" / f"rank-{number}.log"


def _environment(hosts: Hosts | None) -> dict[str, str]:
    return {"GLOO_SOCKET_IFNAME": "lo" if hosts is None else DEVICE, "RUST_LOG": "error"}


def _world(hosts: Hosts | None, number: int, replicas: int, port: int) -> dict[str, str]:
    """How a process finds the torch world that holds all replicas."""
    return {
        "RANK": str(number),
        "WORLD_SIZE": str(replicas),
        "LOCAL_RANK": "0",
        "MASTER_ADDR": _name(hosts, 0),
        "MASTER_PORT": str(port),
    }


def _free_port() -> int:
    with socket.create_server(("", 0)) as found:
        return int(found.getsockname()[1])


@contextmanager
def _servers(hosts: Hosts | None, run: Path) -> Iterator[dict[str, Any]]:
    """Lighthouse and store on the first host, while it lasts."""
    ours, theirs = multiprocessing.get_context("forkserver").Pipe()
    log = run / "logs" / "servers.log"
    process = start(_space(hosts, 0), log, _environment(hosts), serve, theirs)
    theirs.close()
    try:
        if not ours.poll(_SERVERS_SECONDS):
            raise FleetFailed(f"the servers did not start within {_SERVERS_SECONDS} s:\n{_last(log)}")
        try:
            found = ours.recv()
        except EOFError:
            raise FleetFailed(f"the servers died at their start:\n{_last(log)}") from None
        yield {"host": _name(hosts, 0), **found}
    finally:
        _end([process])
        ours.close()


def _wait(workers: Sequence[BaseProcess], beside: Sequence[BaseProcess], run: Path, seconds: float) -> None:
    """Until all have ended well. With elastic members the others would go on without one that died: not here."""
    deadline = time.monotonic() + seconds
    while True:
        codes = [worker.exitcode for worker in workers]
        for number, code in enumerate(codes):
            if code not in (None, 0):
                raise FleetFailed(f"replica {number} exited with {code}:\n{_last(_log(run, number))}")
        if None not in codes:
            return
        if any(server.exitcode is not None for server in beside):
            raise FleetFailed(f"the parameter server ended:\n{_last(run / 'logs' / 'server.log')}")
        if time.monotonic() > deadline:
            raise FleetFailed(f"it did not end within {seconds:.0f} s:\n{_last(_log(run, 0))}")
        time.sleep(0.05)


def _end(processes: Sequence[BaseProcess]) -> None:
    for process in processes:
        process.kill()
        process.join()


def _last(log: Path) -> str:
    """What a process said last."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-12:]) if log.exists() else ""
