"""The state of a run and the three ways it travels: to disk, back from disk, and to a newcomer.

`RunState` is small and the same on every rank. `StateKeeper` joins it with weights, optimizer and policy.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tutti.core.errors import CheckpointError
from tutti.core.events import EventWriter
from tutti.parallel import Split
from tutti.sync import Ledger, Policy
from tutti.sync.policy import local_part
from tutti.train.checkpoints import Checkpointer, apply_state, gather_state, load, newest_valid, read_manifest
from tutti.train.checkpoints.image import tensors_of
from tutti.train.checkpoints.manifest import BEST, Damaged
from tutti.train.checkpoints.packed import Packed
from tutti.train.checkpoints.retention import entries, pointed
from tutti.train.precision import LossScale

#: What of a policy a checkpoint holds: its own tensors, and what its codec still owes.
_OF_POLICY = frozenset({"policy", "owed"})
#: Beside the checkpoints, what is saved before the first step to try it out.
REHEARSAL = ".rehearsal"
#: How often a checkpoint that vanishes while it is read is exchanged for a newer one.
_ATTEMPTS = 10


@dataclass
class RunState:
    """Where the run is. `rounds`: meetings of the replicas so far. `best_value`: of the best step, less is better.
    `worse`: validations in a row that were no better."""

    step: int = 0
    rounds: int = 0
    ledger: Ledger = field(default_factory=Ledger)
    best_value: float | None = None
    best_step: int | None = None
    worse: int = 0

    def note_best(self, value: float | None, step: int | None) -> None:
        """What another replica found, or an earlier attempt: the better of the two counts."""
        if value is not None and (self.best_value is None or value < self.best_value):
            self.best_value, self.best_step, self.worse = value, step, 0


@dataclass
class StateKeeper:
    """Saves, resumes and hands over the state of a run. `identity`: what a checkpoint must agree with to be resumed."""

    split: Split
    optimizers: Sequence[torch.optim.Optimizer]
    policy: Policy
    policy_name: str
    codec_name: str
    identity: dict[str, Any]
    directory: Path
    make_checkpointer: Callable[[Path], Checkpointer]
    say: Callable[[str], None]
    #: Ranks that resume together and must take the same checkpoint (None: this one alone).
    together: dist.ProcessGroup | None = None
    saved_step: int | None = None
    scale: LossScale | None = None

    def __post_init__(self) -> None:
        self._checkpointer = self.make_checkpointer(self.directory)
        self._packed = Packed(self.split.packed, self.split.world.layout.tensor)

    # Disk ----------------------------------------------------------------------------------------------------

    def save(self, state: RunState, *, best: bool, wait: bool) -> None:
        """Begin writing a checkpoint of `state`; with `wait`, end it too."""
        self._checkpointer.save(
            state.step, self._tensors(_OF_POLICY), self._meta(state), best=best, wait=wait
        )
        self.saved_step = state.step

    def best_saved(self) -> tuple[float, int] | None:
        """Value and step of the checkpoint that is the best on disk; None: there is none."""
        path = pointed(self.directory, BEST)
        if path is None:
            return None
        try:
            meta = read_manifest(path).meta
        except Damaged:
            return None
        is_its_own = meta.get("best_step") == meta["step"] and meta.get("best_value") is not None
        return (float(meta["best_value"]), int(meta["step"])) if is_its_own else None

    def finish(self) -> None:
        """Wait until everything that was begun is on disk."""
        self._checkpointer.wait()

    def note_saves(self, events: EventWriter) -> None:
        """Write an event for every save that has ended since the last call."""
        while self._checkpointer.last_saved:
            saved = self._checkpointer.last_saved.pop(0)
            events.write(
                "checkpoint",
                step=saved.step,
                path=str(saved.path),
                bytes=saved.bytes,
                blocked_seconds=saved.blocked_seconds,
                write_seconds=saved.write_seconds,
                best=saved.best,
            )

    def resume(self, state: RunState) -> Path | None:
        """Continue from the newest sound checkpoint, if there is one: fills `state`, weights, optimizer, policy.

        Raises:
            CheckpointError: it belongs to other data, another seed or another model.
        """
        for attempt in range(_ATTEMPTS):
            path = self._find()
            if path is None:
                if any(not entry.torn for entry in entries(self.directory)):
                    raise CheckpointError(
                        f"{self.directory} holds no sound checkpoint: every one was damaged after it was written",
                        "check the disk; restore one from a copy, or start a new run with name=OTHER",
                    )
                return None  # killed before its first save was complete: nothing is lost by beginning again
            failure: CheckpointError | None = None
            try:
                self._take(path, state)
            except CheckpointError as error:
                failure = error
            # Replicas that train on save meanwhile, and delete what is old.
            if self._anybody(failure is not None and not path.exists()) and attempt + 1 < _ATTEMPTS:
                self.say(f"checkpoint {path.name} was deleted while it was read: a newer one takes its place")
                continue
            if failure is not None:
                raise failure
            return path
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _take(self, path: Path, state: RunState) -> None:
        """Become what the checkpoint at `path` holds."""
        try:
            meta = read_manifest(path).meta
        except Damaged as damage:
            raise CheckpointError(
                f"{path} cannot be loaded: {damage}", "--resume verifies every file"
            ) from damage
        for key in {**self.identity, **meta["identity"]}:
            mine, theirs = self.identity.get(key), meta["identity"].get(key)
            if theirs != mine:
                raise CheckpointError(
                    f"checkpoint {path.name} was made with {key} = {theirs!r}, this run has {mine!r}",
                    "resume with the configuration that the run was started with, or choose a new name=NAME",
                )
        self.policy.resume_at(
            meta["step"]
        )  # first: what it owes, and whether it drifts, may follow from that
        of_policy = {name for name in ("policy", "owed") if meta.get(name) == self._meta(state)[name]}
        self._read(path, of_policy)
        if "policy" not in of_policy:
            self.say(
                f"the checkpoint's state of policy {meta['policy']} is left out: this run syncs by {self.policy_name}"
            )
        self._say_what_is_owed(meta.get("owed"), taken="owed" in of_policy)
        state.step, state.rounds = meta["step"], meta["rounds"]
        state.best_value, state.best_step = meta["best_value"], meta["best_step"]
        state.worse = meta.get("worse", 0)
        if self.scale is not None and meta.get("loss_scale") is not None:
            self.scale.load_state(meta["loss_scale"])
        state.ledger.load_state(meta["ledger"])
        if not self.policy.drifts:
            state.ledger.return_loans()  # with leases, the coming meeting settles them: borrowers may be alive
        self.saved_step = state.step

    @contextmanager
    def rehearsed(self, state: RunState) -> Iterator[Path]:
        """Save and load once beside the checkpoints; what was saved can be looked at, then nothing is left behind."""
        directory = self.directory / REHEARSAL
        try:
            checkpointer = self.make_checkpointer(directory)
            checkpointer.save(state.step, self._tensors(_OF_POLICY), self._meta(state), wait=True)
            path = newest_valid(directory, self.say)
            if path is None:
                raise CheckpointError(
                    f"a checkpoint written to {directory} a moment ago cannot be read back",
                    "check the disk (dmesg, free space, network mounts)",
                )
            self._read(path, _OF_POLICY)
            checkpointer.close()
            yield path
            if (inside := self.split.world.inside) is not None:
                dist.barrier(inside)  # nobody takes away what another still looks at
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    # Newcomers -----------------------------------------------------------------------------------------------

    def give(self, state: RunState) -> dict[str, Any]:
        """What a newcomer needs to be where this replica was at its last meeting; local parts only."""
        optimizer = self._flat(gather_state(self.split.objective, self.optimizers)["optimizer"])
        return {
            "policy": self.policy.give(),
            "optimizer": {name: local_part(value) for name, value in optimizer.items()},
            "buffers": dict(self.split.objective.named_buffers()),
            "best": (state.best_value, state.best_step),
        }

    def take(self, given: dict[str, Any], state: RunState) -> None:
        """Become what `give` described."""
        self.policy.take(given["policy"])
        gathered = gather_state(self.split.objective, self.optimizers)
        for name, value in self._flat(gathered["optimizer"]).items():
            local_part(value).copy_(given["optimizer"][name])
        apply_state(self.split.objective, self.optimizers, gathered)
        for (
            name,
            buffer,
        ) in self.split.objective.named_buffers():  # each replica goes on with statistics of its own
            buffer.copy_(given["buffers"][name])
        state.note_best(*given["best"])

    # Parts ---------------------------------------------------------------------------------------------------

    def _find(self) -> Path | None:
        """The newest sound checkpoint, looked for (every byte is read) by one rank for all of them."""
        if self.together is None:
            return newest_valid(self.directory, self.say)
        found: list[Path | None] = [None]
        if self.together.rank() == 0:
            found = [newest_valid(self.directory, self.say)]
        dist.broadcast_object_list(found, group=self.together, group_src=0)
        return found[0]

    def _anybody(self, here: bool) -> bool:
        """Whether it is so `here`, or on another rank that resumes together with this one."""
        if self.together is None:
            return here
        everywhere: list[Any] = [None] * self.together.size()
        dist.all_gather_object(everywhere, here, group=self.together)
        return any(everywhere)

    def _live(self, of_policy: Set[str]) -> dict[str, Any]:
        """Weights and optimizer, and `of_policy`, by the names of the whole model, as this rank holds them."""
        tensors = dict(gather_state(self.split.objective, self.optimizers))
        sections = {"policy": self.policy.tensors, "owed": self.policy.owed}
        for name in sorted(of_policy):
            if own := sections[name]():
                tensors[name] = {key.removeprefix("model."): tensor for key, tensor in own.items()}
        return tensors

    def _tensors(self, of_policy: Set[str]) -> dict[str, Any]:
        """The same as a checkpoint has it."""
        return {key: self._packed.whole(part) for key, part in self._live(of_policy).items()}

    def _read(self, path: Path, of_policy: Set[str]) -> None:
        live = self._live(of_policy)
        tensors = {key: self._packed.whole(part) for key, part in live.items()}
        load(path, tensors, others=self._names_elsewhere(tensors))
        for key, part in live.items():
            self._packed.put_back(part, tensors[key])

    def _say_what_is_owed(self, codec: str | None, *, taken: bool) -> None:
        """Only the leading replica's debts are in a checkpoint; whose are gone is said."""
        place = self.policy.place
        if codec is None:
            return
        if place.replica != 0:
            for tensor in self.policy.owed().values():
                local_part(tensor).zero_()  # what was read is the leading replica's
        if place.replica != 0 or place.part != 0:
            return
        if not taken:
            why = (
                f"this run sends by {self.codec_name}"
                if codec != self.codec_name
                else "nobody is there to send to"
            )
            self.say(f"what codec {codec} lost and still owed is left out: {why}")
        elif place.replicas > 1:
            self.say(
                f"what codec {codec} lost and still owed is that of replica 0; what {place.replicas - 1} others owed "
                "was not saved"
            )

    def _names_elsewhere(self, tensors: dict[str, Any]) -> frozenset[str]:
        """What other stages of a pipeline take from the same checkpoint."""
        group = self.split.world.group("pipeline")
        if group is None:
            return frozenset()
        names: list[Any] = [None] * group.size()
        dist.all_gather_object(names, [name for name, _ in tensors_of(tensors)], group=group)
        return frozenset(name for stage in names for name in stage)

    def _meta(self, state: RunState) -> dict[str, Any]:
        return {
            "step": state.step,
            "rounds": state.rounds,
            "ledger": state.ledger.state(),
            "best_value": state.best_value,
            "best_step": state.best_step,
            "worse": state.worse,
            "loss_scale": self.scale.state() if self.scale is not None else None,
            "policy": self.policy_name,
            "owed": self.codec_name if self.policy.owed() else None,
            "identity": self.identity,
            "time": time.time(),
        }

    def _flat(self, nested: Any, prefix: str = "") -> dict[str, Tensor]:
        """Every tensor of a nested mapping by its dotted path."""
        if isinstance(nested, Tensor):
            return {prefix: nested}
        if not isinstance(nested, dict):
            return {}
        flat: dict[str, Tensor] = {}
        for key, value in nested.items():
            flat |= self._flat(value, f"{prefix}.{key}")
        return flat
