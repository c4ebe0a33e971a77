"""What a rank's tensors take at the peak of a step, before anything is trained; and the cheapest way to stay below a
budget.

    peak = parameters + gradients + optimizer + gathered + activations in flight + loss

Parameters, gradients and optimizer follow the ZeRO formulas (Rajbhandari et al., arXiv 1910.02054), here with fp32
masters and no low-precision copies but those that FSDP gathers: 4 + 4 + 8 bytes each for AdamW, every term divided
by what shares it out. Activations of a block are not a formula of shapes that holds for every architecture: what
autograd keeps is counted by running a block of the twin on shapes alone (fake tensors), no arithmetic is done.

Shapes: B samples of a micro-batch, S tokens, D model width, V vocabulary, t ranks of tensor, c of context.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from tutti.config.schema import LayoutConfig
from tutti.core import ConfigError
from tutti.models import find_blocks
from tutti.parallel.recompute import DEAR
from tutti.parallel.stages import first_blocks
from tutti.tasks import Manner
from tutti.tasks.chunked_loss import default_chunk
from tutti.tasks.manner import body_of, head_of, run_model
from tutti.tasks.packing import Rows

_FP32 = 4
#: Time of a step relative to keeping everything: an order, not a forecast.
_COST = {"none": 1.0, "selective": 1.08, "full": 1.3}
_OFFLOAD_COST = {"none": 1.0, "activations": 1.4, "optimizer": 1.5, "all": 3.0}
_SMALLER_BATCH_COST = 1.03
#: Of the activations of the block that is computed again: they, and gradients beside them.
_AGAIN = {"selective": 0.7, "full": 1.4}


@dataclass(frozen=True)
class Thrift:
    """A way to need less memory, and how many samples are computed at once."""

    recompute: str
    offload: str
    micro_batch: int

    @property
    def cost(self) -> float:
        """Time of a step, relative to no thrift at the same micro-batch."""
        return _COST[self.recompute] * _OFFLOAD_COST[self.offload]


@dataclass(frozen=True)
class Need:
    """Bytes of the rank that needs most, at the peak of a step."""

    parameters: int
    gradients: int
    optimizer: int
    gathered: int
    activations: int
    loss: int

    @property
    def total(self) -> int:
        """All of it."""
        held = self.parameters + self.gradients + self.optimizer
        return held + self.gathered + self.activations + self.loss


@dataclass(frozen=True)
class _Part:
    """Of one rank: how many blocks, and numbers of parameters: all, the largest block, and outside the blocks."""

    blocks: int
    parameters: float
    block: float
    outside: float


@dataclass
class MemoryModel:
    """Needs of one model in one layout. `model`: the whole, on the meta device; `twin`: its twin, in memory."""

    model: Any
    twin: Any
    manner: Manner
    layout: LayoutConfig
    sequence: int
    optimizer: str
    replicas: int
    #: Samples of a step that a rank computes.
    samples: int
    _blocks: dict[int, tuple[float, float, float]] = field(default_factory=dict)

    def need(self, thrift: Thrift) -> Need:
        """Bytes at the peak with `thrift`."""
        stages = (self._stage(thrift, stage) for stage in range(self.layout.pipeline))
        return max(stages, key=lambda need: need.total)

    def _stage(self, thrift: Thrift, rank: int) -> Need:
        part, layout = self._part(rank), self.layout
        micro_batches = -(-self.samples // thrift.micro_batch)
        shared = part.parameters / layout.data
        gradients = part.parameters if layout.zero == 1 and layout.data > 1 else shared
        state = (2 if self.optimizer == "adamw" else 1) * shared
        gathered = 0.0
        if layout.data > 1:
            # ZeRO-3: the block at work, the next one, and what lies outside; then a block's gradients, and the buffer
            # in which they are shared out.
            gathered = (
                part.parameters if layout.zero < 3 else 2 * part.block + part.outside
            ) + 2 * part.block
        activations, working = self._activations(thrift, part, rank, micro_batches)
        all_forward_first = micro_batches == 1 or (layout.pipeline > 1 and layout.schedule == "gpipe")
        if all_forward_first and self.replicas == 1:  # gradients come as activations go
            gradients, activations = _larger(gradients, activations)
        if thrift.offload in ("activations", "all"):
            activations = 2 * working
        if thrift.offload == "all":
            shared, gradients = 0.0, max(part.block, part.outside)
        return Need(
            parameters=round(_FP32 * shared),
            gradients=round(_FP32 * gradients),
            optimizer=round(_FP32 * state) if thrift.offload in ("none", "activations") else 0,
            gathered=round(_FP32 * gathered),
            activations=round(activations),
            loss=round(self._loss(thrift.micro_batch) if rank == layout.pipeline - 1 else 0.0),
        )

    def _part(self, rank: int) -> _Part:
        """What pipeline rank `rank` has of the model."""
        layout = self.layout
        blocks = find_blocks(self.model)
        sizes = [_size(block) for block in blocks]
        head, table = head_of(self.model), self.model.get_input_embeddings()
        head_size = _size(head) if head is not None else 0
        starts = first_blocks(self.model, layout)
        ends = [*starts[1:], len(blocks)]
        own = [
            number
            for stage in range(rank, len(starts), layout.pipeline)
            for number in range(starts[stage], ends[stage])
        ]
        outside = sum(parameter.numel() for parameter in self.model.parameters()) - sum(sizes)
        if layout.pipeline > 1:
            outside = (_size(table) if rank == 0 else 0) + (head_size if rank == layout.pipeline - 1 else 0)
        cut = layout.tensor  # norms stay whole, but are next to nothing
        parameters = (sum(sizes[number] for number in own) + outside) / cut
        return _Part(len(own), parameters, max(sizes) / cut, outside / cut)

    def _activations(self, thrift: Thrift, part: _Part, rank: int, micro_batches: int) -> tuple[float, float]:
        """Bytes that wait for backward, and those of one block."""
        layout = self.layout
        kept, dear, boundary = self._of_a_block(thrift.micro_batch)
        pieces = layout.context * layout.tensor
        waiting = part.blocks * self._in_flight(rank, micro_batches)
        activations = {"none": kept, "selective": dear, "full": boundary}[thrift.recompute] / pieces * waiting
        if layout.tensor > 1 and thrift.recompute != "full":
            # Both pairs of matrices of a block keep their input of the whole sequence.
            activations += 2 * boundary / layout.context * (1 - 1 / layout.tensor) * waiting
        if thrift.recompute != "none":
            activations += _AGAIN[thrift.recompute] * kept / pieces
        return activations, kept / pieces

    def _in_flight(self, rank: int, micro_batches: int) -> float:
        """Micro-batches of which a stage keeps activations (Narayanan et al., arXiv 2104.04473)."""
        p, v = self.layout.pipeline, self.layout.stages_per_rank
        if p == 1:
            return 1
        micro_batches = max(micro_batches, p)
        if self.layout.schedule == "gpipe":
            return micro_batches
        if self.layout.schedule == "1f1b":
            return min(micro_batches, p - rank)
        return min(micro_batches, p) * (1 + (p - 1) / (p * v))

    def _loss(self, micro_batch: int) -> float:
        """Hidden states, their gradient and the head's, and one chunk of logits."""
        tokens = micro_batch * self.sequence / self.layout.context
        head = head_of(self.model)
        if head is None:
            return 0.0
        words, width = head.weight.shape[0] / self.layout.tensor, head.weight.shape[1]
        if not self.manner.chunked:
            return 3 * _FP32 * tokens * words
        chunk = min(tokens, default_chunk(int(words), torch.device("cpu")))
        return _FP32 * (2 * tokens * width + words * width + chunk * words)

    def _of_a_block(self, micro_batch: int) -> tuple[float, float, float]:
        """Bytes of a block's activations of a whole micro-batch: all that backward wants, what is dear, its input."""
        if micro_batch not in self._blocks:
            self._blocks[micro_batch] = _count(self.twin, self.manner, micro_batch, self.sequence)
        return self._blocks[micro_batch]


def choose_thrift(model: MemoryModel, budget_bytes: int, allowed: list[Thrift]) -> tuple[Thrift, str]:
    """The cheapest of `allowed` that fits, and why.

    Raises:
        ConfigError: none fits; says by how much, and what would.
    """
    needs = [(thrift, model.need(thrift)) for thrift in allowed]
    largest = max(thrift.micro_batch for thrift in allowed)

    def price(thrift: Thrift) -> float:
        halvings = (largest // thrift.micro_batch).bit_length() - 1
        return float(thrift.cost * _SMALLER_BATCH_COST**halvings)

    fitting = [(price(thrift), thrift, need) for thrift, need in needs if need.total <= budget_bytes]
    if not fitting:
        thrift, need = min(needs, key=lambda entry: entry[1].total)
        raise ConfigError(
            f"memory.budget {_megabytes(budget_bytes)} is too small: even with recompute {thrift.recompute}, offload "
            f"{thrift.offload} and {thrift.micro_batch} sample at once a rank needs {_megabytes(need.total)}, "
            f"{_megabytes(need.total - budget_bytes)} more",
            f"set memory.budget to {_megabytes(need.total)}, or split the model further with layout",
        )
    _, thrift, need = min(fitting, key=lambda entry: entry[0])
    freely = max(needs, key=lambda entry: entry[1].total)[1]
    return thrift, (
        f"a rank needs about {_megabytes(need.total)} of {_megabytes(budget_bytes)} "
        f"(nothing spared, it would be {_megabytes(freely.total)})"
    )


def possible_offloads(device: torch.device, layout: LayoutConfig) -> list[str]:
    """What `device` can keep elsewhere: an accelerator's state goes to the host by way of FSDP alone."""
    sharded = device.type == "cpu" or layout.data > 1
    return [name for name in _OFFLOAD_COST if sharded or name in ("none", "activations")]


def check_offload(offload: str, device: torch.device, layout: LayoutConfig) -> None:
    """Raise ConfigError where `offload` would have no effect."""
    if offload != "auto" and offload not in possible_offloads(device, layout):
        raise ConfigError(
            f"memory.offload: {offload} needs a sharded model on {device.type}",
            "set layout.shard to 2 or more, or memory.offload to activations",
        )


def ways(
    recompute: str,
    offload: str,
    micro_batch: int,
    *,
    smaller: bool,
    offloads: Sequence[str] = tuple(_OFFLOAD_COST),
) -> list[Thrift]:
    """Every combination that `auto`s leave open; `smaller`: micro-batches may be halved; `offloads`: possible ones."""
    recomputes = list(_COST) if recompute == "auto" else [recompute]
    offloads = offloads if offload == "auto" else [offload]
    sizes = [micro_batch]
    while smaller and sizes[-1] > 1:
        sizes.append(sizes[-1] // 2)
    return [Thrift(*combination) for combination in itertools.product(recomputes, offloads, sizes)]


def budget_bytes(written: str) -> int:
    """Of a budget as the configuration has it."""
    return round(float(written[:-2]) * {"MB": 1e6, "GB": 1e9}[written[-2:]])


def _larger(gradients: float, activation_bytes: float) -> tuple[float, float]:
    """Whichever of both takes more; the other is 0."""
    return (gradients, 0.0) if _FP32 * gradients > activation_bytes else (0.0, activation_bytes)


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _megabytes(count: float) -> str:
    if count >= 1e9:
        return f"{count / 1e9:.2f} GB"
    return f"{count / 1e6:.1f} MB" if count < 1e8 else f"{count / 1e6:.0f} MB"


def _count(twin: Any, manner: Manner, micro_batch: int, sequence: int) -> tuple[float, float, float]:
    """Per block of the twin, averaged: bytes that autograd saves, bytes that `selective` keeps, bytes of the input."""
    blocks = find_blocks(twin)
    seen: dict[int, Tensor] = {}  # by storage; held, so that no other gets its number
    inside = [False]

    def keep(tensor: Tensor) -> Tensor:
        if inside[0]:
            seen[tensor.untyped_storage()._cdata] = tensor
        return tensor

    dear: list[int] = []
    boundary: list[int] = []

    def enter(_: nn.Module, inputs: Any, named: dict[str, Any]) -> None:
        hidden = inputs[0] if inputs else named["hidden_states"]
        boundary.append(hidden.numel() * hidden.element_size())
        inside[0] = True

    def leave(*_: Any) -> None:
        inside[0] = False

    handles = [block.register_forward_pre_hook(enter, with_kwargs=True) for block in blocks]
    handles += [block.register_forward_hook(leave) for block in blocks]
    try:
        with FakeTensorMode(allow_non_fake_inputs=True) as shapes, _Dear(dear, inside):
            weights = {shapes.from_tensor(p).untyped_storage()._cdata for p in twin.parameters()}
            ids = torch.zeros(micro_batch, sequence, dtype=torch.int64)
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                output = run_model(body_of(twin), Rows.of(ids, ids, None), manner.takes_positions)
            del output
    finally:
        for handle in handles:
            handle.remove()
    n = len(blocks)
    saved = sum(tensor.untyped_storage().nbytes() for key, tensor in seen.items() if key not in weights)
    return saved / n, (sum(dear) + sum(boundary)) / n, sum(boundary) / n


class _Dear(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, found: list[int], inside: list[bool]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._found, self._inside = found, inside

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if self._inside[0] and function in DEAR:
            outputs = result if isinstance(result, tuple) else (result,)
            self._found.extend(o.numel() * o.element_size() for o in outputs if isinstance(o, Tensor))
        return result
