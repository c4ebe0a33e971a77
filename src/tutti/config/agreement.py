"""How copies agree, and how groups of them teach each other: the sections `sync` and `cooperate`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from tutti.config.fields import Auto, Fraction, NonNegative, Positive, Section

PolicyName = Literal["allreduce", "local_sgd", "diloco", "gossip", "server"]
CodecName = Literal["fp32", "fp16", "bf16", "int8", "int4", "topk", "powersgd"]


class SyncConfig(Section):
    """How the copies agree."""

    policy: PolicyName | Auto = Field(
        default="allreduce",
        description="`allreduce`: every step; `local_sgd`: the mean of the weights every `every` steps; `diloco`: then "
        "a step of an outer optimizer; `gossip`: with one neighbour after every step, with all every `every` steps; "
        "`server`: a parameter server steps by the gradients that replicas send. `auto`: what suits the links and the "
        "step time that are measured before the run; `codec` and `every` are `auto` then, unless they are given.",
    )
    codec: CodecName | Auto = Field(
        default="fp32",
        description="What is sent: numbers of 32, 16, 8 or 4 bits; `topk`: the largest few; `powersgd`: thin matrices. "
        "What is lost is sent later (error feedback), except by the first three. `auto`: by measurement.",
    )
    density: Annotated[float, Field(gt=0, le=1)] = Field(
        default=1 / 64, description="`topk`: the share of numbers that is sent, of every 4096."
    )
    value_bits: Literal[16, 2] = Field(default=16, description="`topk`: bits of a value.")
    matrix_rank: Positive = Field(default=4, description="`powersgd`: columns of the thin matrices.")
    feedback_decay: Annotated[float, Field(gt=0, le=1)] = Field(
        default=1.0, description="Error feedback: how much of what is owed is still owed after an exchange."
    )
    then: Literal["zstd"] | None = Field(
        default=None,
        description="`zstd`: compress payloads of int8, int4 and topk further, while that shrinks them.",
    )
    implementation: Literal["auto", "buckets", "ddp"] = Field(
        default="auto",
        description="How `allreduce` is carried out: Tutti's overlapped buckets or torch's DDP.",
    )
    topology: Literal["hierarchical", "flat"] = Field(
        default="hierarchical",
        description="`hierarchical`: where several replicas share a machine and there are several machines, sums are "
        "made inside each machine first, and only the results cross the network; `flat`: among all alike.",
    )
    bucket_mb: Annotated[float, Field(gt=0)] = Field(
        default=8.0, description="Size of a gradient bucket in MB (10^6 bytes)."
    )
    every: Positive | Auto = Field(
        default=50,
        description="`local_sgd`, `diloco`, `gossip`: steps of a round; `auto`: by measurement.",
    )
    synchronous_steps: NonNegative = Field(
        default=0,
        description="`local_sgd`, `diloco`, `gossip`: so many steps are made as by `allreduce` before the first round.",
    )
    outer_learning_rate: Annotated[float, Field(gt=0)] | Auto = Field(
        default="auto",
        description="`diloco`: outer SGD; `auto`: 1 - outer_momentum ÷ 3, so 0.7 in a long run.",
    )
    outer_momentum: Fraction | Auto = Field(
        default="auto",
        description="`diloco`: Nesterov momentum of the outer SGD; `auto`: 0.9 where there are 100 rounds or more, "
        "else what builds up over a tenth of them.",
    )
    fragments: Positive = Field(
        default=1, description="`diloco`: the weights take turns in so many parts (streaming)."
    )
    overlap: Annotated[int, Field(ge=0)] = Field(
        default=0,
        description="`diloco`: steps that go on while a fragment is exchanged. `allreduce`, 1: the next step is "
        "computed while gradients travel, so each step is made with the gradient of the one before.",
    )
    merge: Fraction = Field(
        default=0.5,
        description="`diloco` with overlap: how much of what was done meanwhile stays beside what was agreed on.",
    )
    shares: Literal["measured", "even"] = Field(
        default="measured",
        description="How the samples of a step, or the local steps of a round, are divided: by the replicas' measured "
        "speed, or evenly, which gives the same bits in every run.",
    )
    membership: Literal["auto", "elastic", "fixed"] = Field(
        default="auto",
        description="Whether replicas may come and go while the run goes on, or one that dies restarts them all.",
    )
    min_replicas: Positive = Field(
        default=1, description="Elastic membership: go on with at least so many live replicas."
    )
    staleness: NonNegative | Literal["unbounded"] = Field(
        default=0,
        description="`server`: 0: it waits for the gradients of all and steps once; N: it steps by each, and a replica "
        "waits while it is more than N pushes ahead of the slowest; `unbounded`: nobody waits.",
    )
    delay_compensation: Annotated[float, Field(ge=0)] | Auto = Field(
        default="auto",
        description="`server`: λ of DC-ASGD, which corrects gradients for what others changed meanwhile; `auto`: 0.04, "
        "and 0 with `staleness: 0`.",
    )

    @model_validator(mode="after")
    def _delay(self) -> SyncConfig:
        if self.policy != "server" and (self.staleness != 0 or self.delay_compensation != "auto"):
            raise ValueError(
                f"staleness and delay_compensation belong to policy server, not to {self.policy}"
            )
        if self.staleness == 0 and self.delay_compensation not in ("auto", 0):
            raise ValueError(
                "delay_compensation corrects delayed gradients; with staleness: 0 there are none"
            )
        return self

    @model_validator(mode="after")
    def _fragments(self) -> SyncConfig:
        if self.policy in ("diloco", "auto"):
            return self
        if self.fragments > 1:
            raise ValueError(f"fragments belong to policy diloco, not to {self.policy}")
        if self.merge != SyncConfig.model_fields["merge"].default:
            raise ValueError(f"merge belongs to policy diloco, not to {self.policy}")
        return self

    @model_validator(mode="after")
    def _predictable(self) -> SyncConfig:
        late = self.policy == "allreduce" and self.overlap
        if self.undecided and (late or self.policy in ("server", "gossip")):
            what = "allreduce with overlap" if late else f"policy {self.policy}"
            raise ValueError(
                f"what {what} takes is not predicted, so nothing of it can be auto: say codec"
                + ("" if late else " and every")
            )
        return self

    @model_validator(mode="before")
    @classmethod
    def _auto_is_for_the_rest(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("policy") == "auto":
            return {"codec": "auto", "every": "auto"} | values
        return values

    @property
    def undecided(self) -> bool:
        """Whether something is to be chosen by measurement."""
        rounds = self.policy != "allreduce"
        return "auto" in (self.policy, self.codec) or (rounds and self.every == "auto")


class CooperateConfig(Section):
    """How `groups` teach each other: co-distillation."""

    exchange: Literal["predictions", "weights"] = Field(
        default="predictions",
        description="What groups tell each other. `predictions`: the likeliest tokens at every target that they "
        "computed; groups take the samples in rotated order, so nothing is computed twice. `weights`: the model, "
        "which the others run on their own samples.",
    )
    every: Positive = Field(
        default=50,
        description="`weights`: steps from one to the next. `predictions`: steps from one group's meeting a sample to "
        "the next one's; they wait in memory for so long.",
    )
    burn_in: NonNegative = Field(
        default=100, description="Steps before anything is learnt from others: novices teach little."
    )
    weight: Annotated[float, Field(gt=0)] = Field(
        default=0.5, description="Of T² · KL(others ‖ own) beside the cross-entropy."
    )
    temperature: Annotated[float, Field(gt=0)] = Field(
        default=1.0, description="T: above 1, what is unlikely counts for more."
    )
    top: Positive = Field(
        default=8, description="`predictions`: tokens of each; all others are sent as one sum."
    )
    max_age: Positive | Auto = Field(
        default="auto",
        description="Own steps after which what another group said no longer counts; `auto`: 2 · groups · `every`.",
    )


def sync_section(value: Any) -> Any:
    """`sync: diloco` is short for `{policy: diloco}`."""
    return {"policy": value} if isinstance(value, str) else value
