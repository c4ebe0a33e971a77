"""`tutti.fit`: any module, any loss, any data, on several workers, in five lines.

import tutti
result = tutti.fit(model, torch.nn.CrossEntropyLoss(), (images, labels), workers=2, epochs=5)
result.model, result.report["validation_loss"]
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import yaml
from torch import Tensor, nn

from tutti.config import Config, parse_config
from tutti.core.errors import ConfigError, LaunchError
from tutti.core.hold import held
from tutti.core.rundir import RunDirectory, unwritable
from tutti.core.types import LossSum
from tutti.data import TensorSource
from tutti.data.tensors import Pairs
from tutti.observe import check_trackers
from tutti.observe.alerts import receivers_of
from tutti.parallel import anything_else, check_layout, pick_device
from tutti.parallel.thrift import check_offload
from tutti.resolve import Facts, resolve
from tutti.supervise import Supervision, in_started_world
from tutti.sync import check_sync
from tutti.train.function import load_trained, normalises_batches, write_function_job
from tutti.train.rehearsal import sweep_rehearsal

#: `loss(outputs, targets)`: a mean over samples, one value a sample, or a `LossSum`.
Loss = Callable[[Any, Tensor], "Tensor | LossSum"]


@dataclass(frozen=True)
class FitResult:
    """The model as far as it was trained (on the CPU) and what `report.json` says of the run."""

    model: nn.Module
    report: dict[str, Any]


def fit(
    model: nn.Module,
    loss: Loss,
    data: Pairs,
    *,
    workers: int = 1,
    validation: Pairs | None = None,
    epochs: float | None = None,
    steps: int | None = None,
    batch: int = 32,
    name: str = "fit",
    resume: bool = False,
    console: bool = True,
    **settings: Any,
) -> FitResult:
    """Train `model` on `data` with `workers` processes; the result does not depend on how many, but for rounding.

    `data`, `validation`: (inputs, targets) as tensors of equal length, or a map-style data set of such pairs.
    `batch`: samples of a step over all workers. How long: `steps`, or `epochs` (default 1). `settings`: any
    other key of the configuration by its dotted path with `__` for the dot, e.g. `train__learning_rate=1e-3`,
    `sync="diloco"`.

    `model` itself is not changed. Everything about the run is in `runs/NAME`.

    Raises:
        TuttiError: bad settings or data, or the training failed; in words.
    """
    if in_started_world():
        raise LaunchError(
            "tutti.fit starts its workers itself, and torchrun cannot start them",
            "start the script with python, and say workers=N",
        )
    train_data = TensorSource(data)
    validation_data = TensorSource(validation) if validation is not None else None
    if steps is not None and epochs is not None:
        raise ConfigError("both steps and epochs are given", "give one of them")
    if steps is None:
        steps = max(1, round((epochs or 1) * train_data.samples_in_epoch(0) / batch))
    config = _config(model, name, steps, batch, workers, settings)
    run = RunDirectory.of(config.runs, config.name)
    run.require() if resume else run.refuse_existing()
    receivers_of(config.alerts.model_dump())
    check_trackers(config.trackers)
    facts = Facts(
        parameters=sum(p.numel() for p in model.parameters()),
        tokens_per_sample=1,
        validation_samples=validation_data.samples_in_epoch(0) if validation_data else 0,
    )
    if config.memory.budget is not None:
        raise ConfigError(
            "memory.budget cannot be kept for a module of your own: its activations are unknown",
            "set memory__recompute or memory__offload instead",
        )
    check_offload(config.memory.offload, pick_device(), config.layout, config.train.optimizer)
    resolved = resolve(config, facts)
    check_sync(
        resolved.config.sync,
        resolved.config.train.precision,
        optimizer=config.train.optimizer,
        parts=config.layout.ranks,
    )
    check_layout(config.layout, anything_else(batch // workers))
    ranks = workers * config.layout.shard
    if normalises_batches(model) and batch < 2 * ranks:
        raise ConfigError(
            f"the model normalises over the samples that a worker computes at once, and of {batch} a step not each of "
            f"{ranks} workers has two",
            f"give batch={2 * ranks} or more, or fewer workers",
        )
    if not resume:
        run.create()
    try:
        with held(run.path, "training there"):  # whoever trains there may start a worker anew, which reads it
            sweep_rehearsal(run)
            write_function_job(run.path, model, loss, train_data, validation_data)
    except (OSError, ConfigError) as error:
        if not resume:
            shutil.rmtree(run.path, ignore_errors=True)
        raise unwritable(run.path, error) if isinstance(error, OSError) else error from error
    report = Supervision(run, resolved, None, resume=resume, console=console).execute()
    best = config.train.patience is not None
    return FitResult(load_trained(copy.deepcopy(model), run, best=best), report)


def _config(
    model: nn.Module, name: str, steps: int, batch: int, workers: int, settings: dict[str, Any]
) -> Config:
    """A configuration from keywords, checked like a file."""
    content: dict[str, Any] = {
        "name": name,
        "replicas": workers,
        "model": {"python": type(model).__qualname__},
        "data": {"source": type(model).__module__},
        "train": {"steps": steps, "batch": batch},
    }
    for path, value in settings.items():
        *sections, key = path.split("__")
        place = content
        for section in sections:
            place = place.setdefault(section, {})
        place[key] = value
    return parse_config(yaml.safe_dump(content), "tutti.fit")
