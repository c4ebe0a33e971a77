"""Processes of one benchmark that form a process group on this machine."""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist


def on_ranks(size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What `function(rank, *arguments)` returned on each of `size` ranks (gloo, one thread each).

    Raises:
        RuntimeError: a rank died; its traceback is on the error stream.
    """
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as directory:
        results = context.Queue()
        processes = [
            context.Process(
                target=_rank, args=(rank, size, f"{directory}/store", results, function, arguments)
            )
            for rank in range(size)
        ]
        for process in processes:
            process.start()
        try:
            found = dict(results.get() for _ in processes)
        finally:
            for process in processes:
                process.join()
    if None in found:
        raise RuntimeError("a rank failed")
    return [found[rank] for rank in range(size)]


def _rank(
    rank: int, size: int, store: str, results: Any, function: Callable[..., Any], arguments: Any
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(store, size), rank=rank, world_size=size)
    try:
        results.put((rank, function(rank, *arguments)))
    except BaseException:
        results.put((None, None))
        raise
    dist.barrier()
    dist.destroy_process_group()
