"""Every number that the network benchmark goes by, in one place: model, batch, pace, rates, steps, learning rates."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from hashlib import sha256
from json import dumps
from typing import Any


@dataclass(frozen=True)
class Setting:
    """One size of the benchmark.

    `origin_steps`: plain steps of one process, at a constant learning rate, that make the checkpoint from which every
    arm starts. `steps`: what each arm trains from there; the learning rate falls over the last fifth of both together.
    `learning_rate_factors`: the sweep that every arm goes through. `longer`: how many times `steps` an arm gets
    that ends just above the baseline, until it comes where that ended. `compute_seconds`, `optimizer_seconds`: the
    pace, which is a step's forward and backward, and its optimizer, whatever the cores do: there are more replicas
    than cores. `precision`: of the arithmetic: what any CPU does, and not fp16, whose loss scale codecs refuse.
    `timed_steps`: steps of a step time, rounded up to whole rounds; fewer, but `least_timed_steps` at least, where they
    would take longer than `timed_seconds`. `rates`: Mbit/s; 0: unshaped. `delays`: arm, rate and one-way milliseconds.
    `full_runs`: arms and rates at which the product trains all of `steps` over the network.
    """

    name: str
    width: int
    layers: int
    vocabulary: int
    sequence: int
    batch: int
    replicas: int
    precision: str
    learning_rate: float
    learning_rate_factors: tuple[float, ...]
    warmup: int
    origin_steps: int
    steps: int
    longer: tuple[float, ...]
    validate_every: int
    validation_samples: int
    compute_seconds: float
    optimizer_seconds: float
    rates: tuple[float, ...]
    timed_steps: int
    least_timed_steps: int
    timed_seconds: float
    delays: tuple[tuple[str, float, float], ...]
    full_runs: tuple[tuple[str, float], ...]
    arms: tuple[str, ...] | None = None

    @property
    def pace_seconds(self) -> float:
        """What a step computes."""
        return self.compute_seconds + self.optimizer_seconds

    @property
    def model(self) -> dict[str, Any]:
        """As `model.config` of a Tutti file has it."""
        return {
            "model_type": "llama", "hidden_size": self.width, "intermediate_size": 8 * self.width // 3,
            "num_hidden_layers": self.layers, "num_attention_heads": self.width // 64,
            "num_key_value_heads": self.width // 64, "max_position_embeddings": self.sequence,
            "tie_word_embeddings": True,
        }  # fmt: skip

    def digest(self, *others: Any) -> str:
        """Of what decides what is learnt (not how long it takes), and of `others`: the name of a stored result."""
        learnt = {
            key: value
            for key, value in asdict(self).items()
            if key.startswith(("origin", "validat"))
            or key
            in (
                *("width", "layers", "vocabulary", "sequence", "batch", "replicas"),
                *("precision", "learning_rate", "warmup", "steps"),
            )
        }
        return sha256(dumps([learnt, *others], sort_keys=True).encode()).hexdigest()[:12]


#: 10.4M parameters; 1024 tokens a step, of which a replica has 256. The 45 trainings of `convergence` (15 arms, three
#: learning rates) are meant to take about three hours on two quiet cores: under four minutes each.
FULL = Setting(
    name="full",
    width=384,
    layers=5,
    vocabulary=4096,
    sequence=128,
    batch=8,
    replicas=4,
    precision="fp32",
    learning_rate=8e-4,
    learning_rate_factors=(1.0, 2.0, 0.5),
    warmup=50,
    origin_steps=600,
    steps=180,
    longer=(1.05, 1.1),
    validate_every=20,
    validation_samples=64,
    compute_seconds=1.8,
    optimizer_seconds=0.2,
    rates=(100, 10, 1000, 0),
    timed_steps=30,
    least_timed_steps=5,
    timed_seconds=300,
    delays=(("allreduce bf16", 100, 20), ("diloco 10 int4", 100, 20)),
    full_runs=(
        ("allreduce bf16", 100),
        ("allreduce int8 overlap", 100),
        ("diloco 10 int4", 100),
        ("diloco 15 topk 2 bits", 10),
    ),
)

#: Everything once, in minutes: for whoever changes the benchmark. Its numbers mean nothing.
SMOKE = Setting(
    name="smoke",
    width=64,
    layers=2,
    vocabulary=512,
    sequence=64,
    batch=4,
    replicas=2,
    precision="fp32",
    learning_rate=1e-3,
    learning_rate_factors=(1.0, 2.0),
    warmup=2,
    origin_steps=10,
    steps=20,
    longer=(1.5,),
    validate_every=5,
    validation_samples=16,
    compute_seconds=0.08,
    optimizer_seconds=0.02,
    rates=(100, 0),
    timed_steps=6,
    least_timed_steps=2,
    timed_seconds=20,
    delays=(("allreduce bf16", 100, 20),),
    full_runs=(("diloco 10 int4", 100),),
    arms=(
        *("allreduce bf16", "allreduce topk 1/64", "diloco 10 int4"),
        *("torch DDP bf16", "torch DDP PowerSGD 4", "torchft DiLoCo 10"),
    ),
)
