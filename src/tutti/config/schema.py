"""The one schema: what may stand in a Tutti file, with units, defaults and meaning.

Every section is a strict pydantic model: unknown keys and wrong types are refused, nothing is coerced.
`auto` is legal wherever the machine can choose; `api.py` replaces it by a value and says why.
Each section stands in a module beside this one; the reference page in `docs/` is made from their descriptions.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from tutti.config.agreement import CooperateConfig, SyncConfig, sync_section
from tutti.config.alerts import AlertsConfig
from tutti.config.combinations import check_combinations
from tutti.config.data import DataConfig
from tutti.config.fields import Auto, Positive, Section
from tutti.config.layout import LayoutConfig, MemoryConfig, ReplicaConfig, layout_section, memory_section
from tutti.config.model import ModelConfig, model_section
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
from tutti.config.training import CheckpointConfig, EvaluateConfig, TrainConfig, WatchConfig

TrackerName = Literal["tensorboard", "mlflow", "wandb"]


class Config(Section):
    """A Tutti file."""

    name: str = Field(
        default="run",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$",
        description="The run's name: `runs/NAME`.",
    )
    runs: str = Field(default="runs", description="Directory that holds the runs.")
    data: DataConfig = Field(default_factory=DataConfig)
    model: Annotated[ModelConfig, BeforeValidator(model_section)] = Field(
        default_factory=lambda: ModelConfig(size="5M"),
        description="A size such as `15M`, a directory, or a mapping.",
    )
    task: Annotated[TaskConfig, BeforeValidator(task_section)] = Field(
        default_factory=TaskConfig, description="What the model is for: a kind of task or a mapping."
    )
    tune: Annotated[TuneConfig, BeforeValidator(tune_section)] = Field(
        default_factory=TuneConfig, description="How much of the model learns: a method or a mapping."
    )
    recipe: Literal["plain", "auto"] = Field(
        default="plain",
        description="`auto`: what keeps a trained model from learning its examples by heart (`regularise.r_drop`, "
        "`train.average`, and epochs to match) is chosen by how many examples there are, of what stands at its "
        "default; the reason is said. `plain`: none of it.",
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
    layout: Annotated[LayoutConfig, BeforeValidator(layout_section)] = Field(
        default_factory=LayoutConfig, description="How one copy is split; `1`: not at all."
    )
    memory: Annotated[MemoryConfig, BeforeValidator(memory_section)] = Field(
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
    alerts: AlertsConfig = Field(default_factory=AlertsConfig)
    trackers: list[TrackerName] = Field(
        default=["tensorboard"],
        description="Where else the run can be looked at. MLflow and Weights & Biases are told where by their own "
        "variables of the environment, such as `MLFLOW_TRACKING_URI` and `WANDB_API_KEY`.",
    )

    @field_validator("trackers")
    @classmethod
    def _each_once(cls, trackers: list[str]) -> list[str]:
        if len(set(trackers)) < len(trackers):
            raise ValueError("trackers names one twice")
        return trackers

    @model_validator(mode="after")
    def _go_together(self) -> Config:
        check_combinations(self)
        return self

    def of_replica(self, number: int) -> Config:
        """The configuration that replica `number` goes by."""
        if not self.each:
            return self
        update = self.each[number].model_dump(include={"precision", "micro_batch"}, exclude_none=True)
        return self.model_copy(update={"train": self.train.model_copy(update=update)})
