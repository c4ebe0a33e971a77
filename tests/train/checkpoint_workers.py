"""Processes for the tests of checkpoints, forked from a server that has imported torch once: each is cheap.

A child runs one function of this module; the test kills it, or waits for it. Run as a program, this is the
server.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard

from tutti.train.adafactor import Adafactor
from tutti.train.checkpoints import Checkpointer, apply_state, gather_state, load, newest_valid


class Forge:
    """The test's side of the server."""

    def __init__(self) -> None:
        self._server = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    def _ask(self, **request: Any) -> int:
        assert self._server.stdin and self._server.stdout
        self._server.stdin.write(json.dumps(request) + "\n")
        return int(self._server.stdout.readline())

    def start(self, function: Callable[..., None], **arguments: Any) -> int:
        return self._ask(start=function.__name__, arguments=arguments)

    def wait(self, child: int) -> int:
        """The child's exit status; negative: the signal that ended it."""
        return os.waitstatus_to_exitcode(self._ask(wait=child))

    def kill(self, child: int) -> None:
        os.kill(child, signal.SIGKILL)
        self.wait(child)

    def close(self) -> None:
        self._server.kill()
        self._server.wait()


@pytest.fixture(scope="session")
def forge() -> Iterator[Forge]:
    server = Forge()
    yield server
    server.close()


def serve() -> None:
    import torch._dynamo  # FSDP imports it: seconds, here paid once

    torch.set_num_threads(1)
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            answer = os.waitpid(request["wait"], 0)[1]
        elif (answer := os.fork()) == 0:
            os._exit(run(request["start"], request["arguments"]))
        print(answer, flush=True)


def run(function: str, arguments: dict[str, Any]) -> int:
    os.dup2(2, 1)  # the server's answers alone go to its standard output
    try:
        globals()[function](**arguments)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


# What the children do: saving a state that is a function of the step, so that a test can tell any mixture.


def content(step: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(step)
    return {
        "model": {"weight": torch.randn(40, 25, generator=generator), "bias": torch.full((3,), float(step))},
        "plain": {"step": step, "names": ["a", str(step)]},
    }


def blank() -> dict[str, Any]:
    return {
        "model": {"weight": torch.zeros(40, 25), "bias": torch.zeros(3)},
        "plain": {"step": -1, "names": []},
    }


def step_of(path: Path) -> int:
    """Load the checkpoint and check that all of it is of one step, which is returned."""
    state = blank()
    meta = load(path, state)
    step = meta["step"]
    wanted = content(step)
    assert state["plain"] == wanted["plain"]
    for name, tensor in wanted["model"].items():
        assert torch.equal(state["model"][name], tensor)
    return int(step)


def save_for_ever(directory: str, ready: str) -> None:
    """Save step after step, from where the directory stands."""
    checkpointer = Checkpointer(Path(directory), keep=2)
    newest = newest_valid(Path(directory))
    step = 0 if newest is None else step_of(newest)
    Path(ready).touch()
    while True:
        step += 1
        checkpointer.save(step, content(step), {"step": step}, best=step % 3 == 0)


def save_three_and_die(directory: str, at: int, count_into: str) -> None:
    """Save three steps; SIGKILL just before the file operation number `at` (counted from 1; 0: never)."""
    checkpointer = Checkpointer(Path(directory), keep=1)
    operations = 0

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal operations
        if event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "open"):
            place = str(arguments[0])
            reading = event == "open" and not (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR)
            if reading or not (place.startswith(directory) or event in ("os.remove", "os.rmdir")):
                return
            operations += 1
            if operations == at:
                os.kill(os.getpid(), signal.SIGKILL)
                time.sleep(60)

    sys.addaudithook(watch)
    newest = newest_valid(Path(directory))
    first = 1 + (0 if newest is None else step_of(newest))
    for step in range(first, first + 3):
        checkpointer.save(step, content(step), {"step": step}, best=step == first, wait=True)
    Path(count_into).write_text(str(operations))


# A replica of two ranks (FSDP2 on gloo). Sizes that two does not divide: uneven and empty shards.


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 7, bias=False), nn.Tanh(), nn.Linear(7, 1))


def optimizers_of(model: nn.Module, kind: str) -> list[torch.optim.Optimizer]:
    parameters = list(model.parameters())
    if kind == "adafactor":
        return [Adafactor(parameters, lr=0.02)]
    if kind == "adamw":
        return [torch.optim.AdamW(parameters, lr=0.01, fused=True)]
    matrices = [p for p in parameters if p.ndim == 2 and len(p) > 1]  # torch's Muon cannot shard a single row
    rest = [p for p in parameters if not (p.ndim == 2 and len(p) > 1)]
    return [torch.optim.Muon(matrices, lr=0.02), torch.optim.AdamW(rest, lr=0.01)]


def train(model: nn.Module, optimizers: list[torch.optim.Optimizer], steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        inputs = torch.randn(8, 5, generator=generator)
        model(inputs).square().mean().backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()


def whole(state: dict[str, Any]) -> dict[str, Any]:
    """`state` with DTensors gathered."""
    return {
        key: whole(value)
        if isinstance(value, dict)
        else (value.full_tensor() if hasattr(value, "full_tensor") else value).detach().clone()
        if isinstance(value, Tensor)
        else value
        for key, value in state.items()
    }


def replica_of_two(rank: int, store: str, directory: str, kind: str, first: int, last: int, out: str) -> None:
    """Resume from `directory` if there is something, train steps [first, last), save, write it all."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    model = network(seed=5)
    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer)
    fully_shard(model)
    optimizers = optimizers_of(model, kind)
    group = dist.group.WORLD
    checkpointer = Checkpointer(Path(directory), keep=3, rank=rank, group=group)
    found = newest_valid(Path(directory))
    if found is not None:
        state = gather_state(model, optimizers)
        load(found, state, group)
        apply_state(model, optimizers, state)
    else:
        apply_state(model, optimizers, {**gather_state(model, optimizers)})
    train(model, optimizers, range(first, last))
    state = gather_state(model, optimizers)
    checkpointer.save(last, state, {"step": last})
    train(model, optimizers, range(1000, 1001))  # must not reach what is being written
    checkpointer.close()
    assert len(checkpointer.last_saved) == (1 if rank == 0 else 0)
    # What was saved, seen by this layout again.
    again = gather_state(model, optimizers)
    path = newest_valid(Path(directory))
    assert path is not None
    load(path, again)
    gathered = whole(again)
    if rank == 0:
        torch.save(gathered, out)
    dist.destroy_process_group()


def replica_with_failing_rank(rank: int, store: str, directory: str, out: str) -> None:
    """Rank 1 cannot write its file: both ranks must hear of it, and the next save must work."""
    from tutti.train.checkpoints import writer

    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    checkpointer = Checkpointer(Path(directory), keep=3, rank=rank, group=dist.group.WORLD)
    state = {"model": {f"weight{rank}": torch.ones(3)}}
    checkpointer.save(1, state, {"step": 1}, wait=True)
    real = writer.write_file

    def full(path: Path, content: memoryview) -> Any:
        raise OSError(28, "No space left on device")

    if rank == 1:
        writer.write_file = full
    heard = ""
    checkpointer.save(2, state, {"step": 2})
    try:
        checkpointer.wait()
    except ValueError as error:
        heard = f"{type(error).__name__}: {error}"
    writer.write_file = real
    latest = (Path(directory) / "LATEST").read_text().split()[0]
    dist.barrier()
    checkpointer.save(3, state, {"step": 3}, wait=True)
    checkpointer.close()
    Path(f"{out}{rank}").write_text(json.dumps([heard, latest]))
    dist.destroy_process_group()


if __name__ == "__main__":
    serve()
