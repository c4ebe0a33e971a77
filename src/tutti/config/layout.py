"""How one copy of the model is split over ranks, what each may hold, and where replicas are unlike."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from tutti.config.fields import Positive, Section


class LayoutConfig(Section):
    """How one copy of the model is split over ranks."""

    shard: Positive = Field(
        default=1,
        description="Ranks that share out parameters, gradients and optimizer, each computing samples of its own "
        "(FSDP2).",
    )
    tensor: Positive = Field(
        default=1,
        description="Ranks that compute each matrix product together, and each a piece of the sequence in between.",
    )
    pipeline: Positive = Field(
        default=1, description="Ranks that hold one run of layers each and pass activations on."
    )
    context: Positive = Field(
        default=1,
        description="Ranks that hold one piece of each sequence; they share out the parameters as `shard` does.",
    )
    zero: Literal[1, 2, 3] = Field(
        default=3,
        description="What `shard` and `context` share out: 3: everything; 2: parameters stay whole between forward and "
        "backward; 1: gradients as well stay whole until the step.",
    )
    schedule: Literal["1f1b", "gpipe", "interleaved"] = Field(
        default="1f1b",
        description="`pipeline`: `gpipe` (all forward, then all backward), `1f1b` (as few activations as there are "
        "stages), `interleaved` (1f1b with several runs of layers on each rank: shorter bubbles, more traffic).",
    )
    stages_per_rank: Positive = Field(default=2, description="`interleaved`: runs of layers on each rank.")

    @property
    def ranks(self) -> int:
        """Ranks of one replica."""
        return self.pipeline * self.data * self.tensor

    @property
    def data(self) -> int:
        """Ranks over which FSDP shares out the parameters."""
        return self.shard * self.context

    @property
    def sizes(self) -> dict[str, int]:
        """Ranks of every dimension that splits, from the least to the most talkative."""
        names = ("pipeline", "shard", "context", "tensor")
        return {name: size for name in names if (size := getattr(self, name)) > 1}


class MemoryConfig(Section):
    """How a rank makes do with little memory, at the price of time."""

    budget: str | None = Field(
        default=None,
        pattern=r"^\d+(\.\d+)?(MB|GB)$",
        description="What the tensors of one rank may take (`500MB`, `2GB`; 10^6 and 10^9 bytes). The cheapest of the "
        "ways below, and of smaller micro-batches, that fits is taken wherever `auto` leaves the choice.",
    )
    recompute: Literal["auto", "none", "selective", "full"] = Field(
        default="auto",
        description="What backward computes again instead of keeping it: `full`: whole blocks; `selective`: all but "
        "matrix products and attention. `auto`: `none`, unless the budget asks for more.",
    )
    offload: Literal["auto", "none", "activations", "optimizer", "all"] = Field(
        default="auto",
        description="What is kept elsewhere until it is needed: an accelerator's in the host's memory, a CPU's in "
        "files of the run that are mapped into memory. `all`: activations, optimizer, parameters and gradients.",
    )


class ReplicaConfig(Section):
    """What is particular to one replica; what is not said is as for all."""

    precision: Literal["fp32", "bf16"] | None = Field(default=None, description="As `train.precision`.")
    micro_batch: Positive | None = Field(
        default=None, description="As `train.micro_batch`: what its memory holds."
    )
    device: Literal["cpu"] | None = Field(
        default=None, description="`cpu`: on the processor, whatever accelerator there is."
    )


def layout_section(value: Any) -> Any:
    """`layout: 1` is short for one rank a replica."""
    return {"shard": value} if isinstance(value, int) and not isinstance(value, bool) else value


def memory_section(value: Any) -> Any:
    """`memory: 2GB` is short for a budget."""
    return {"budget": value} if isinstance(value, str) else value
