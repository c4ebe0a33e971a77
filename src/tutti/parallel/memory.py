"""What a rank's tensors take at the peak of a step, before anything is trained.

    peak = largest over the moments of a step of
           parameters + gradients + optimizer + kept + gathered + activations that wait + what is being computed

Parameters, gradients and optimizer follow the ZeRO formulas (Rajbhandari et al., arXiv 1910.02054), here with fp32
masters and no low-precision copies but those that FSDP gathers: 4 + 4 + 8 bytes each for AdamW, every term divided
by what shares it out. Adafactor keeps a number for each row and column, and steps through a copy of one gradient. What
the policy keeps of the model (`sync.held`) and an average of the weights come on top. What a block keeps and needs is
weighed on shapes (`weigh`). How good it all is: benchmarks/memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tutti.config.agreement import SyncConfig
from tutti.config.layout import LayoutConfig
from tutti.models import find_blocks
from tutti.parallel.stages import first_blocks
from tutti.parallel.weigh import BlockBytes, weigh_block
from tutti.sync.held import held_by
from tutti.tasks import Manner
from tutti.tasks.chunked_loss import default_chunk
from tutti.tasks.manner import head_of

_FP32 = 4
#: Tensors that an optimizer keeps of a parameter.
_MOMENTS = {"adamw": 2, "muon": 1}


@dataclass(frozen=True)
class Thrift:
    """A way to need less memory, and how many samples are computed at once."""

    recompute: str
    offload: str
    micro_batch: int


@dataclass(frozen=True)
class Need:
    """Bytes of one rank at one moment of a step. kept: by the policy, and of the average of the weights; activations:
    what waits for backward; working: what is computed."""

    moment: str
    parameters: float
    gradients: float
    optimizer: float
    kept: float
    gathered: float
    activations: float
    working: float

    @property
    def total(self) -> int:
        """All of it."""
        held = self.parameters + self.gradients + self.optimizer + self.kept
        return round(held + self.gathered + self.activations + self.working)


@dataclass(frozen=True)
class _Part:
    """Of one rank: how many blocks; bytes of parameters: all, the largest block, and outside the blocks; and of the
    optimizer's `state`."""

    blocks: int
    parameters: float
    block: float
    outside: float
    state: float
    first: bool
    last: bool


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
    #: Of arithmetic, where that is not fp32.
    dtype: torch.dtype | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    #: How the replicas agree; decided.
    sync: SyncConfig = field(default_factory=SyncConfig)
    #: Whether the average of the weights is kept.
    average: bool = False
    _blocks: dict[int, BlockBytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._policy = held_by(self.sync, self.replicas)

    def need(self, thrift: Thrift) -> Need:
        """At the peak with `thrift`, of the rank that needs most."""
        ranks = range(self.layout.pipeline)
        return max(
            (need for rank in ranks for need in self._moments(thrift, rank)), key=lambda need: need.total
        )

    def _moments(self, thrift: Thrift, rank: int) -> Iterator[Need]:
        """Of pipeline rank `rank`."""
        part, layout, block = self._part(rank), self.layout, self._weigh(thrift.micro_batch)
        micro_batches = -(-self.samples // thrift.micro_batch)
        held = self._held(thrift, part, micro_batches)
        gathered = self._gathered(part)
        waiting = self._waiting(thrift, block)
        before = block.before - (block.boundary if self._in_files(thrift) else 0.0)
        # What follows the last block, whose output is not elsewhere.
        end = block.after + (block.boundary if self._in_files(thrift) else 0.0) if part.last else 0.0
        around = before / self._pieces
        in_flight = self._in_flight(rank, micro_batches)
        all_wait = in_flight * (part.blocks * waiting + around)
        # Gradients come as activations go, unless there are some already: of an earlier micro-batch, or in the buffers
        # that replicas sum up.
        none_yet = not self._policy.buffers and (
            micro_batches == 1 or (layout.pipeline > 1 and layout.schedule == "gpipe")
        )
        earlier = 0.0 if none_yet else held["gradients"]
        loss = self._loss(thrift.micro_batch) if part.last else (0.0, 0.0)
        again = self._backward(thrift, block)

        def need(moment: str, activations: float, working: float, **other: float) -> Need:
            values = held | {
                "gathered": gathered.get(moment, 0.0),
                "activations": activations,
                "working": working,
            }
            return Need(moment, **(values | other))

        yield need("forward", all_wait - waiting, block.running / self._pieces, gradients=earlier)
        yield need("loss", all_wait + end / self._pieces, loss[0], gradients=earlier)
        head = loss[1] if earlier == 0 else 0.0
        yield need("backward", all_wait - waiting, again + loss[1] - head, gradients=earlier + head)
        # The last block of the last backward pass; of gpipe's first one, the other micro-batches still wait.
        rest = (in_flight - 1) * (part.blocks * waiting + around)
        yield need("end of backward", rest + around, again)
        shared = part.parameters / layout.data
        yield need("exchange", 0.0, self._policy.exchanging / _FP32 * shared)
        if (
            self._policy.served
        ):  # a copy that is saved has the state as well: a message, and what is read out of it
            state = part.state
            yield need("save", 0.0, 2 * (shared + state), optimizer=state)
        elif self.optimizer == "adafactor":
            yield need("step", 0.0, self._largest() / layout.data)

    def _held(self, thrift: Thrift, part: _Part, micro_batches: int) -> dict[str, float]:
        """What there is at every moment, once a step has been made."""
        layout = self.layout
        shared = part.parameters / layout.data
        whole = layout.data > 1 and layout.zero == 1 and micro_batches > 1
        gradients = part.parameters + shared if whole else shared
        if self._policy.buffers and layout.data * layout.tensor > 1:
            gradients += shared  # pieces are copied into the buffers that replicas sum up
        in_files = thrift.offload == "all"
        if in_files and layout.data == 1 and not self._policy.buffers:
            gradients = self._largest()  # moved into a file when it is done
        # Made of the parameters, so it is where an accelerator's are; no file of a CPU takes it.
        on_host = self.device.type != "cpu" and self._state_elsewhere(thrift)
        kept = self._policy.kept / _FP32 + self.average
        return {
            "parameters": 0.0 if in_files else shared,
            "gradients": gradients,
            "optimizer": 0.0 if self._policy.served or self._state_elsewhere(thrift) else part.state,
            "kept": 0.0 if on_host else kept * shared,
        }

    def _gathered(self, part: _Part) -> dict[str, float]:
        """FSDP's whole copies: of what lies outside the blocks, of the block at work and the next; in backward the
        gradients of a block as well, and the buffer from which they are shared out."""
        layout = self.layout
        if layout.data == 1:
            return dict.fromkeys(("forward", "loss", "backward", "end of backward"), 0.0)
        # Copies have the type of arithmetic; gradients are summed in fp32.
        scale = 1.0 if self.dtype is None else self.dtype.itemsize / _FP32
        kept = part.parameters if layout.zero < 3 else part.outside
        passing = 0.0 if layout.zero < 3 else 2 * part.block
        return {
            "forward": scale * (kept + passing),
            "loss": scale * kept,
            "backward": scale * (kept + passing) + 2 * part.block,
            "end of backward": scale * (kept + passing) + 2 * max(part.block, part.outside),
        }

    def _part(self, rank: int) -> _Part:
        """What pipeline rank `rank` has of the model."""
        layout = self.layout
        blocks = find_blocks(self.model)
        sizes = [_size(block) for block in blocks]
        head, table = head_of(self.model), self.model.get_input_embeddings()
        starts = first_blocks(self.model, layout)
        ends = [*starts[1:], len(blocks)]
        own = [
            number
            for stage in range(rank, len(starts), layout.pipeline)
            for number in range(starts[stage], ends[stage])
        ]
        first, last = rank == 0, rank == layout.pipeline - 1
        inside = {id(parameter) for block in blocks for parameter in block.parameters()}
        others = [parameter for parameter in self.model.parameters() if id(parameter) not in inside]
        if layout.pipeline > 1:
            others = list(table.parameters()) if first else []
            others += head.parameters() if last and head is not None else []
        outside = sum(_FP32 * parameter.numel() / self._cut_of(parameter) for parameter in others)
        scale = _FP32 / layout.tensor  # norms of blocks stay whole, but are next to nothing
        parameters = scale * sum(sizes[number] for number in own) + outside
        state = parameters / layout.data * _MOMENTS.get(self.optimizer, 0)
        if self.optimizer == "adafactor":
            held = [parameter for number in own for parameter in blocks[number].parameters()]
            state = _FP32 * _factored([*held, *others], layout.data)
        return _Part(len(own), parameters, scale * max(sizes), outside, state, first, last)

    def _cut_of(self, outside: Tensor) -> int:
        """Into how many pieces `tensor` cuts a parameter outside the blocks: embedding and head alone, by words."""
        head, table = head_of(self.model), self.model.get_input_embeddings()
        in_head = head is not None and any(outside is parameter for parameter in head.parameters())
        in_table = outside is table.weight
        stays = in_head and not self.manner.chunked  # also where it is the table as well
        divisible = table.weight.shape[0] % self.layout.tensor == 0
        return self.layout.tensor if divisible and (in_head or in_table) and not stays else 1

    @property
    def _pieces(self) -> int:
        """Ranks that share out the tokens of a sample."""
        return self.layout.context * self.layout.tensor

    @staticmethod
    def _in_files(thrift: Thrift) -> bool:
        """Whether what waits for backward is kept elsewhere; what `selective` keeps is not."""
        return thrift.offload in ("activations", "all") and thrift.recompute != "selective"

    def _state_elsewhere(self, thrift: Thrift) -> bool:
        """Whether the optimizer's state is; of Adafactor nothing is worth a file."""
        there = thrift.offload in ("optimizer", "all")
        return there and (self.optimizer != "adafactor" or self.device.type != "cpu")

    def _waiting(self, thrift: Thrift, block: BlockBytes) -> float:
        """Bytes of a block that wait for backward."""
        if thrift.recompute == "selective":
            scattered = 2 * block.boundary / self._pieces if self.layout.tensor > 1 else 0.0
            return block.dear / self._pieces + scattered + self._exchanged(block)
        if self._in_files(thrift):
            return 0.0
        if thrift.recompute == "full":
            return block.boundary / self._pieces
        return block.kept / self._pieces + self._exchanged(block)

    def _backward(self, thrift: Thrift, block: BlockBytes) -> float:
        """Peak of a block's backward pass, with what it kept or computed again."""
        needed = block.backward
        if thrift.recompute == "none" and self._in_files(thrift):
            needed -= block.kept
        return needed / self._pieces + self._exchanged(block)

    def _exchanged(self, block: BlockBytes) -> float:
        """What splitting a block adds. tensor: both pairs of matrices keep their input of all tokens. context:
        attention's output is kept before and after it is swapped back."""
        whole = 2 * block.boundary / self.layout.context * (1 - 1 / self.layout.tensor)
        return whole + (block.boundary / self._pieces if self.layout.context > 1 else 0.0)

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

    def _loss(self, micro_batch: int) -> tuple[float, float]:
        """What the loss works with, and the head's gradient, which is there when it is done."""
        tokens = micro_batch * self.sequence / self.layout.context
        head = head_of(self.model)
        if head is None:
            return 0.0, 0.0
        words, width = head.weight.shape[0] / self._cut_of(head.weight), head.weight.shape[1]
        gradient = _FP32 * words * width
        if not self.manner.chunked:
            return 3 * _FP32 * tokens * words + gradient, gradient
        chunk = min(tokens, default_chunk(int(words), self.device))
        # The gradient of the hidden states, a chunk of logits and of their product; logits twice where the products
        # are not fp32.
        low = 0.0 if self.dtype is None else self.dtype.itemsize * chunk * words
        return _FP32 * (tokens * width + chunk * (words + width)) + low + gradient, gradient

    def _largest(self) -> float:
        """Bytes of the largest matrix."""
        inside = {id(p) for block in find_blocks(self.model) for p in block.parameters()}
        largest: float = max(
            _FP32 * p.numel() / (self.layout.tensor if id(p) in inside else self._cut_of(p))
            for p in self.model.parameters()
        )
        return largest

    def _weigh(self, micro_batch: int) -> BlockBytes:
        if micro_batch not in self._blocks:
            sharded = self.dtype is not None and self.layout.data > 1
            self._blocks[micro_batch] = weigh_block(
                self.twin, self.manner, micro_batch, self.sequence, self.dtype, cast=sharded
            )
        return self._blocks[micro_batch]


def _factored(parameters: Iterable[Tensor], data: int) -> float:
    """Numbers that Adafactor keeps of `parameters` on one of `data` ranks, which share out rows. What tensor
    parallelism divides besides is next to nothing."""
    kept = 0.0
    for parameter in parameters:
        numbers = parameter.numel()
        if parameter.ndim < 2:
            kept += numbers / data
        else:
            kept += numbers / parameter.shape[-1] / data + numbers / parameter.shape[-2]
    return kept


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
