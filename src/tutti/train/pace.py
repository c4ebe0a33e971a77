"""How long a step of this replica computes, and when its buckets of gradients are full.

Steps are made as in training, by the same code, but nothing is exchanged: where a bucket's sum would start, the time is
noted. Weights go wherever that takes them, so the process that measures is not one that trains.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import torch

from tutti.config.agreement import SyncConfig
from tutti.parallel import Split
from tutti.sync import AllReduce, Ledger, Place, StaticTransport, Summing, Totals, Transport, share
from tutti.sync.buffer import Buffer
from tutti.sync.codecs import Floats
from tutti.sync.cost import Filled
from tutti.sync.transport import Wait
from tutti.train.clock import Clock, Mark
from tutti.train.feed import Feed
from tutti.train.job import Job
from tutti.train.optimizer import Optimizers
from tutti.train.precision import LossScale
from tutti.train.settings import Settings
from tutti.train.step import Accumulator

#: A step makes the same micro-batch many times over: so many are made, and the rest is reckoned.
_MICRO_BATCHES = 2
_LEAST_STEPS, _MOST_STEPS = 3, 10
_SECONDS = 3.0


@dataclass(frozen=True)
class Pace:
    """`seconds` of a step without its exchanges."""

    seconds: float
    buckets: tuple[Filled, ...]


class Pacing:
    """Steps of a rank. `transport`: to the replicas with which it will sum gradients; not used."""

    def __init__(
        self,
        job: Job,
        split: Split,
        optimizers: Optimizers,
        settings: Settings,
        sync: SyncConfig,
        transport: Transport,
    ) -> None:
        world = split.world
        self._split, self._optimizers, self._settings = split, optimizers, settings
        self._world = world
        self._clock = Clock(world.device)
        self._noting = _Noting(transport, self._clock)
        self._policy = _Alone(
            transport,
            Place(world.replica, world.replicas, world.part, world.parts),
            Ledger(),
            settings.batch,
            bucket_bytes=round(sync.bucket_mb * 1e6),
            everyone=None,
            summing=self._noting,
        )
        self._policy.clock = self._clock
        self._accumulator = Accumulator(
            split,
            self._policy,
            nominal_targets=settings.batch * job.tokens_per_sample,
            clip=settings.clip,
            context=settings.context,
            loss_scale=LossScale(settings.precision),
            seed=settings.seed,
        )
        self._feed = Feed(job.train_data, settings.seed, world.device)

    def measure(self) -> Pace:
        """The median of some steps; the first warms up. All ranks of the replica call it together."""
        self._step()
        began, steps = time.perf_counter(), list[Pace]()
        inside = StaticTransport(self._world.inside)
        while len(steps) < _MOST_STEPS:
            steps.append(self._step())
            over = torch.tensor(float(time.perf_counter() - began > _SECONDS))
            inside.all_reduce(over)  # all make equally many
            if over and len(steps) >= _LEAST_STEPS:
                break
        buckets = [
            Filled(same[0].shapes, statistics.median(bucket.lead_seconds for bucket in same))
            for same in zip(*(step.buckets for step in steps), strict=True)
        ]
        return Pace(statistics.median(step.seconds for step in steps), tuple(buckets))

    def _step(self) -> Pace:
        """One step, reckoned up from as many micro-batches as it made."""
        settings, layout = self._settings, self._world.layout
        ranges = share([(0, settings.batch)], self._world.replica, self._world.replicas)
        shares = layout.shard
        whole = max(
            self._feed.count(share(ranges, part, shares), settings.micro_batch) for part in range(shares)
        )
        made = (
            whole if layout.pipeline > 1 else min(whole, _MICRO_BATCHES)
        )  # a pipeline's bubbles do not scale
        mark = self._clock.mark
        self._noting.marks = []
        began = mark()
        some = share(ranges, self._world.at("shard"), shares)
        if made < whole:
            some = share([(ranges[0][0], ranges[0][0] + made * settings.micro_batch * shares)], 0, 1)
            some = share(some, self._world.at("shard"), shares)
        portion = self._feed.load(some, settings.micro_batch, made)
        self._accumulator.run(portion.micro_batches, tokens=0, key=0, stop=False)
        self._optimizers.step()
        ended = mark()
        seconds = self._clock.seconds
        computed = self._policy.backward_ended
        buckets = [
            Filled(tuple(tuple(part.shape) for part in buffer.parts), max(0.0, seconds(filled, computed)))
            for buffer, filled in self._noting.marks
        ]
        return Pace(
            seconds(began, computed) * whole / max(made, 1) + seconds(computed, ended), tuple(buckets)
        )


class _Noting(Summing):
    """Exchanges nothing, and notes when it would have begun to."""

    def __init__(self, transport: Transport, clock: Clock) -> None:
        super().__init__(transport, Floats("fp32"), feedback=None, squeeze=False)
        self._clock = clock
        self.marks: list[tuple[Buffer, Mark]] = []

    def start(self, buffer: Buffer) -> Wait:
        self.marks.append((buffer, self._clock.mark()))
        return lambda: None


class _Alone(AllReduce):
    """A step whose gradient is this replica's own."""

    clock: Clock
    backward_ended: Mark = 0.0

    def before_step(self, totals: Totals) -> Totals:
        self.backward_ended = self.clock.mark()
        return super().before_step(totals)
