"""Gradients in flat buckets, summed over the replicas while the backward pass is still running.

Parameters are laid into buckets in reverse order of registration, roughly the order in which backward
completes them. When the last gradient of a bucket is there, its all-reduce starts; buckets start in a fixed
order, because every member must make the same calls in the same order.

Gradients of plain parameters *are* views of the bucket: autograd adds into it, nothing is copied. Gradients of
sharded parameters are made anew by FSDP after every backward, so those are copied in and out.

A table of which a step reads few rows (its module says so: `adds_rows_only`) is a bucket of its own, of which rows are
exchanged that anybody changed. Nobody is told when its gradient is complete, so it comes last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence, Set

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.hooks import RemovableHandle

from tutti.sync.buffer import Buffer
from tutti.sync.policy import local_part, placed_like
from tutti.sync.summing import Summing
from tutti.sync.transport import PeerLost, Wait


class Bucket:
    """A flat buffer and the parameters whose gradients live in it."""

    def __init__(self, named: Sequence[tuple[str, nn.Parameter]], *, table: bool = False) -> None:
        self.parameters = [parameter for _, parameter in named]
        self.table = table
        parts = [local_part(p.detach()) for p in self.parameters]
        # fp32 whatever the parameters are: a sum over replicas must not lose what one of them found.
        self.flat = torch.zeros(sum(p.numel() for p in parts), dtype=torch.float32, device=parts[0].device)
        pieces = torch.split(self.flat, [p.numel() for p in parts])
        self.views = [piece.view(p.shape) for piece, p in zip(pieces, parts, strict=True)]
        self.buffer = Buffer.of(
            self.flat, [(name, part) for (name, _), part in zip(named, parts, strict=True)]
        )
        self.missing = len(self.parameters)

    def lend_views(self) -> None:
        """Zero the buffer and make it the gradient of every plain fp32 parameter."""
        self.flat.zero_()
        for parameter, view in zip(self.parameters, self.views, strict=True):
            parameter.grad = view if _lendable(parameter) else None

    def lend_sums(self) -> None:
        """Make what is in the buffer the gradient of every parameter."""
        for parameter, view in zip(self.parameters, self.views, strict=True):
            parameter.grad = view if _lendable(parameter) else _like(view, parameter)

    def collect(self, index: int) -> None:
        """Copy the gradient of parameter `index` into the buffer, unless it is there already."""
        gradient = self.parameters[index].grad
        if gradient is None:
            return
        local = local_part(gradient)
        if local.data_ptr() != self.views[index].data_ptr():
            self.views[index].copy_(local)

    def hand_out(self) -> None:
        """Copy summed gradients back to where they are not views of the buffer."""
        for parameter, view in zip(self.parameters, self.views, strict=True):
            if parameter.grad is None:
                parameter.grad = _like(view, parameter)
                continue
            local = local_part(parameter.grad)
            if local.data_ptr() != view.data_ptr():
                local.copy_(view)


def _lendable(parameter: nn.Parameter) -> bool:
    return not isinstance(parameter, DTensor) and parameter.dtype == torch.float32


def _like(view: Tensor, parameter: nn.Parameter) -> Tensor:
    """`view` as a gradient of `parameter`, which got none on this rank but perhaps on another."""
    return (
        placed_like(view.clone(), parameter) if isinstance(parameter, DTensor) else view.to(parameter.dtype)
    )


class OverlappedBuckets:
    """All trainable parameters of a module in buckets of about `bucket_bytes`; `tables`: ids of those that are some."""

    def __init__(
        self,
        named: Iterable[tuple[str, nn.Parameter]],
        summing: Summing,
        bucket_bytes: int,
        *,
        tables: Set[int] = frozenset(),
    ) -> None:
        self._summing = summing
        self._armed = False
        self._next = 0
        self._waits: list[Wait] = []
        #: Called before anything is exchanged; may raise PeerLost.
        self.gate: Callable[[], None] = open_gate
        self._hooks: list[RemovableHandle] = []
        entries = list(named)
        dense = [entry for entry in entries if id(entry[1]) not in tables]
        self.buckets = [Bucket(group) for group in _group(dense, bucket_bytes)]
        self.buckets += [Bucket([entry], table=True) for entry in entries if id(entry[1]) in tables]
        for bucket in self.buckets:
            for parameter in bucket.parameters:
                self._hooks.append(parameter.register_post_accumulate_grad_hook(self._hook(bucket)))  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Leave gradients alone, and let go of the memory."""
        for hook in self._hooks:
            hook.remove()
        self.buckets = []

    def reset(self) -> None:
        """Before the first micro-batch of a step."""
        self._next = 0
        self._waits = []
        for bucket in self.buckets:
            bucket.missing = len(bucket.parameters)
            bucket.lend_views()

    def arm(self, armed: bool) -> None:
        """Whether the coming backward completes the gradients."""
        self._armed = armed

    def start_rest(self) -> None:
        """Start what has not started: parameters that got no gradient."""
        while self._next < len(self.buckets):
            self._start(self.buckets[self._next])

    def finish(self) -> None:
        """Wait for all, hand out the sums. Raises PeerLost when a member was lost since the step began."""
        self.receive()
        for bucket in self.buckets:
            bucket.hand_out()

    def receive(self) -> None:
        """Wait for all, and leave the sums where they are. Raises PeerLost as `finish`."""
        lost = self._settle()
        if lost is not None:
            raise lost

    def lend_sums(self) -> None:
        """Make the sums that were received the gradients, which they stay until the next `reset`."""
        for bucket in self.buckets:
            bucket.lend_sums()

    def abandon(self) -> None:
        """Wait until nothing that was started touches the buckets any more, however it ends."""
        self._settle()

    def _settle(self) -> PeerLost | None:
        lost = None
        for wait in self._waits:
            try:
                wait()
            except PeerLost as error:
                lost = error
        self._waits = []
        return lost

    def _hook(self, bucket: Bucket) -> Callable[[Tensor], None]:
        def on_gradient(_: Tensor) -> None:
            if not self._armed:
                return
            bucket.missing -= 1
            while self._next < len(self.buckets) and self.buckets[self._next].missing == 0:
                self._start(self.buckets[self._next])

        return on_gradient

    def _start(self, bucket: Bucket) -> None:
        for index in range(len(bucket.parameters)):
            bucket.collect(index)
        with torch.profiler.record_function("tutti::all_reduce_bucket"):
            try:
                self.gate()
                start = self._summing.start_rows if bucket.table else self._summing.start
                self._waits.append(start(bucket.buffer))
            except PeerLost as error:
                # Not from inside a backward pass: other parts of the replica wait for the rest of it.
                self._waits.append(_raises(error))
        self._next += 1


def tables_of(module: nn.Module) -> set[int]:
    """Ids of the tables of `module` of which a step reads few rows."""
    return {id(m.weight) for m in module.modules() if getattr(m, "adds_rows_only", False)}


def open_gate() -> None:
    """Nothing is waited for."""


def _raises(error: PeerLost) -> Wait:
    def wait() -> None:
        raise error

    return wait


def _group(
    named: Sequence[tuple[str, nn.Parameter]], bucket_bytes: int
) -> list[list[tuple[str, nn.Parameter]]]:
    """Parameters in reverse order, cut where a bucket is full or the device changes."""
    groups: list[list[tuple[str, nn.Parameter]]] = []
    room = 0
    for name, parameter in reversed(named):
        part = local_part(parameter.detach())
        size = 4 * part.numel()
        if not groups or size > room or local_part(groups[-1][0][1].detach()).device != part.device:
            groups.append([])
            room = bucket_bytes
        groups[-1].append((name, parameter))
        room -= size
    return groups
