"""Before step 1 everything that will be needed later is tried, so that it fails in seconds and not at hour four."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from torch import nn

from tutti.core.errors import RunError
from tutti.core.events import EventWriter
from tutti.core.live import LiveSign
from tutti.core.rundir import RunDirectory
from tutti.evaluate import sum_losses
from tutti.parallel import World, undo_compile
from tutti.sync import share
from tutti.train.feed import Feed
from tutti.train.job import Job
from tutti.train.settings import Settings
from tutti.train.state import REHEARSAL, RunState, StateKeeper
from tutti.train.step import Accumulator

#: Bytes that a checkpoint holds of a parameter: fp32 weight and two moments.
CHECKPOINT_BYTES_PER_PARAMETER = 12
#: In the run's directory, until it has been written.
_EXPORT = ".rehearsal-export"


def sweep_rehearsal(run: RunDirectory) -> None:
    """Remove what a rehearsal that was cut short has left. Nobody may train there."""
    for path in (run.checkpoints / REHEARSAL, run.path / _EXPORT):
        shutil.rmtree(path, ignore_errors=True)


class Rehearsal:
    """Tries disk, a batch, an evaluation, a save and load, an export and a sample, each timed in the events."""

    def __init__(
        self, job: Job, world: World, settings: Settings, events: EventWriter, live: LiveSign
    ) -> None:
        self._job = job
        self._world = world
        self._settings = settings
        self._events = events
        self._live = live

    def run(
        self,
        *,
        accumulator: Accumulator,
        feed: Feed,
        keeper: StateKeeper,
        state: RunState,
        directory: Path,
        whole_model: Callable[[Path], nn.Module],
        compiled: bool,
    ) -> None:
        """Everything in turn; whatever fails raises its own clear error. Leaves weights and gradients as they were."""
        leads = self._world.rank == 0
        if leads:
            with self._timed("disk"):
                self._check_disk(directory)
        with self._timed("training batch"):
            self._try_batch(accumulator, feed, compiled)
        if self._job.validation_data is not None:
            with self._timed("evaluation"):
                self._try_evaluation(accumulator)
        if self._world.replica == 0:
            with ExitStack() as saved:
                with self._timed("save and load"):
                    path = saved.enter_context(keeper.rehearsed(state))
                if leads:
                    model = whole_model(path)
                    with self._timed("export"):
                        self._try_export(model, directory)
                    with self._timed("sample"):
                        self._job.write_samples(model, lambda prompt, text: None, new_tokens=2)

    @contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        began = time.perf_counter()
        with self._live.phase(f"rehearsal: {what}"):
            yield
        self._events.write("rehearsal", what=what, seconds=time.perf_counter() - began)

    def _check_disk(self, directory: Path) -> None:
        parameters = self._job.parameters
        # One more than is kept: the new one is complete before an old one goes; and the best, and the export.
        needed = parameters * CHECKPOINT_BYTES_PER_PARAMETER * (self._settings.keep + 3)
        free = shutil.disk_usage(directory).free
        if free < needed:
            raise RunError(
                f"checkpoints of this model need about {needed / 1e9:.2f} GB at {directory}, "
                f"but only {free / 1e9:.2f} GB are free",
                "free some space, lower checkpoint.keep, or put the runs elsewhere with runs=DIRECTORY",
            )

    def _try_batch(self, accumulator: Accumulator, feed: Feed, compiled: bool) -> None:
        """Forward and backward on the first micro-batch of the order; gradients are dropped."""
        size = min(self._settings.micro_batch, self._settings.batch)
        batch = feed.load(share([(0, size)], 0, 1), size, 1).micro_batches[0]
        try:
            accumulator.try_out(batch)
        except Exception as error:
            if not compiled or not _from_compiler(error):
                raise
            undo_compile(self._job.objective)
            self._events.write(
                "warning",
                message=f"torch.compile failed ({type(error).__name__}); training goes on without it. `tutti doctor` "
                "says what it needs",
            )
            accumulator.try_out(batch)

    def _try_evaluation(self, accumulator: Accumulator) -> None:
        assert self._job.validation_data is not None
        sum_losses(
            accumulator.measure,
            self._job.validation_data,
            samples=self._settings.micro_batch,
            part=0,
            parts=1,
            micro_batch=self._settings.micro_batch,
            device=self._world.device,
            target_bytes=self._job.target_bytes,
        )

    def _try_export(self, model: nn.Module, directory: Path) -> None:
        destination = directory / _EXPORT
        try:
            self._job.export(model, destination)
        finally:
            shutil.rmtree(destination, ignore_errors=True)


def _from_compiler(error: BaseException) -> bool:
    """Whether `error` came out of torch.compile rather than out of the model."""
    return type(error).__module__.startswith(("torch._dynamo", "torch._inductor"))
