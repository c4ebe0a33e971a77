"""What every arm starts from: real text, and a model that has learnt a little of it in plain steps of one process.

Small models from scratch are the worst case for rare exchanges, and no arm may have had a better start.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.network.arms import Arm
from benchmarks.network.formula import Shape
from benchmarks.network.setting import Setting
from tutti import api
from tutti.config import Config, dump_config, load_config
from tutti.config.agreement import SyncConfig
from tutti.core.rundir import RunDirectory
from tutti.models import draw_blueprint
from tutti.resolve import settle
from tutti.train.checkpoints import newest_valid


@dataclass(frozen=True)
class Origin:
    """`run`: made the checkpoint; `prepared`: its text; `shapes`: of the model's parameters."""

    setting: Setting
    run: Path
    config: Config
    prepared: Path
    checkpoint: Path
    shapes: tuple[Shape, ...]

    def branch(self, run: Path, arm: Arm, *, steps: int, factor: float, validate: bool) -> RunDirectory:
        """A new run that goes on from here with `arm` for `steps`, at `factor` times the learning rate."""
        shutil.rmtree(run, ignore_errors=True)
        run.mkdir(parents=True)
        setting, config = self.setting, self.config
        last = setting.origin_steps + steps
        sync: dict[str, Any] = {} if arm.peer else arm.sync
        # Even shares: at a pace by decree nobody is faster, and noise shall not change who does what.
        agreed = SyncConfig(**{"shares": "even", "implementation": "auto", "membership": "elastic"} | sync)
        train = {
            "steps": last,
            "schedule": "wsd",
            "learning_rate": setting.learning_rate * factor,
            "micro_batch": setting.batch // setting.replicas,
        }
        branched = config.model_copy(
            update={
                "name": run.name,
                "runs": str(run.parent),
                "replicas": setting.replicas,
                "train": config.train.model_copy(update=train),
                "checkpoint": config.checkpoint.model_copy(update={"every": 10**9}),
                "evaluate": config.evaluate.model_copy(
                    update={"every": setting.validate_every if validate else 10**9}
                ),
                "sync": settle(agreed, setting.replicas, setting.precision, steps)[0],
            }
        )
        directory = RunDirectory(run)
        directory.config.write_text(dump_config(branched), encoding="utf-8")
        shutil.copytree(self.checkpoint, directory.checkpoints / self.checkpoint.name)
        return directory


def make_origin(setting: Setting, work: Path) -> Origin:
    """The origin of `setting`, made in `work` unless it is there."""
    name = f"origin-{setting.digest()}"
    config = Config.model_validate(
        {
            "name": name,
            "runs": str(work),
            "data": {
                "source": "python-stdlib", "sequence": setting.sequence, "vocabulary": setting.vocabulary,
                "cache": str(work / "text"),
            },
            "model": {"config": setting.model},
            "replicas": 1,
            "train": {
                "steps": setting.origin_steps, "batch": setting.batch, "learning_rate": setting.learning_rate,
                "schedule": "constant", "warmup": setting.warmup, "precision": setting.precision,
            },
            "evaluate": {"samples": setting.validation_samples},
            "checkpoint": {"every": setting.origin_steps},
        }
    )  # fmt: skip
    run = RunDirectory(work / name)
    if not run.report_json.exists():
        shutil.rmtree(run.path, ignore_errors=True)
        api.train(config)
    checkpoint = newest_valid(run.checkpoints)
    assert checkpoint is not None, f"{run.path} has ended well, but has no checkpoint: remove it"
    resolved = load_config(run.config)
    prepared = api.prepare(resolved)
    blueprint = draw_blueprint(
        resolved.model,
        vocabulary=prepared.vocabulary,
        sequence=setting.sequence,
        seed=resolved.train.seed,
        end_token=prepared.end_token,
    )
    shapes = tuple(tuple(p.shape) for p in blueprint.lay_out().parameters() if p.requires_grad)
    return Origin(setting, run.path, resolved, prepared.directory, checkpoint, shapes)
