"""Run a function on N ranks: processes forked from one server that has imported torch, so that each costs
milliseconds. The function gets its rank and the process group is there (gloo, over a file)."""

from __future__ import annotations

import multiprocessing
import pickle
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

multiprocessing.set_forkserver_preload(
    ["tutti.train.worker", "transformers.models.llama.modeling_llama", "torchft"]
)


def _rank(
    function: Callable[..., Any],
    rank: int,
    size: int,
    store: str,
    backend: str,
    pipe: Connection,
    arguments: Any,
) -> None:
    torch.set_num_threads(1)
    try:
        dist.init_process_group(backend, store=dist.FileStore(store, size), rank=rank, world_size=size)
        # Plain pickle: the pipe would send tensors as handles of memory that dies with this process.
        pipe.send_bytes(pickle.dumps((True, function(rank, *arguments))))
        dist.barrier()
        dist.destroy_process_group()
    except BaseException:
        pipe.send_bytes(pickle.dumps((False, traceback.format_exc())))


def run_ranks(
    size: int,
    function: Callable[..., Any],
    *arguments: Any,
    timeout_seconds: float = 120,
    backend: str = "gloo",
) -> list[Any]:
    """What `function(rank, *arguments)` returned on each of `size` ranks."""
    context = multiprocessing.get_context("forkserver")
    with tempfile.TemporaryDirectory() as directory:
        pipes, processes = [], []
        for rank in range(size):
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(
                target=_rank,
                args=(function, rank, size, str(Path(directory) / "store"), backend, theirs, arguments),
            )
            process.start()
            theirs.close()
            pipes.append(ours)
            processes.append(process)
        results: dict[int, Any] = {}
        try:
            deadline = time.monotonic() + timeout_seconds
            while len(results) < size:
                waiting = {pipes[rank]: rank for rank in range(size) if rank not in results}
                ready = wait(waiting, max(0.0, deadline - time.monotonic()))
                if not ready:
                    raise TimeoutError(
                        f"ranks {sorted(waiting.values())} gave no answer in {timeout_seconds} s"
                    )
                for pipe in ready:  # the first that fails is raised: its peers may wait for it for ever
                    rank = waiting[pipe]
                    good, value = pickle.loads(pipe.recv_bytes())
                    if not good:
                        raise AssertionError(f"rank {rank} failed:\n{value}")
                    results[rank] = value
        finally:
            for process in processes:
                process.join(timeout=10 if len(results) == size else 0)
                if process.is_alive():
                    process.kill()
    return [results[rank] for rank in range(size)]
