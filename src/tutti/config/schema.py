"""The one schema: what may stand in a Tutti file, with units, defaults and meaning.

Every section is a strict pydantic model: unknown keys and wrong types are refused, nothing is coerced.
`auto` is legal wherever the machine can choose; `api.py` replaces it by a value and says why.
The reference page in `docs/` is generated from the descriptions below.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from tutti.config.agreement import CooperateConfig, SyncConfig, sync_section
from tutti.config.fields import Auto, Fraction, NonNegative, Positive, Section
from tutti.config.task import (
    DistilConfig,
    RegulariseConfig,
    RememberConfig,
    TaskConfig,
    TuneConfig,
    distil_section,
    remember_section,
    task_section,
    tune_section,
)
from tutti.config.tuned import check_remember, check_tune


class DataConfig(Section):
    """Where the text comes from and how it becomes tokens."""

    source: str | list[str] = Field(
        default="python-stdlib",
        description="`python-stdlib` (the source of the Python standard library), a file, a folder, a glob, "
        "an fsspec URL, or a list of these; labelled examples also `hf:NAME?split=SPLIT`, a data set of the Hugging "
        "Face hub or in its format on this disk. Folders are read recursively for `*.txt`, `*.md`, `*.jsonl`, `*.py`.",
    )
    validation_source: str | list[str] | None = Field(
        default=None,
        description="Text that is validation already; when given, nothing is split off `source`.",
    )
    extra_source: str | list[str] | None = Field(
        default=None,
        description="More labelled examples that are only trained on, none of them kept aside, such as those that "
        "`tutti label` guessed; those whose text is among the others are left out.",
    )
    test_source: str | list[str] | None = Field(
        default=None,
        description="Labelled examples for the final test; when given, nothing is split off `source` for it.",
    )
    format: Literal["auto", "text", "jsonl", "csv", "tsv", "conll", "json", "parquet"] = Field(
        default="auto",
        description="`auto` goes by the file's ending; a text file is one document. All but `text` and `jsonl` are for "
        "labelled examples (see `task`).",
    )
    text_field: str = Field(default="text", description="The field of a JSONL line that holds the text.")
    encoding: str = Field(
        default="utf-8", description="Encoding of text files (`python-stdlib` knows its own)."
    )
    on_bad_encoding: Literal["fail", "skip", "replace"] = Field(
        default="fail",
        description="What to do with a file that does not decode: stop, leave it out, or put U+FFFD.",
    )
    on_empty: Literal["fail", "skip"] = Field(
        default="fail", description="What to do with a labelled example without text: stop, or leave it out."
    )
    deduplicate: bool = Field(
        default=True,
        description="Leave out documents that are exactly equal to an earlier one, and training examples whose text is "
        "kept for validation or test.",
    )
    tokenizer: str = Field(
        default="auto",
        description="`bpe` (byte-level, trained on the text), `characters`, or a Hugging Face tokenizer directory; "
        "`auto`: that of `model.path`, where weights are taken from there, else `bpe`.",
    )
    vocabulary: Positive | Auto = Field(
        default="auto",
        description="Entries of a trained `bpe` vocabulary; `auto` goes by the size of the text.",
    )
    sequence: Positive = Field(default=256, description="Tokens of one training sample.")
    split: Literal["auto", "document", "tail"] = Field(
        default="auto",
        description="`document`: whole documents go to one part by the hash of their content; `tail`: the last "
        "part of every document; `auto`: `document` unless there are fewer than 20 of them.",
    )
    validation: Fraction = Field(default=0.05, description="Share of the text that is kept for validation.")
    test: Fraction = Field(default=0.0, description="Share of the text that is kept for a final test.")
    cache: str = Field(
        default="~/.cache/tutti",
        description="Directory of prepared data, shared among runs; prepared text is found there by its content.",
    )

    @model_validator(mode="after")
    def _shares_leave_something(self) -> DataConfig:
        if self.validation + self.test >= 0.9:
            raise ValueError(
                "validation and test together take 90 % or more of the text; leave more to train on"
            )
        return self


class ModelConfig(Section):
    """What is trained: a size, or a Hugging Face architecture, or a checkpoint."""

    size: str | None = Field(
        default=None,
        pattern=r"^\d+(\.\d+)?[KMB]$",
        description="One dial: about so many parameters (`800K`, `15M`, `1B`); depth, width and heads follow.",
    )
    path: str | None = Field(
        default=None,
        description="A Hugging Face model directory: `config.json`, and weights where there are any.",
    )
    config: dict[str, Any] | None = Field(
        default=None,
        description="A Hugging Face configuration, e.g. `{model_type: llama, hidden_size: 256, …}`; "
        "the vocabulary is set to the tokenizer's.",
    )
    python: str | None = Field(
        default=None, description="The class of a module given to `tutti.fit`; written by Tutti, not by hand."
    )
    from_scratch: bool = Field(
        default=False, description="Take only the architecture from `path`, not its weights."
    )
    dropout: Fraction | None = Field(
        default=None,
        description="Dropout in attention and residuals, where the architecture has it; `null`: none in a "
        "language model, and what the architecture says where labelled examples are learned.",
    )
    seed: NonNegative | None = Field(
        default=None,
        description="What first weights are drawn from; `null`: `train.seed`, and for each of several groups another.",
    )

    @model_validator(mode="after")
    def _one_origin(self) -> ModelConfig:
        given = [name for name in ("size", "path", "config", "python") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"give exactly one of size, path and config (got {' and '.join(given) or 'none'})"
            )
        if self.from_scratch and self.path is None:
            raise ValueError("from_scratch takes the architecture from `path`, which is not given")
        return self


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
        description="The run ends early when so many validations in a row were no better than one before them.",
    )
    batch: Positive | Auto = Field(
        default="auto",
        description="Samples of one step over all workers together; `auto`: 32, and of groups (`task.together`) as "
        "many as make 64 texts.",
    )
    micro_batch: Positive | Auto = Field(
        default="auto",
        description="Samples that a worker computes at once; changes memory and speed, never the result.",
    )
    optimizer: Literal["adamw", "muon"] = Field(
        default="adamw",
        description="`muon` orthogonalises the update of matrices; everything else takes AdamW.",
    )
    learning_rate: Annotated[float, Field(gt=0)] | Auto = Field(
        default="auto", description="Peak learning rate; `auto` goes by model size and the tokens of a step."
    )
    schedule: Literal["cosine", "linear", "wsd", "constant"] = Field(
        default="cosine", description="`wsd`: warm-up, stable, then linear decay over the last fifth."
    )
    warmup: NonNegative | Auto = Field(
        default="auto", description="Steps of linear warm-up; `auto`: 5 %, at most 1000."
    )
    final_learning_rate: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.1, description="Learning rate at the end, as a share of the peak."
    )
    weight_decay: Annotated[float, Field(ge=0)] = Field(
        default=0.1, description="On matrices and embeddings; never on norms and biases."
    )
    layer_decay: Annotated[float, Field(gt=0, le=1)] = Field(
        default=1.0,
        description="The learning rate of each block is this times that of the next one: what a trained model knows in "
        "its first layers changes least. `1`: all learn alike.",
    )
    betas: tuple[Fraction, Fraction] = Field(
        default=(0.9, 0.95), strict=False, description="AdamW's moments."
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
    def _one_length(self) -> TrainConfig:
        if self.layer_decay != 1 and self.optimizer != "adamw":
            raise ValueError(f"layer_decay is for optimizer adamw, not for {self.optimizer}")
        if self.epochs is not None and self.steps != "auto":
            raise ValueError("steps and epochs both say how long the run is; give one of them")
        return self


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


def _layout(value: Any) -> Any:
    """`layout: 1` is short for one rank a replica."""
    return {"shard": value} if isinstance(value, int) and not isinstance(value, bool) else value


def _memory(value: Any) -> Any:
    """`memory: 2GB` is short for a budget."""
    return {"budget": value} if isinstance(value, str) else value


def _model(value: Any) -> Any:
    """`model: 15M` is short for a size, `model: DIR` for a path."""
    if not isinstance(value, str):
        return value
    is_size = re.fullmatch(r"[\d.]+[KMBkmb]", value) is not None
    return {"size": value} if is_size else {"path": value}


class CheckpointConfig(Section):
    """When the run is saved and what is kept."""

    every: Positive | Auto = Field(
        default="auto", description="Steps between saves; `auto`: ten over the run."
    )
    keep: Positive = Field(
        default=2,
        description="Newest checkpoints to keep; the one with the best validation loss stays as well.",
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


class WatchConfig(Section):
    """When somebody is told."""

    stall_seconds: Positive = Field(
        default=30, description="A rank without progress for so long is named, with its stack."
    )
    kill_after_seconds: Positive = Field(
        default=300, description="A rank that has been silent for so long is killed and healed."
    )
    max_restarts: NonNegative = Field(
        default=3, description="How often dead workers are started again before the run gives up."
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


class Config(Section):
    """A Tutti file."""

    name: str = Field(
        default="run",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$",
        description="The run's name: `runs/NAME`.",
    )
    runs: str = Field(default="runs", description="Directory that holds the runs.")
    data: DataConfig = Field(default_factory=DataConfig)
    model: Annotated[ModelConfig, BeforeValidator(_model)] = Field(
        default_factory=lambda: ModelConfig(size="5M"),
        description="A size such as `15M`, a directory, or a mapping.",
    )
    task: Annotated[TaskConfig, BeforeValidator(task_section)] = Field(
        default_factory=TaskConfig, description="What the model is for: a kind of task or a mapping."
    )
    tune: Annotated[TuneConfig, BeforeValidator(tune_section)] = Field(
        default_factory=TuneConfig, description="How much of the model learns: a method or a mapping."
    )
    regularise: RegulariseConfig = Field(default_factory=RegulariseConfig)
    distil: Annotated[DistilConfig, BeforeValidator(distil_section)] = Field(
        default_factory=DistilConfig,
        description="Models that teach this one: a run's directory, several, or a mapping.",
    )
    remember: Annotated[RememberConfig, BeforeValidator(remember_section)] = Field(
        default_factory=RememberConfig,
        description="What a trained model must not forget: a file with examples of it, or a mapping.",
    )
    train: TrainConfig = Field(default_factory=TrainConfig)
    replicas: Positive | Auto = Field(
        default="auto",
        description="Copies of the model, each on its own worker(s); `auto`: as many as fit the cores or devices.",
    )
    each: list[ReplicaConfig] = Field(
        default_factory=list,
        description="Unequal machines: what is particular to each replica, e.g. `[{precision: bf16}, {}]` for two.",
    )
    layout: Annotated[LayoutConfig, BeforeValidator(_layout)] = Field(
        default_factory=LayoutConfig, description="How one copy is split; `1`: not at all."
    )
    memory: Annotated[MemoryConfig, BeforeValidator(_memory)] = Field(
        default_factory=MemoryConfig,
        description="What a rank may hold: a budget such as `2GB`, or a mapping.",
    )
    sync: Annotated[SyncConfig, BeforeValidator(sync_section)] = Field(
        default_factory=SyncConfig, description="How copies agree: a policy's name or a mapping."
    )
    groups: Positive | list[dict[str, Any]] = Field(
        default=1,
        description="Models that teach each other while they train, each with replicas of its own: how many, or a list "
        "of what each has of its own, such as `[{model: 1M}, {model: 4M}]`.",
    )
    cooperate: CooperateConfig = Field(default_factory=CooperateConfig)
    search: dict[str, Any] = Field(
        default_factory=dict,
        description="What `tutti tune` tries: other keys by their dotted names, each with a range (`1e-5..1e-3`, or "
        "`{low: 1e-5, high: 1e-3, log: true}`) or a list to choose from, such as `{train.learning_rate: 1e-5..1e-3, "
        "tune.rank: [4, 8, 16]}`. `log`: on a logarithmic scale; left out: where high is 10 · low or more. `{}`: what "
        "suits the task.",
        json_schema_extra={
            "additionalProperties": {
                "anyOf": [
                    {"type": "string", "pattern": r"^.+\.\..+$"},
                    {"type": "array", "minItems": 2},
                    {
                        "type": "object",
                        "properties": {
                            "low": {"type": "number"},
                            "high": {"type": "number"},
                            "log": {"type": "boolean"},
                        },
                        "required": ["low", "high"],
                        "additionalProperties": False,
                    },
                ]
            }
        },
    )
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig)
    evaluate: EvaluateConfig = Field(default_factory=EvaluateConfig)
    watch: WatchConfig = Field(default_factory=WatchConfig)

    @model_validator(mode="after")
    def _combinations(self) -> Config:
        if self.data.extra_source is not None and not self.task.labelled:
            raise ValueError("data.extra_source is for labelled examples; list all texts in data.source")
        if self.regularise != RegulariseConfig() and not self.task.asks:
            raise ValueError("regularise is for models that are asked (see task.kind), so far")
        own = self.regularise
        if (own.word_drop or own.word_swap) and self.task.kind != "classify":
            raise ValueError(
                f"regularise.word_drop and regularise.word_swap are for task.kind classify: those of {self.task.kind} "
                "are about the places of words"
            )
        if own.label_smoothing and self.task.kind == "answer":
            raise ValueError(
                "regularise.label_smoothing has no meaning for task.kind answer, whose labels are places"
            )
        if self.distil.teachers and not self.task.asks:
            raise ValueError(
                "distil is for models that are asked (see task.kind); writers have `groups`, so far"
            )
        if self.task.kind == "embed" and (own != RegulariseConfig() or self.distil.teachers):
            raise ValueError("regularise and distil are not for task.kind embed, so far")
        if self.task.contrast:
            self._contrast()
        if self.distil.hidden and self.task.kind == "recommend":
            raise ValueError("distil.hidden is for encoders, not for task.kind recommend")
        if self.distil.teachers and (own.r_drop or own.adversarial):
            raise ValueError("distil, regularise.r_drop and regularise.adversarial exclude each other")
        check_tune(self)
        check_remember(self)
        if self.train.average and self.sync.policy == "server":
            raise ValueError("train.average is not for sync.policy server, where the optimizer is elsewhere")
        if self.sync.implementation == "ddp" and self.layout.ranks > 1:
            raise ValueError(
                "sync.implementation: ddp needs a whole copy on every rank, but layout splits one over "
                f"{self.layout.ranks}; use implementation: buckets"
            )
        if self.sync.policy == "auto" and self.sync.implementation != "auto":
            raise ValueError(
                "sync.implementation belongs to allreduce, which sync.policy: auto may not choose"
            )
        if self.sync.policy != "allreduce" and self.sync.implementation != "auto":
            raise ValueError(
                f"sync.implementation belongs to allreduce; policy {self.sync.policy} has only one"
            )
        if isinstance(self.replicas, int) and self.sync.min_replicas > self.replicas:
            raise ValueError(
                f"sync.min_replicas is {self.sync.min_replicas}, but there are only {self.replicas} replicas"
            )
        if self.each and len(self.each) != self.replicas:
            raise ValueError(
                f"each lists {len(self.each)} replicas, but replicas is {self.replicas}: one entry for each of them"
            )
        batch = self.train.batch
        if isinstance(self.replicas, int) and batch != "auto" and batch < self.replicas * self.layout.shard:
            raise ValueError(
                f"train.batch is {batch}: fewer samples than the "
                f"{self.replicas * self.layout.shard} workers that share them out"
            )
        return self

    def _contrast(self) -> None:
        """What cannot go with `task.contrast`, whose head is fitted when the rest has learned."""
        own = self.regularise
        if own.label_smoothing or own.r_drop or own.adversarial or self.distil.teachers:
            raise ValueError(
                "task.contrast compares texts, so regularise.label_smoothing, regularise.r_drop, "
                "regularise.adversarial and distil, which are about what is said of one text, are not for it"
            )
        if self.remember.ewc:
            raise ValueError("remember.ewc holds a head too, which task.contrast makes anew; set one of them")
        if self.tune.method not in ("full", "last") or self.tune.quantize is not None:
            raise ValueError(
                "task.contrast fits the head when the rest has learned; tune.method must be full or last, without "
                "tune.quantize"
            )

    def of_replica(self, number: int) -> Config:
        """The configuration that replica `number` goes by."""
        if not self.each:
            return self
        update = self.each[number].model_dump(include={"precision", "micro_batch"}, exclude_none=True)
        return self.model_copy(update={"train": self.train.model_copy(update=update)})
