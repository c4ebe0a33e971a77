"""What is measured while a run trains: loss and metrics on samples that it does not learn from, and which model was
the best."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from tutti.core.live import LiveSign
from tutti.core.types import SampleSource
from tutti.evaluate import Answering, Evaluation, answers_in, spread, sum_losses
from tutti.parallel import Split
from tutti.sync import Policy
from tutti.train.average import WeightAverage
from tutti.train.job import Job
from tutti.train.notes import Notes
from tutti.train.settings import Settings
from tutti.train.state import RunState
from tutti.train.step import Accumulator


@dataclass
class Validator:
    """Of one rank. `best_saved`: value and step of the best checkpoint on disk. `enough`: patience is at its end."""

    job: Job
    split: Split
    policy: Policy
    accumulator: Accumulator
    settings: Settings
    notes: Notes
    live: LiveSign
    average: WeightAverage | None
    best_saved: Callable[[], tuple[float, int] | None]
    enough: bool = False

    @property
    def hands_on_best(self) -> bool:
        """Whether the model that is handed on is the best one and not the last: a metric says which is better, or the
        run waits for one that is."""
        return self.job.main_metric is not None or self.settings.patience is not None

    def recall(self, state: RunState) -> None:
        """After a resume: the best model is one that was saved, which others need not have been while nobody would
        hand them on."""
        saved = self.best_saved() if self.hands_on_best else None
        if self.hands_on_best and (saved is None or saved[1] != state.best_step):
            state.best_value, state.best_step = saved or (None, None)

    def measure(self, state: RunState, settle: Callable[[], None]) -> bool:
        """Measure on the validation part: over all ranks, or by the leading replica when replicas drift. Whether that
        was the best so far. `settle`: sets the step in `state` that the weights are of."""
        source = self.job.validation_data
        if source is None or (self.policy.drifts and not self.policy.leads):
            return False
        began = time.perf_counter()
        with self.live.phase("evaluating"):
            settle()
            with self.average.in_place() if self.average is not None else nullcontext():
                sums = self.policy.sum_evaluation(partial(self._sum_losses, source))
            result = Evaluation.of(sums)
            metrics = self._metrics(source, sums)
        if self.policy.drifts and self.hands_on_best and (saved := self.best_saved()) is not None:
            state.note_best(*saved)  # another replica may have led, and found it
        value = result.loss if self.job.main_metric is None else -metrics[self.job.main_metric]
        better = math.isfinite(value) and (state.best_value is None or value < state.best_value)
        state.worse = 0 if better else state.worse + 1
        if better:
            state.best_value, state.best_step = value, state.step
        self._look_at_patience(state)
        if self.notes.leads:
            self.notes.events.write(
                "validation",
                step=state.step,
                loss=result.loss,
                bits_per_byte=result.bits_per_byte,
                targets=result.targets,
                seconds=time.perf_counter() - began,
                **({"metrics": metrics} if metrics else {}),
            )
            self.notes.memory()
        return better

    def _look_at_patience(self, state: RunState) -> None:
        patience = self.settings.patience
        if patience is not None and state.worse >= patience:
            self.end_patience(state)

    def end_patience(self, state: RunState) -> None:
        """Here it is at its end, or at another replica: one that came late, or back, has counted fewer validations."""
        if not self.enough and self.notes.leads:
            best = state.best_step or 0
            patience = self.settings.patience
            self.notes.events.write("enough", step=state.step, best_step=best, validations=patience)
        self.enough = True

    def _metrics(self, source: SampleSource, sums: Tensor) -> dict[str, float]:
        if not self.job.answer_width:
            return {}
        numbers = spread(self.settings.validation_samples, source.samples_in_epoch(0))
        return self.job.score(source, numbers, answers_in(sums, len(numbers)))

    def _sum_losses(self, source: SampleSource, part: int, parts: int) -> Tensor:
        """Replica `part` of `parts` measures its share, over its own ranks."""
        world = self.notes.world
        return sum_losses(
            self.accumulator.measure,
            source,
            samples=self.settings.validation_samples,
            part=world.at("shard") + part * world.layout.shard,
            parts=world.layout.shard * parts,
            micro_batch=self.settings.micro_batch,
            device=world.device,
            target_bytes=self.job.target_bytes,
            speaks=world.speaks,
            answering=Answering(self.split.objective, self.job.answer_width)
            if self.job.answer_width
            else None,
        )
