"""Processes on hosts: forked from one server that has imported everything, each moved to its host before it starts.

So a replica costs no imports, of which a benchmark of a hundred runs would have four hundred times ten seconds.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
from collections.abc import Callable, Mapping
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from tutti.core.surroundings import settle_torch
from tutti.train.process import die_with, redirect_output

#: CLONE_NEWNET of sched.h
_NETWORK = 0x40000000
_IMPORTS = [
    *("benchmarks.network.replica", "benchmarks.network.peers", "benchmarks.network.servers"),
    *("transformers.models.llama.modeling_llama", "torchft.local_sgd", "torchft.process_group"),
]


def start_server() -> None:
    """Begin to import what replicas need, on the side."""
    settle_torch()  # for everybody, the peers too
    multiprocessing.set_forkserver_preload(_IMPORTS)
    forkserver.ensure_running()


def start(
    space: str | None,
    log: Path,
    environment: Mapping[str, str],
    function: Callable[..., None],
    *arguments: Any,
) -> BaseProcess:
    """Call `function` in a process in the network namespace `space` (None: where we are); its output goes to `log`."""
    context = multiprocessing.get_context("forkserver")
    process = context.Process(
        target=_main, args=(os.getpid(), space, log, dict(environment), function, arguments)
    )
    process.start()
    return process


def _main(
    launcher: int,
    space: str | None,
    log: Path,
    environment: dict[str, str],
    function: Callable[..., None],
    arguments: Any,
) -> None:
    die_with(launcher)
    redirect_output(log)
    if space is not None:
        enter(space)
    os.environ.update(environment)
    function(*arguments)


def enter(space: str) -> None:
    """Move this thread, and those that it will start, to the network namespace `space` of `ip netns`."""
    with Path(f"/var/run/netns/{space}").open() as file:
        if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), _NETWORK) != 0:
            raise OSError(ctypes.get_errno(), f"network namespace {space} cannot be entered")
