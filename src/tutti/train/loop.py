"""The loop: steps, meetings, validations and checkpoints, until the last step or until asked to stop.

It knows no language model, no transport and no file format; those are a `Job`, a `Policy` and a `Checkpointer`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from tutti.core.events import EventWriter
from tutti.core.live import LiveSign
from tutti.parallel import Split, World
from tutti.sync import Meeting, Policy, Range, share
from tutti.sync.ledger import count
from tutti.train.average import WeightAverage
from tutti.train.cooperate import Cooperation
from tutti.train.diagnose import LossGuard, bad_numbers, first_bad_layer, largest_gradient
from tutti.train.feed import Feed, Portion
from tutti.train.job import Job
from tutti.train.notes import Notes
from tutti.train.optimizer import Optimizers
from tutti.train.profiler import StepProfiler
from tutti.train.schedule import learning_rate_factor
from tutti.train.settings import Settings
from tutti.train.state import RunState, StateKeeper
from tutti.train.step import Accumulator, Gradient
from tutti.train.validator import Validator

#: Every so many steps the gradient of a part of the samples is looked at by itself, which tells how noisy it is.
_LOOK_EVERY = 10


@dataclass(frozen=True)
class Missed:
    """The finished gradient of a step that this replica listened to, to be used when it has the weights."""

    step: int
    factor: float
    usable: bool
    gradients: list[Tensor | None]


@dataclass
class Loop:
    """Everything that one rank needs to train. `run()` returns `finished`, `interrupted`, or `late`: nothing was done.

    `others_ended`: asked once the others have been met, whether they ended the run while this replica was on its way.
    """

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
    others_ended: Callable[[], bool]
    cooperation: Cooperation | None = None
    average: WeightAverage | None = None
    profiler: StepProfiler | None = None

    def __post_init__(self) -> None:
        self.notes = Notes(self.events, self.world, self.policy)
        self.validator = Validator(
            self.job,
            self.split,
            self.policy,
            self.accumulator,
            self.settings,
            self.notes,
            self.live,
            self.average,
            self.keeper.best_saved,
        )

    def run(self) -> str:
        """Train from `state.step` to `settings.steps`."""
        self._guard = LossGuard()
        self._due_validation = self._due_checkpoint = False
        self._missed: list[Missed] = []
        self._averaged = self.state.step
        if self.keeper.saved_step is not None:
            self.validator.recall(self.state)
        first = self.policy.start(self.state.step, self.settings.steps)
        if self.others_ended():
            return "late"
        self._adopt(first)
        stopping = first is not None and first.stop
        while self.state.step < self.settings.steps:
            if self.profiler is not None:
                self._due_validation |= self.profiler.before_step()
            stopping = stopping or self._step(self.state.step + 1)
            if stopping and self.state.step < self.settings.steps:
                if self.keeper.saved_step != self.state.step:
                    self.save(wait=True)
                self.policy.transport.part()
                if self._ends_early():
                    return "finished"
                self.events.write("interrupted", step=self.state.step)
                return "interrupted"
        self.policy.transport.part()
        return "finished"

    def _ends_early(self) -> bool:
        """Whether it is patience that has come to its end. Of replicas that drift, the one that leads knows; the others
        are told to stop, and were not asked to by the user."""
        if self.settings.patience is None:
            return False
        return (
            self.validator.enough if self.notes.leads or not self.policy.drifts else not self.stop_requested()
        )

    # One step ----------------------------------------------------------------------------------------------

    def _step(self, step: int) -> bool:
        """Make step number `step`; True when the run is to stop here."""
        began = time.perf_counter()
        step, (gradient, portion, data) = self.policy.make_step(step, self._gradient)
        self._check(step, gradient, portion)
        made = gradient.made
        before = self.state.step if self.policy.drifts else step - 1  # who came late does as all do
        step = made.step if made is not None else step
        factor = learning_rate_factor(
            max(step, 1),  # a fast replica's first local steps may all lie before the run's first
            self.settings.steps,
            self.settings.warmup,
            self.settings.schedule,
            self.settings.final_learning_rate,
        )
        self.optimizers.set_learning_rate(factor)
        computed = time.perf_counter()
        if self.policy.behind:
            self._missed.append(Missed(step, factor, gradient.usable, self._gradients()))
        elif gradient.usable and made is None and self._has_come(gradient):
            self._update(step)
        if self.cooperation is not None:
            self.cooperation.after_step(step, leads=self.policy.leads)
        stepped = time.perf_counter()
        self.live.set(phase="sync")
        meeting = self.policy.after_step(step, self.settings.steps, gradient.totals)
        ended = time.perf_counter()
        sync = ended - stepped + (made.seconds if made is not None else 0.0)
        if made is None or made.push is not None:
            times = {
                "seconds": ended - began,
                "wait_data_seconds": data,
                "forward_seconds": gradient.spent.forward,
                "backward_seconds": gradient.spent.backward,
                "exchange_seconds": gradient.spent.exchange,
                "optimizer_seconds": stepped - computed,
                "sync_seconds": sync,
            }
            self._note_step(step, gradient, portion, times, factor)
        self.state.step = step
        self._adopt(meeting)
        self._catch_up(step)
        self._after(before, meeting)
        if gradient.totals.enough:
            self.validator.end_patience(self.state)
        return meeting.stop if meeting is not None else gradient.totals.stop and not self.policy.drifts

    def _gradient(self, step: int) -> tuple[Gradient, Portion, float]:
        """The gradient of step number `step`, what it was computed of, and how long that took to load."""
        began = time.perf_counter()
        self.live.set(step=step - 1, phase="data")
        apart = self._looks(step)
        portion = self._load(step, apart)
        loaded = time.perf_counter()
        self.live.set(phase="compute")
        if self.cooperation is not None:
            self.cooperation.before_step(step)
        key = portion.ids[0][1][0] if portion.ids else 0
        samples = sum(len(numbers) for _, numbers in portion.ids)
        tokens = samples * self.job.tokens_per_sample if self.world.speaks else 0
        enough = self.validator.enough
        stop = self.stop_requested() or enough
        gradient = self.accumulator.run(portion.micro_batches, tokens, key, stop, enough=enough, apart=apart)
        return gradient, portion, loaded - began

    def _catch_up(self, step: int) -> None:
        """Become a full member, if this replica came late and the run's state has arrived."""
        copied = self.policy.catch_up()
        if copied is None:
            return
        for missed in self._missed:
            if missed.step > copied and missed.usable:
                self.optimizers.set_learning_rate(missed.factor)
                for parameter, gradient in zip(self._parameters(), missed.gradients, strict=True):
                    parameter.grad = gradient
                self._update(missed.step)
        self._missed = []
        self.events.write("healed", step=step)

    def _update(self, step: int) -> None:
        self.optimizers.step()
        if self.job.allocation is not None:
            self.job.allocation.after_step(step)
        if self.average is not None and not self.policy.drifts:
            self.average.update(1, step)
            self._averaged = step  # for the case that the replicas drift from here on

    def _parameters(self) -> list[nn.Parameter]:
        return [p for p in self.split.objective.parameters() if p.requires_grad]

    def _gradients(self) -> list[Tensor | None]:
        return [None if p.grad is None else p.grad.clone() for p in self._parameters()]

    def _looks(self, step: int) -> bool:
        """Whether the first micro-batch of `step` is to be looked at by itself."""
        speaks = self.policy.drifts or self.policy.leads
        return step % _LOOK_EVERY == 0 and speaks and self.accumulator.tells_apart

    def _load(self, step: int, apart: bool) -> Portion:
        """This rank's samples of `step`; `apart`: in two micro-batches at least, where that can be."""
        ranges, micro_batch = self.policy.samples(step), self.settings.micro_batch
        self._samples = count(ranges) if self.policy.drifts else self.settings.batches.at(step)
        shares = self.world.layout.shard  # the other ranks of the layout compute the same samples together
        mine = share(ranges, self.world.at("shard"), shares)
        self._cursor = [list(piece) for piece in mine]
        slots = self._slots(ranges, micro_batch)
        may_cut = not self.settings.compiled and not self.job.depends_on_batch  # other shapes: compiled anew
        if apart and slots == 1 and may_cut:
            micro_batch = max(1, -(-count(ranges) // (2 * shares)))
            slots = self._slots(ranges, micro_batch)
        return self.feed.load(mine, micro_batch, slots)

    def _slots(self, ranges: list[Range], micro_batch: int) -> int:
        """Ranks of one replica run equally many micro-batches: as many as the one with the most."""
        shares = self.world.layout.shard
        return max(self.feed.count(share(ranges, part, shares), micro_batch) for part in range(shares))

    def _has_come(self, gradient: Gradient) -> bool:
        """Of a late gradient the first is none."""
        return not self.policy.late or gradient.totals.targets > 0

    def _check(self, step: int, gradient: Gradient, portion: Portion) -> None:
        if not self._has_come(gradient):
            return
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
            here = True
        else:
            where, here = self._bad_layer(portion)
        raise bad_numbers(step, gradient.loss, gradient.norm, where, here=here)

    def _bad_layer(self, portion: Portion) -> tuple[str, bool]:
        batches = portion.micro_batches if self.split.pipeline is None else []  # stages cannot run one by one
        return first_bad_layer(self.split.objective, batches, self.settings.context)

    # What happens between steps ------------------------------------------------------------------------------

    def _after(self, before: int, meeting: Meeting | None) -> None:
        """Validate and save when due; replicas that drift do so only when they have just agreed.

        `before`: where the run was, which may be more than a step ago.
        """
        now = self.state.step
        last = now == self.settings.steps
        self._due_validation |= _has_passed(self.settings.validate_every, before, now) or last
        self._due_checkpoint |= _has_passed(self.settings.checkpoint_every, before, now) or last
        if self.policy.drifts and meeting is None:
            return
        if self.policy.drifts and self.average is not None:
            with self.policy.consensus():
                self.average.update(now - self._averaged, now)
            self._averaged = now
        if not (self._due_validation or self._due_checkpoint):
            return
        with self.policy.consensus():
            if self._due_validation and self.validator.measure(self.state, self._settle):
                self._due_checkpoint |= self.validator.hands_on_best
            if self._due_checkpoint:
                self.save(wait=False)
        self._due_validation = self._due_checkpoint = False

    def save(self, *, wait: bool) -> None:
        """Save the run's state, by the replica that leads."""
        with self.live.phase("saving"):
            if self.policy.leads:
                self._settle()
                best = self.state.best_step == self.state.step
                self.keeper.save(self.state, best=best, wait=wait)
            self.keeper.saved_step = self.state.step

    def _settle(self) -> None:
        step = self.policy.settle()
        self.state.step = self.state.step if step is None else step

    def _note_step(
        self, step: int, gradient: Gradient, portion: Portion, times: dict[str, float | None], factor: float
    ) -> None:
        known = {name: seconds for name, seconds in times.items() if seconds is not None}
        rate = factor * self.settings.learning_rate
        self.notes.step(
            step,
            gradient,
            portion,
            known,
            rate,
            self._cursor,
            self._samples,
            profiled=self.profiler is not None,
        )
        self.keeper.note_saves(self.events)

    def _adopt(self, meeting: Meeting | None) -> None:
        """Go on from where a meeting has left the run."""
        if meeting is None:
            return
        self.state.step = meeting.step
        self.state.rounds = self.policy.rounds
        if meeting.healed:
            self._averaged = meeting.step  # the average came with the rest
        self.notes.meeting(meeting, self.state.rounds)


def _has_passed(every: int, before: int, now: int) -> bool:
    """Whether a multiple of `every` lies after step `before`, up to `now`."""
    return now // every > before // every
