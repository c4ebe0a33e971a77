"""Policy `allreduce`: replicas are equal after every step, because the gradient is summed over all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from tutti.core.types import module_device
from tutti.sync.buckets import OverlappedBuckets, tables_of
from tutti.sync.ledger import Ledger, Range, share
from tutti.sync.policy import Meeting, Place, Policy, Totals, named_trainable, placed_like
from tutti.sync.summing import Summing, plain_sums
from tutti.sync.transport import StaticTransport, Transport


class AllReduce(Policy):
    """Synchronous data parallelism: overlapped buckets over any transport.

    Every replica takes an even share of the step's samples; `totals` are summed with the gradients, so that one
    division by the global number of targets makes the gradient exact however the shares fall.
    """

    def __init__(
        self,
        transport: Transport,
        place: Place,
        ledger: Ledger,
        batch: int,
        *,
        bucket_bytes: int,
        everyone: dist.ProcessGroup | None,
        summing: Summing | None = None,
    ) -> None:
        """`everyone`: all ranks of all replicas, over which totals are summed (None: this rank alone). `summing`: how
        gradients travel (None: as they are)."""
        super().__init__(transport, place, ledger, batch)
        self._bucket_bytes = bucket_bytes
        self._summing = summing or plain_sums(transport)
        self._totals_transport = StaticTransport(everyone)
        self._buckets: OverlappedBuckets | None = None
        self._step_ranges: tuple[int, list[Range]] = (0, [])
        self._device = torch.device("cpu")

    def attach(self, objective: nn.Module) -> nn.Module:
        self._device = module_device(objective)
        self._parameters = dict(named_trainable(objective))
        if self.transport.size > 1 or self.transport.elastic:
            self._buckets = self._new_buckets(objective)
        return objective

    def _new_buckets(self, objective: nn.Module) -> OverlappedBuckets:
        return OverlappedBuckets(
            self._parameters.items(), self._summing, self._bucket_bytes, tables=tables_of(objective)
        )

    def rest(self) -> None:
        """Have nothing to do with gradients any more."""
        if self._buckets is not None:
            self._buckets.close()

    def start(self, step: int, last_step: int) -> Meeting | None:
        return None

    def samples(self, step: int) -> list[Range]:
        if self._step_ranges[0] != step:
            self._step_ranges = (step, self.ledger.take(self.batches.at(step)))
        return share(self._step_ranges[1], self.transport.rank, self.transport.size)

    @contextmanager
    def micro_batch(self, *, last: bool) -> Iterator[None]:
        if self._buckets is not None:
            self._buckets.arm(last)
        yield

    def before_step(self, totals: Totals) -> Totals:
        vector = totals.vector(self._device)
        if self._buckets is not None:
            # First: both may use one group, on which all ranks have to make the same calls in the same order.
            self._buckets.start_rest()
        wait = self._summing.start_plain(vector, self._totals_transport)
        if self._buckets is not None:
            self._buckets.finish()
        wait()
        self._summing.keep()
        return Totals.of(vector)

    def after_step(self, step: int, last_step: int, totals: Totals) -> Meeting | None:
        return None

    def sum_evaluation(self, measure: Callable[[int, int], Tensor]) -> Tensor:
        sums = measure(self.place.replica, self.place.replicas)
        self._totals_transport.all_reduce(sums)
        return sums

    def zero_gradients(self, objective: nn.Module) -> None:
        if self._buckets is None:
            super().zero_gradients(objective)
        else:
            self._buckets.reset()

    def owed(self) -> dict[str, Tensor]:
        buckets = [] if self._buckets is None else self._buckets.buckets
        views = self._summing.owed(bucket.buffer for bucket in buckets)
        return {name: placed_like(view, self._parameters[name]) for name, view in views.items()}

    def sent_bytes(self) -> int:
        return self.transport.meter.sent + self._totals_transport.meter.sent


class DistributedDataParallelAllReduce(AllReduce):
    """The same policy lowered to torch's DDP; needs fixed members and a whole copy on every rank."""

    def attach(self, objective: nn.Module) -> nn.Module:
        self._device = module_device(objective)
        self._parameters = dict(named_trainable(objective))
        parameters = self._parameters.values()
        assert not any(isinstance(p, DTensor) for p in parameters), (
            "the schema refuses ddp with a sharded layout"
        )
        assert isinstance(self.transport, StaticTransport)
        self._gradient_bytes = sum(p.numel() * p.element_size() for p in parameters)
        if self.transport.group is None:
            self._module: Any = objective
            return objective
        self._module = DistributedDataParallel(
            objective,
            process_group=self.transport.group,
            bucket_cap_mb=max(1, round(self._bucket_bytes / 2**20)),
            gradient_as_bucket_view=True,
            forward_sync_buffers=False,
            init_sync=False,
        )
        module: nn.Module = self._module
        return module

    @contextmanager
    def micro_batch(self, *, last: bool) -> Iterator[None]:
        is_ddp = isinstance(self._module, DistributedDataParallel)
        with self._module.no_sync() if is_ddp and not last else nullcontext():
            yield

    def before_step(self, totals: Totals) -> Totals:
        result = super().before_step(totals)
        if isinstance(self._module, DistributedDataParallel):
            self.transport.meter.all_reduce(self._gradient_bytes, self.transport.size)
            # DDP averages; the contract is a sum.
            torch._foreach_mul_(
                [p.grad for p in self._parameters.values() if p.grad is not None], float(self.transport.size)
            )
        return result
