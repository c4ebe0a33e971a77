"""The loop: steps, meetings, validations and checkpoints, until the last step or until asked to stop.

It knows no language model, no transport and no file format; those are a `Job`, a `Policy` and a `Checkpointer`.
"""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from tutti.core.events import EventWriter
from tutti.core.live import LiveSign
from tutti.evaluate import Evaluation, sum_losses
from tutti.parallel import Split, World
from tutti.sync import Meeting, Policy, StaticTransport, share
from tutti.train.cooperate import Cooperation
from tutti.train.diagnose import LossGuard, bad_numbers, first_bad_layer, largest_gradient
from tutti.train.feed import Feed, Portion
from tutti.train.job import Job
from tutti.train.optimizer import Optimizers
from tutti.train.schedule import learning_rate_factor
from tutti.train.settings import Settings
from tutti.train.state import RunState, StateKeeper
from tutti.train.step import Accumulator, Gradient


@dataclass
class Loop:
    """Everything that one rank needs to train. `run()` returns `finished` or `interrupted`."""

    job: Job
    world: World
    split: Split
    policy: Policy
    accumulator: Accumulator
    optimizers: Optimizers
    feed: Feed
    keeper: StateKeeper
    settings: Settings
    state: RunState
    events: EventWriter
    live: LiveSign
    stop_requested: Callable[[], bool]
    cooperation: Cooperation | None = None

    def run(self) -> str:
        """Train from `state.step` to `settings.steps`."""
        self._guard = LossGuard()
        self._due_validation = self._due_checkpoint = False
        self._note_meeting(self.policy.start(self.state.step, self.settings.steps))
        while self.state.step < self.settings.steps:
            stopping = self._step(self.state.step + 1)
            if stopping and self.state.step < self.settings.steps:
                if self.keeper.saved_step != self.state.step:
                    self.save(wait=True)
                self.events.write("interrupted", step=self.state.step)
                return "interrupted"
        return "finished"

    # One step ----------------------------------------------------------------------------------------------

    def _step(self, step: int) -> bool:
        """Make step number `step`; True when the run is to stop here."""
        began = time.perf_counter()
        self.live.set(step=step - 1, phase="data")
        portion = self._load(step)
        loaded = time.perf_counter()
        self.live.set(phase="compute")
        if self.cooperation is not None:
            self.cooperation.before_step(step)
        key = portion.ids[0][1][0] if portion.ids else 0
        samples = sum(len(numbers) for _, numbers in portion.ids)
        gradient = self.accumulator.run(
            portion.micro_batches,
            samples * self.job.tokens_per_sample if self.world.speaks else 0,
            key,
            self.stop_requested(),
        )
        self._check(step, gradient, portion)
        factor = learning_rate_factor(
            step,
            self.settings.steps,
            self.settings.warmup,
            self.settings.schedule,
            self.settings.final_learning_rate,
        )
        self.optimizers.set_learning_rate(factor)
        if gradient.usable:
            self.optimizers.step()
        if self.cooperation is not None:
            self.cooperation.after_step(step, leads=self.policy.transport.rank == 0)
        stepped = time.perf_counter()
        self.live.set(phase="sync")
        meeting = self.policy.after_step(step, self.settings.steps, gradient.totals)
        ended = time.perf_counter()
        self._note_step(step, gradient, portion, ended - began, loaded - began, ended - stepped, factor)
        self.state.step = step
        self._note_meeting(meeting)
        self._after(step, meeting)
        return meeting.stop if meeting is not None else gradient.totals.stop and not self.policy.drifts

    def _load(self, step: int) -> Portion:
        ranges = self.policy.samples(step)
        shares = self.world.layout.shard  # the other ranks of the layout compute the same samples together
        mine = share(ranges, self.world.at("shard"), shares)
        self._cursor = [list(piece) for piece in mine]
        # Ranks of one replica run equally many micro-batches: as many as the one with the most.
        slots = max(
            self.feed.count(share(ranges, part, shares), self.settings.micro_batch) for part in range(shares)
        )
        return self.feed.load(mine, self.settings.micro_batch, slots)

    def _check(self, step: int, gradient: Gradient, portion: Portion) -> None:
        exploded = self._guard.exploded(gradient.loss)
        if gradient.usable and math.isfinite(gradient.norm) and math.isfinite(gradient.loss) and not exploded:
            return
        if not gradient.usable and math.isfinite(gradient.loss):
            self.events.write(
                "warning", step=step, message=f"step {step}: fp16 overflow, step skipped, scale halved"
            )
            return
        if exploded:
            worst = largest_gradient(self.split.objective)
            where = f"the loss has been twice its first values for some steps; the largest gradient is that of {worst}"
        else:
            where = self._bad_layer(portion)
        raise bad_numbers(step, gradient.loss, gradient.norm, where)

    def _bad_layer(self, portion: Portion) -> str:
        batches = portion.micro_batches if self.split.pipeline is None else []  # stages cannot run one by one
        return first_bad_layer(self.split.objective, batches, self.settings.context)

    # What happens between steps ------------------------------------------------------------------------------

    def _after(self, step: int, meeting: Meeting | None) -> None:
        """Validate and save when due; replicas that drift do so only when they have just agreed."""
        last = step == self.settings.steps
        self._due_validation |= step % self.settings.validate_every == 0 or last
        self._due_checkpoint |= step % self.settings.checkpoint_every == 0 or last
        if self.policy.drifts and meeting is None:
            return
        if self._due_validation:
            self._due_validation = False
            self.validate()
        if self._due_checkpoint:
            self._due_checkpoint = False
            self.save(wait=False)

    def validate(self) -> None:
        """Measure the validation loss: over all ranks, or by the leading replica when replicas drift."""
        source = self.job.validation_data
        alone = self.policy.drifts
        if source is None or (alone and self.policy.transport.rank != 0):
            return
        began = time.perf_counter()
        with self.live.phase("evaluating"):
            world = self.world
            sums = sum_losses(
                self.accumulator.measure,
                source,
                samples=self.settings.validation_samples,
                part=world.at("shard") + (0 if alone else world.replica * world.layout.shard),
                parts=world.layout.shard * (1 if alone else world.replicas),
                micro_batch=self.settings.micro_batch,
                device=world.device,
                target_bytes=self.job.target_bytes,
                speaks=world.speaks,
            )
            StaticTransport(world.inside if alone else world.everyone).all_reduce(sums)
        result = Evaluation.of(sums)
        best = self.state.best_loss is None or result.loss < self.state.best_loss
        if best:
            self.state.best_loss = result.loss
            self.state.best_step = self.state.step
        if self.leads:
            self.events.write(
                "validation",
                step=self.state.step,
                loss=result.loss,
                bits_per_byte=result.bits_per_byte,
                targets=result.targets,
                seconds=time.perf_counter() - began,
            )
            self.note_memory()

    def save(self, *, wait: bool) -> None:
        """Save the run's state, by the replica that leads."""
        with self.live.phase("saving"):
            if self.policy.transport.rank == 0:
                best = self.state.best_step == self.state.step
                self.keeper.save(self.state, best=best, wait=wait)
            self.keeper.saved_step = self.state.step

    # Notes ---------------------------------------------------------------------------------------------------

    @property
    def leads(self) -> bool:
        """Whether this rank speaks for the run."""
        return self.world.part == 0 and self.policy.transport.rank == 0

    def _note_step(
        self,
        step: int,
        gradient: Gradient,
        portion: Portion,
        seconds: float,
        data: float,
        sync: float,
        factor: float,
    ) -> None:
        fields: dict[str, object] = {
            "step": step,
            "samples": portion.ids if self.world.speaks else [],
            "cursor": self._cursor,
            "bytes_sent": self.policy.sent_bytes(),
        }
        if self.world.part == 0 and (self.policy.drifts or self.leads):
            fields |= {
                "loss": gradient.loss,
                "targets": gradient.totals.targets,
                "tokens": gradient.totals.tokens,
                "learning_rate": factor * self.settings.learning_rate,
                "gradient_norm": gradient.norm,
                "seconds": seconds,
                "wait_data_seconds": data,
                "sync_seconds": sync,
            }
        self.events.write("step", **fields)
        self.keeper.note_saves(self.events)

    def _note_meeting(self, meeting: Meeting | None) -> None:
        if meeting is None:
            return
        if meeting.healed:
            self.events.write("healed", step=meeting.step)
        self.state.step = meeting.step
        self.state.rounds += 1
        if self.world.part != 0:
            return
        self.events.write(
            "membership", step=meeting.step, replicas=meeting.members, divergence=meeting.divergence
        )
        for kind, ranges in (
            ("commit", meeting.committed),
            ("return", meeting.returned),
            ("lease", meeting.leased),
        ):
            for member, pieces in ranges.items():
                self.events.write(
                    kind, step=meeting.step, round=self.state.rounds, member=member, ranges=pieces
                )

    def note_memory(self) -> None:
        """Peak resident memory of this process so far."""
        unit = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        self.events.write("memory", peak_memory_bytes=peak)
