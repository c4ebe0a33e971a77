"""The job of `tutti.fit`: any module, any loss, any data, carried to the workers in one file of the run.

cloudpickle carries what a notebook or script defines in `__main__`, which plain pickle would only name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cloudpickle
from safetensors.torch import save_model
from torch import nn

from tutti.core.errors import ConfigError
from tutti.core.files import fsync_directory
from tutti.core.rundir import RunDirectory
from tutti.core.types import SampleSource
from tutti.tasks import FunctionObjective
from tutti.train.checkpoints import best_valid, load_weights, newest_valid
from tutti.train.job import Job

#: In the run directory.
JOB_FILE = "fit.pickle"


@dataclass(kw_only=True)
class FunctionJob(Job):
    """A module and a loss function that the user brought."""

    make_model: Callable[[], nn.Module]

    def whole_model(self) -> nn.Module:
        return self.make_model()

    def export(self, model: nn.Module, destination: Path) -> None:
        """`model.safetensors`: the weights; the code of the model is the user's."""
        destination.mkdir(parents=True, exist_ok=True)
        beside = destination / ".model.safetensors.tmp"
        save_model(model, str(beside))
        beside.replace(destination / "model.safetensors")
        fsync_directory(destination)


def write_function_job(
    run: Path, model: nn.Module, loss: Any, train_data: SampleSource, validation_data: SampleSource | None
) -> None:
    """Put the job where workers find it: the run directory.

    Raises:
        ConfigError: something of it cannot be carried to another process.
        OSError: the directory cannot be written.
    """
    parts = {
        "the model": model,
        "the loss": loss,
        "the data": train_data,
        "the validation data": validation_data,
    }
    beside = run / f".{JOB_FILE}.tmp"
    try:
        with beside.open("wb") as file:
            cloudpickle.dump(tuple(parts.values()), file)  # type: ignore[no-untyped-call]
        beside.replace(run / JOB_FILE)
    except OSError:
        raise
    except Exception as error:  # pickling runs the code of whatever it meets
        name, reason = _stuck(parts) or ("the job", error)
        raise ConfigError(
            f"{name} cannot be carried to the workers: {reason}",
            "keep open files, locks, connections and generators out of it; make them where they are used",
        ) from error
    finally:
        beside.unlink(missing_ok=True)


def _stuck(parts: Mapping[str, Any]) -> tuple[str, Exception] | None:
    """The first of `parts` that cannot be pickled, and why."""
    for name, part in parts.items():
        try:
            cloudpickle.dumps(part)  # type: ignore[no-untyped-call]
        except Exception as error:
            return name, error
    return None


def function_job(run: Path) -> FunctionJob:
    """The job that `write_function_job` left in `run`. The file is code: open only runs that you trust."""

    def read() -> tuple[nn.Module, Any, SampleSource, SampleSource | None]:
        with (run / JOB_FILE).open("rb") as file:
            content: tuple[nn.Module, Any, SampleSource, SampleSource | None] = cloudpickle.load(file)
        return content

    model, loss, train_data, validation_data = read()
    return FunctionJob(
        objective=FunctionObjective(model, loss),
        train_data=train_data,
        validation_data=validation_data,
        tokens_per_sample=1,
        parameters=sum(p.numel() for p in model.parameters()),
        depends_on_batch=normalises_batches(model),
        make_model=lambda: read()[0],
    )


def normalises_batches(model: nn.Module) -> bool:
    """Whether `model` takes means over the samples it is given at once; then it needs two to train."""
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())


def load_trained(model: nn.Module, run: RunDirectory, *, best: bool) -> nn.Module:
    """`model` with the weights of the run's `best` or newest sound checkpoint; as it is when there is none."""
    path = (best_valid if best else newest_valid)(run.checkpoints)
    if path is not None:
        load_weights(path, model)
    return model
