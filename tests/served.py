"""A parameter server and its replicas as threads of this process, over real sockets, on the toy regression."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import zmq
from torch import Tensor

from toys import MaskedSquares, Numbers, make_objective
from tutti.config.agreement import SyncConfig
from tutti.config.training import TrainConfig
from tutti.launch.companion import free_port
from tutti.sync import Ledger, Place, StaticTransport, Totals, positions
from tutti.sync.channel import new_secret
from tutti.sync.codecs import Codec, make_codec
from tutti.sync.server import (
    Host,
    Link,
    ParameterServer,
    Rules,
    ServerAddress,
    ServerMemory,
    listen,
)
from tutti.train.optimizer import build_optimizers
from tutti.train.served import KeptOptimizer, server_optimizer

BATCH, RATE, CLIP = 8, 0.01, 0.5
TRAIN = TrainConfig(weight_decay=0.1)
SOURCE = Numbers()


def rules(replicas: int, steps: int, sync: SyncConfig, **changes: Any) -> Rules:
    codec = make_codec(sync)
    assert isinstance(codec, Codec)
    usual: dict[str, Any] = {
        "batch": BATCH,
        "steps": steps,
        "replicas": replicas,
        "parts": 1,
        "staleness": None if sync.staleness == "unbounded" else sync.staleness,
        "min_replicas": 1,
        "compensation": 0.0,
        "clip": CLIP,
        "squeeze": sync.then == "zstd",
        "codec": codec,
        "factor": lambda step: 1.0,
        "make_stepper": server_optimizer(TRAIN, RATE),
    }
    return Rules(**usual | changes)


class Killed(BaseException):
    """The server drops dead."""


@dataclass
class Serving:
    """A server that can be ended, and started again at the same address."""

    run: Path
    at: ServerAddress
    what: Rules
    _over: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None
    _errors: list[BaseException] = field(default_factory=list)

    def start(self) -> None:
        self._over.clear()
        ready = threading.Event()

        def serve() -> None:
            context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
            try:
                socket = listen(context, self.at.address, self.at.secret)
                memory = ServerMemory(self.run / "server" / "state", "test")
                self.host = Host(socket, self.what, memory, self.run, self._over.is_set)
                ready.set()
                self.host.run()
            except Killed:
                pass
            except BaseException as error:
                self._errors.append(error)
                ready.set()
            finally:
                context.destroy(linger=0)

        self._thread = threading.Thread(target=serve, daemon=True)
        self._thread.start()
        assert ready.wait(10)

    def kill(self) -> None:
        """End it as SIGKILL does: nothing more is heard, said or saved."""

        def die() -> None:
            raise Killed

        self.host._hear_all = die  # type: ignore[method-assign]
        assert self._thread is not None
        self._thread.join(20)
        assert not self._thread.is_alive()

    def end(self) -> None:
        self._over.set()
        assert self._thread is not None
        self._thread.join(20)
        assert not self._thread.is_alive(), "the server does not end"
        if self._errors:
            raise self._errors[0]


@contextmanager
def serving(run: Path, what: Rules) -> Iterator[Serving]:
    serving = Serving(run, ServerAddress(f"tcp://127.0.0.1:{free_port()}", new_secret()), what)
    serving.start()
    try:
        yield serving
    finally:
        serving.end()


class Replica:
    """`policy` and the model that it keeps up to date."""

    def __init__(self, at: ServerAddress, place: Place, sync: SyncConfig, *, returned: bool = False) -> None:
        self.objective: MaskedSquares = make_objective(unused=False)
        self.optimizers = build_optimizers(self.objective.model, TRAIN, RATE)
        codec = make_codec(sync)
        assert isinstance(codec, Codec)
        self.policy = ParameterServer(
            place,
            Ledger(),
            BATCH,
            link=Link(at, place.replica, int(returned), 0),
            kept=KeptOptimizer(self.objective, self.optimizers, TRAIN),
            inside=StaticTransport(None),
            codec=codec,
            feedback_decay=1.0,
            squeeze=sync.then == "zstd",
            returned=returned,
        )
        self.policy.attach(self.objective)
        self.policy.describe([1.0] * len(list(self.objective.parameters())), scale=16.0)
        #: Samples of every push that counted.
        self.counted: list[list[int]] = []
        self.norms: list[float] = []
        self.sent: list[int] = []

    def train(self, steps: int, pause: Callable[[int], float] = lambda _: 0.0) -> Replica:
        meeting = self.policy.start(0, steps)
        while meeting is not None and meeting.step < steps and not meeting.stop:
            samples = (positions(self.policy.samples(0)) % 64).tolist()
            time.sleep(pause(len(self.counted)))
            totals = self.gradient(samples)
            made = self.policy.push(totals)
            if made.push is not None:
                self.counted.append(samples)
                self.norms.append(made.norm)
            self.sent.append(self.policy.sent_bytes())
            meeting = self.policy.after_step(0, steps, totals)
        return self

    def gradient(self, samples: list[int]) -> Totals:
        self.policy.zero_gradients(self.objective)
        total, targets = self.objective(SOURCE.load(0, samples))
        (total / 16.0).backward()
        return self.policy.before_step(Totals(float(total.detach()), int(targets), 0, False))

    def weights(self) -> Tensor:
        return torch.cat([p.detach().flatten().clone() for p in self.objective.parameters()])


def together(*tasks: Callable[[], Any], seconds: float = 60) -> list[Any]:
    """What each of `tasks` gave, run at the same time."""
    results: dict[int, Any] = {}
    errors: list[BaseException] = []

    def run(number: int) -> None:
        try:
            results[number] = tasks[number]()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(len(tasks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds)
        assert not thread.is_alive() or errors, "a replica hangs"
        if errors:
            raise errors[0]
    return [results[number] for number in range(len(tasks))]


def alone(steps: int, batch: int = BATCH) -> Tensor:
    """Weights after these steps in one process, by torch alone: mean over targets, clip, AdamW."""
    objective = make_objective(unused=False)
    matrices = [p for p in objective.parameters() if p.ndim == 2]
    vectors = [p for p in objective.parameters() if p.ndim != 2]
    groups = [
        {"params": matrices, "weight_decay": TRAIN.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=TRAIN.betas)
    for step in range(steps):
        samples = [position % 64 for position in range(step * batch, (step + 1) * batch)]
        total, targets = objective(SOURCE.load(0, samples))
        optimizer.zero_grad()
        (total / targets).backward()
        torch.nn.utils.clip_grad_norm_(objective.parameters(), CLIP)
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in objective.parameters()])
