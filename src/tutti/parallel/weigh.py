"""What a block's activations weigh, found by running it on shapes alone.

No formula of shapes holds for every architecture. What autograd keeps is counted by running one layer of each sort,
forward and backward, on fake tensors: they have shapes and storages, but no memory, and no arithmetic is done.

Shapes: B samples of a micro-batch, S tokens, D model width.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from tutti.hardware.tracked import TensorBytes
from tutti.models import find_blocks
from tutti.parallel.recompute import DEAR
from tutti.tasks import Manner
from tutti.tasks.manner import body_of, run_model
from tutti.tasks.packing import Rows


@dataclass(frozen=True)
class BlockBytes:
    """Of one micro-batch; averaged over the sorts of blocks, the two peaks of the largest.

    kept: what waits for backward, with the output. dear: of it, what `selective` keeps, with the output. boundary: the
    output [B, S, D]. running: peak of a forward pass that keeps nothing. backward: peak of the backward pass, with
    what was kept. before: what all blocks share and the input of the first. after: what follows the last block.
    """

    kept: float
    dear: float
    boundary: float
    running: float
    backward: float
    before: float
    after: float


@torch.enable_grad()
def weigh_block(
    twin: Any, manner: Manner, micro_batch: int, sequence: int, dtype: torch.dtype | None, *, cast: bool
) -> BlockBytes:
    """Of `twin` on `micro_batch` samples; computed in `dtype`: under autocast or with `cast` throughout."""
    fake = copy.deepcopy(twin)
    if hasattr(fake, "set_experts_implementation"):  # the usual one has shapes for bf16 alone
        fake.set_experts_implementation("batched_mm")
    if cast:
        fake = fake.to(dtype)
    with FakeTensorMode(allow_non_fake_inputs=True) as shapes:
        fake._apply(shapes.from_tensor)
        autocast = torch.autocast("cpu", dtype) if dtype is not None and not cast else nullcontext()
        ids = torch.zeros(micro_batch, sequence, dtype=torch.int64)
        existing = [*fake.parameters(), *fake.buffers(), ids]
        with TensorBytes(existing) as tracked, autocast:
            calls = _Calls(find_blocks(fake), tracked)
            output = run_model(body_of(fake), Rows.of(ids, ids, None), manner.takes_positions)
            before, after = calls.entered[0] - calls.start, tracked.now - calls.left[-1]
            calls.stop()
        del output
        with autocast:
            found = [
                _weigh_alone(block, *call, existing)
                for block, call in zip(calls.blocks, calls.inputs, strict=True)
            ]
    n = len(found)
    return BlockBytes(
        kept=sum(f.kept for f in found) / n,
        dear=sum(f.dear for f in found) / n,
        boundary=sum(f.boundary for f in found) / n,
        running=max(f.running for f in found),
        backward=max(f.backward for f in found),
        before=before,
        after=after,
    )


class _Calls:
    """What the blocks are called with, and the bytes there are when they begin and end."""

    def __init__(self, blocks: Sequence[nn.Module], tracked: TensorBytes) -> None:
        self.blocks = list(blocks)
        self.start = tracked.now
        self.inputs: list[tuple[Any, dict[str, Any]]] = []
        self.entered: list[int] = []
        self.left: list[int] = []

        def enter(_: nn.Module, inputs: Any, named: dict[str, Any]) -> None:
            self.entered.append(tracked.now)
            self.inputs.append((inputs, named))

        def leave(*_: Any) -> None:
            self.left.append(tracked.now)

        self._handles = [block.register_forward_pre_hook(enter, with_kwargs=True) for block in blocks]
        self._handles += [block.register_forward_hook(leave) for block in blocks]

    def stop(self) -> None:
        """Let the blocks be called unwatched."""
        for handle in self._handles:
            handle.remove()


def _weigh_alone(
    block: nn.Module, inputs: Any, named: dict[str, Any], existing: Sequence[Tensor]
) -> BlockBytes:
    """One block, called as it was."""
    hidden = (inputs[0] if inputs else named["hidden_states"]).detach().requires_grad_()
    if inputs:
        inputs = (hidden, *inputs[1:])
    else:
        named = named | {"hidden_states": hidden}
    others = [
        value for value in torch.utils._pytree.tree_leaves((inputs, named)) if isinstance(value, Tensor)
    ]
    with torch.no_grad(), TensorBytes([*existing, *others]) as tracked:
        start = tracked.now
        block(*inputs, **named)
    running = tracked.peak - start
    dear: list[int] = []
    with TensorBytes([*existing, *others]) as tracked:
        with _Dear(dear):
            output = _first(block(*inputs, **named))
        kept = tracked.now - start
        tracked.peak = tracked.now
        torch.autograd.grad(output, hidden, torch.ones_like(output))
    boundary = output.numel() * output.element_size()
    return BlockBytes(kept, sum(dear) + boundary, boundary, running, tracked.peak - start, 0.0, 0.0)


def _first(result: Any) -> Tensor:
    output: Tensor = result if isinstance(result, Tensor) else result[0]
    return output


class _Dear(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the bytes that `selective` keeps."""

    def __init__(self, found: list[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._found = found

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if function in DEAR:
            outputs = result if isinstance(result, tuple) else (result,)
            self._found.extend(o.numel() * o.element_size() for o in outputs if isinstance(o, Tensor))
        return result
