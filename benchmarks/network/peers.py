"""One replica of one of the others' arms: the same model from the same checkpoint on the same batches at the same pace,
its gradients or weights exchanged by other software, used as its documentation says.

    ddp_bf16          torch's DistributedDataParallel; gradients cast to bf16, summed, and cast back (torch's own hook
                      for that demands CUDA; this is what it does)
    ddp_powersgd      the same with torch's PowerSGD hook
    torchft_diloco    torchft's DiLoCo with its Manager, every H steps, as one fragment

Writes the events that a run of Tutti writes, as far as the benchmark reads them.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks.network.bf16_hook import sum_as_bf16
from benchmarks.network.counted import Counting
from benchmarks.network.pace import Pace, wait_until
from tutti.config import load_config
from tutti.core.events import EventWriter
from tutti.core.rundir import RunDirectory
from tutti.core.types import Batch
from tutti.evaluate import Evaluation, sum_losses
from tutti.parallel import Arithmetic, World
from tutti.sync import AllReduce, Place, StaticTransport, share
from tutti.sync.diloco import outer_learning_rate, outer_momentum
from tutti.train.checkpoints import Checkpointer
from tutti.train.feed import Feed
from tutti.train.language import split_language_model_job
from tutti.train.optimizer import build_optimizers
from tutti.train.precision import DTYPES
from tutti.train.schedule import learning_rate_factor
from tutti.train.settings import settings_of
from tutti.train.state import RunState, StateKeeper

_TIMEOUT = timedelta(minutes=10)


@dataclass
class Method:
    """What a peer puts into a plain training loop. `module`: computes instead of the objective. `step`: instead of the
    optimizer's; `every`: replicas are equal only after so many steps. `around`: entered before the first step."""

    module: nn.Module
    step: Callable[[], None]
    every: int = 1
    around: AbstractContextManager[Any] = field(default_factory=contextlib.nullcontext)


class Training:
    """The plain loop around a `Method`, and everything in it that all peers share with Tutti."""

    def __init__(self, task: dict[str, Any]) -> None:
        self.task = task
        self.replica, self.replicas = task["replica"], task["replicas"]
        run = RunDirectory(Path(task["run"]))
        config = load_config(run.config)
        device = torch.device("cpu")
        self.settings = settings_of(config, device)
        precision = None if self.settings.precision == "fp32" else DTYPES[self.settings.precision]
        self.job, self.split = split_language_model_job(
            config, Path(task["prepared"]), World.alone(), Arithmetic(dtype=precision)
        )
        self.objective = self.split.objective
        self.optimizers = build_optimizers(self.objective.model, config.train, self.settings.learning_rate)
        self.feed = Feed(self.job.train_data, self.settings.seed, device)
        self.state = RunState()
        self.events = EventWriter(run.events, self.replica, replica=self.replica)
        self.counting = Counting(self.events, link=task["link"])
        self.pace = Pace(task["compute_seconds"])
        if task["compute_seconds"]:
            self.pace.slow_down(self.objective)
        self._resume(run)

    def run(self, method: Method) -> None:
        """Train to the last step."""
        with method.around:
            while self.state.step < self.settings.steps:
                self._step(self.state.step + 1, method)
                self.state.step += 1
                self.counting.step(self.state.step, 0)
                due = self.state.step % self.settings.validate_every == 0
                if self.state.step % method.every == 0 and (due or self.state.step == self.settings.steps):
                    self._validate()

    def _step(self, step: int, method: Method) -> None:
        settings = self.settings
        self.optimizers.zero_grad()
        batches = self._batches()
        self.pace.begin()
        for number, batch in enumerate(batches):
            last = number == len(batches) - 1
            module = method.module
            with (
                module.no_sync()
                if isinstance(module, DistributedDataParallel) and not last
                else contextlib.nullcontext()
            ):
                with settings.context:
                    total, _ = module(batch)
                (total / (settings.batch // self.replicas * self.job.tokens_per_sample)).backward()
        self.pace.end()
        if settings.clip is not None:
            nn.utils.clip_grad_norm_(self.objective.parameters(), settings.clip)
        self.optimizers.set_learning_rate(
            learning_rate_factor(
                step, settings.steps, settings.warmup, settings.schedule, settings.final_learning_rate
            )
        )
        began = time.perf_counter()
        with self._paced_optimizer(began):
            method.step()

    @contextmanager
    def _paced_optimizer(self, began: float) -> Iterator[None]:
        """The optimizer's time is spent inside of `method.step`, where an exchange may follow it."""
        optimizer = self.optimizers.optimizers[0]
        hook = optimizer.register_step_post_hook(
            lambda *_: wait_until(began + self.task["optimizer_seconds"])
        )
        try:
            yield
        finally:
            hook.remove()

    def _batches(self) -> list[Batch]:
        taken = self.state.ledger.take(self.settings.batch)
        mine = share(taken, self.replica, self.replicas)
        return self.feed.load(mine, self.settings.micro_batch, 0).micro_batches

    def _validate(self) -> None:
        if self.replica != 0 or self.job.validation_data is None:
            return
        began = time.perf_counter()
        sums = sum_losses(
            partial(self.split.measure, context=self.settings.context),
            self.job.validation_data,
            samples=self.settings.validation_samples,
            part=0,
            parts=1,
            micro_batch=self.settings.micro_batch,
            device=torch.device("cpu"),
            target_bytes=self.job.target_bytes,
        )
        self.events.write(
            "validation",
            step=self.state.step,
            loss=Evaluation.of(sums).loss,
            seconds=time.perf_counter() - began,
        )

    def _resume(self, run: RunDirectory) -> None:
        """Weights, AdamW's moments and the place in the data, as Tutti reads them."""
        alone = AllReduce(
            StaticTransport(None),
            Place(0, 1),
            self.state.ledger,
            self.settings.batch,
            bucket_bytes=1,
            everyone=None,
        )
        keeper = StateKeeper(
            split=self.split,
            optimizers=self.optimizers.optimizers,
            policy=alone,
            policy_name="allreduce",
            codec_name="fp32",
            identity={
                "data": self.job.train_data.fingerprint,
                "seed": self.settings.seed,
                "batch": self.settings.batch,
            },
            directory=run.checkpoints,
            make_checkpointer=lambda directory: Checkpointer(
                directory, keep=1, rank=0, group=None, say=print
            ),
            say=print,
        )
        assert keeper.resume(self.state) is not None, "the origin's checkpoint was put there"


# Methods ----------------------------------------------------------------------------------------------------------


@contextmanager
def ddp_bf16(training: Training) -> Iterator[Method]:
    """DDP whose buckets travel as bf16."""
    with _world():
        module = DistributedDataParallel(training.objective, init_sync=False)
        module.register_comm_hook(None, sum_as_bf16)
        yield Method(module, training.optimizers.step)


@contextmanager
def ddp_powersgd(training: Training) -> Iterator[Method]:
    """DDP with torch's PowerSGD hook, its error feedback and warm start on, from the third step on."""
    from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook

    with _world():
        # One bucket: of several the hook sums matrices from gloo's threads in whatever order they come, and where the
        # order differs between ranks gloo ends the process.
        module = DistributedDataParallel(training.objective, init_sync=False, bucket_cap_mb=1000)
        state = powerSGD_hook.PowerSGDState(
            None,
            matrix_approximation_rank=training.task["sync"]["matrix_rank"],
            start_powerSGD_iter=2,
        )
        module.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
        yield Method(module, training.optimizers.step)


@contextmanager
def torchft_diloco(training: Training) -> Iterator[Method]:
    """torchft's DiLoCo. No bucketization: it drops tensors (0.2.0)."""
    from torchft.local_sgd import DiLoCo
    from torchft.manager import Manager
    from torchft.process_group import ProcessGroupGloo

    model, servers, host = training.objective.model, training.task["servers"], training.task["host"]
    # The outer optimizer that Tutti's DiLoCo has: with its authors' settings so few rounds diverge, here as there.
    every = training.task["sync"]["every"]
    momentum = outer_momentum((training.settings.steps - training.state.step) / every)
    outer = torch.optim.SGD(
        model.parameters(), lr=outer_learning_rate(momentum), momentum=momentum, nesterov=momentum > 0
    )
    inner = training.optimizers.optimizers[0]
    store = dist.TCPStore(host, 0, is_master=True, wait_for_workers=False)

    def give() -> dict[str, Any]:
        return {"model": model.state_dict(), "inner": inner.state_dict()}

    def take(given: dict[str, Any]) -> None:
        model.load_state_dict(given["model"])
        inner.load_state_dict(given["inner"])

    manager = Manager(
        pg=ProcessGroupGloo(timeout=_TIMEOUT),
        load_state_dict=take,
        state_dict=give,
        min_replica_size=training.replicas,
        use_async_quorum=False,
        timeout=_TIMEOUT,
        quorum_timeout=_TIMEOUT,
        rank=0,
        world_size=1,
        store_addr=host,
        store_port=store.port,
        lighthouse_addr=f"http://{servers['host']}:{servers['lighthouse']}",
        replica_id=f"{training.replica:05}",
        hostname=host,
        init_sync=False,
    )
    diloco = DiLoCo(manager, [model], inner, outer, sync_every=every)
    # Whoever meets before the others have a heartbeat meets alone, and what it did is thrown away.
    meeting = dist.TCPStore(servers["host"], servers["store"], is_master=False, wait_for_workers=False)
    meeting.add("peers", 1)
    while meeting.add("peers", 0) < training.replicas:
        time.sleep(0.02)
    began = training.state.step
    try:
        yield Method(training.objective, training.optimizers.step, every=every, around=diloco)
        rounds, kept = (training.state.step - began) // every, manager.current_step()
        if kept < rounds:
            raise RuntimeError(f"torchft kept the work of {kept} of {rounds} rounds")
    finally:
        manager.shutdown(wait=False)


@contextmanager
def _world() -> Iterator[None]:
    dist.init_process_group("gloo", timeout=_TIMEOUT)
    try:
        yield
        dist.barrier()
    finally:
        dist.destroy_process_group()


def main(task: dict[str, Any]) -> None:
    """Train as `fleet.train` says in `task`."""
    torch.set_num_threads(1)
    methods = {"ddp_bf16": ddp_bf16, "ddp_powersgd": ddp_powersgd, "torchft_diloco": torchft_diloco}
    training = Training(task)
    with methods[task["peer"]](training) as method:
        training.run(method)
    os._exit(0)  # threads of servers that nobody needs any more would hold the process up
