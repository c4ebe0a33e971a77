"""How it learns, what is saved and measured meanwhile, and when somebody is told."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from tutti.config.fields import Auto, Fraction, NonNegative, Positive, Section


class BatchWarmup(Section):
    """Fewer samples a step at first."""

    start: Positive = Field(description="Samples of the first step.")
    steps: Positive = Field(description="Steps over which the batch grows to `train.batch`.")


class TrainConfig(Section):
    """The optimizer, its schedule and the arithmetic."""

    steps: Positive | Auto = Field(
        default="auto",
        description="Optimizer steps of the whole run; `auto`: as many as `epochs` take, else 1000 for a language "
        "model, and by their number for labelled examples.",
    )
    epochs: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="How often the run goes through all training samples, instead of `steps`."
    )
    patience: Positive | None = Field(
        default=None,
        description="The run ends early when so many validations in a row were no better than one before them, and "
        "hands on the model of that one.",
    )
    batch: Positive | Auto = Field(
        default="auto",
        description="Samples of one step over all workers together; `auto`: 32, and of groups (`task.together`) as "
        "many as make 64 texts.",
    )
    batch_warmup: BatchWarmup | None = Field(
        default=None,
        description="The batch grows: `{start: 8, steps: 500}` begins with 8 samples and takes one more now and then, "
        "until `batch` from step 501 on; `null`: it is as large from the first step. With `sync: allreduce`.",
    )
    micro_batch: Positive | Auto = Field(
        default="auto",
        description="Samples that a worker computes at once; changes memory and speed, never the result.",
    )
    optimizer: Literal["adamw", "adafactor", "muon"] = Field(
        default="adamw",
        description="`muon` orthogonalises the update of matrices; everything else takes AdamW. `adafactor` keeps next "
        "to no state: a number for each row and column.",
    )
    learning_rate: Annotated[float, Field(gt=0)] | Auto = Field(
        default="auto",
        description="Peak learning rate, of `adafactor` relative to the size of the weights; `auto` goes by model size "
        "and the tokens of a step.",
    )
    schedule: Literal["cosine", "linear", "wsd", "constant", "rising"] = Field(
        default="cosine",
        description="`wsd`: warm-up, stable, then linear decay over the last fifth. `rising`: from "
        "`final_learning_rate` times the peak exponentially up to it, which is how `tutti find-rate` looks for one.",
    )
    warmup: NonNegative | Auto = Field(
        default="auto", description="Steps of linear warm-up; `auto`: 5 %, at most 1000."
    )
    final_learning_rate: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.1,
        description="Learning rate at the end (of a rising one: at the beginning), as a share of the peak.",
    )
    weight_decay: Annotated[float, Field(ge=0)] = Field(
        default=0.1, description="On matrices and embeddings; never on norms and biases."
    )
    layer_decay: Annotated[float, Field(gt=0, le=1)] = Field(
        default=1.0,
        description="The learning rate of each block is this times that of the next one: what a trained model knows in "
        "its first layers changes least. `1`: all learn alike.",
    )
    head_rate: Annotated[float, Field(gt=0)] | Auto = Field(
        default="auto",
        description="How many times the learning rate the head takes, of models that are asked about labels or places. "
        "`auto`: 10 (to 0.003 at most) where it is new and stands on a trained model that learns whole, which else "
        "waits for it.",
    )
    betas: tuple[Fraction, Fraction] = Field(
        default=(0.9, 0.95), strict=False, description="AdamW's moments; the first is Muon's momentum."
    )
    clip: Annotated[float, Field(gt=0)] | None = Field(
        default=1.0, description="Largest norm of the whole gradient."
    )
    average: Fraction = Field(
        default=0.0,
        description="Weights are averaged over about this share of the run, and the average is what is validated and "
        "handed on; 0: not at all.",
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        default="auto",
        description="Arithmetic of matrix products; master weights stay fp32. `auto`: what is measured fastest here.",
    )
    compile: bool = Field(default=False, description="torch.compile the model; falls back with a message.")
    seed: NonNegative = Field(
        default=0, description="Everything random follows from it: weights, order, dropout."
    )

    @model_validator(mode="after")
    def _go_together(self) -> TrainConfig:
        if self.layer_decay != 1 and self.optimizer == "muon":
            raise ValueError("layer_decay is for optimizer adamw and adafactor, not for muon")
        if self.optimizer == "adafactor" and self.betas != TrainConfig.model_fields["betas"].default:
            raise ValueError("betas are for optimizer adamw and muon; adafactor has no momentum")
        if self.schedule == "rising" and self.final_learning_rate == 0:
            raise ValueError(
                "schedule rising begins with final_learning_rate times the peak, which cannot be 0 then"
            )
        if self.epochs is not None and self.steps != "auto":
            raise ValueError("steps and epochs both say how long the run is; give one of them")
        return self


class CheckpointConfig(Section):
    """When the run is saved and what is kept."""

    every: Positive | Auto = Field(
        default="auto", description="Steps between saves; `auto`: ten over the run."
    )
    keep: Positive = Field(
        default=2,
        description="Newest checkpoints to keep; the best of those that were saved (by the main metric of a task "
        "that has one, else by validation loss) stays as well.",
    )


class EvaluateConfig(Section):
    """What is measured on text that the model has not seen."""

    every: Positive | Auto = Field(
        default="auto", description="Steps between validations; `auto`: ten over the run."
    )
    samples: Positive | Auto = Field(
        default="auto", description="Validation samples a time; `auto`: all, at most 256."
    )
    prompts: list[str] = Field(
        default_factory=list, description="Prompts that the model continues at the end."
    )
    new_tokens: Positive = Field(default=64, description="Tokens of a continuation.")
    beams: Positive = Field(
        default=1,
        description="Texts that a model follows side by side when it translates, summarises or answers, of which the "
        "likeliest is taken (beam search); `1`: always the likeliest token.",
    )


class WatchConfig(Section):
    """When somebody is told."""

    stall_seconds: Positive = Field(
        default=30, description="A rank without progress for so long is named, with its stack."
    )
    kill_after_seconds: Positive = Field(
        default=300,
        description="A rank that hangs for so long is killed and healed; in a phase that may take long, after ten "
        "times as long.",
    )
    max_restarts: NonNegative = Field(
        default=3, description="How often dead workers are started again before the run gives up."
    )
