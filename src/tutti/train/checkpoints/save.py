"""Saving while training goes on.

`save` copies the state into an image (see image.py) and returns; one background thread writes it. Own thread
and `dcp.save` rather than `dcp.async_save`, because with that each save starts a new executor, the stager
copies into tensors that the writer must then serialise, and nothing could be done after the last rank's files
are on the disk (manifest, `LATEST`, retention) within the same error-safe collective.

The background thread of a replica with several ranks needs collectives of its own. They run on a gloo group
made for checkpoints alone: on the training group they would interleave differently on every rank, and hang.

Order on the disk, each step fsynced before the next: data files, `.metadata`, `MANIFEST.json`, `LATEST`,
`BEST`, deletion of old ones. Killed anywhere, `LATEST` names a whole checkpoint.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save

from tutti import __version__
from tutti.core import CheckpointError, TuttiError
from tutti.core.rundir import unwritable
from tutti.train.checkpoints.image import Image
from tutti.train.checkpoints.manifest import (
    BEST,
    LATEST,
    MANIFEST,
    FileRecord,
    Manifest,
    write_manifest,
    write_pointer,
)
from tutti.train.checkpoints.retention import next_sequence, open_fresh, retain
from tutti.train.checkpoints.writer import ImageWriter

#: Background work gives way to training on a busy core (and, since Linux derives it from this, on a busy
#: disk). Not lower: while it holds the interpreter's lock, training may have to wait for it.
_NICENESS = 5


@dataclass
class Saved:
    """A checkpoint that is on the disk. `blocked_seconds`: how long `save` kept training waiting."""

    step: int
    path: Path
    bytes: int
    blocked_seconds: float
    write_seconds: float
    best: bool


class Checkpointer:
    """Saves checkpoints of one run into `directory`, keeping the newest `keep` and the best.

    `group`: the ranks that hold the one replica that saves; all of them construct a Checkpointer and call
    `save` for the same steps (constructor and `save` are collective). None: this process alone, without
    collectives. Only the group's first rank commits, keeps and deletes; `last_saved` is filled there alone.
    `staging`: a directory for the copy that is written from, instead of memory.
    """

    def __init__(
        self,
        directory: Path,
        *,
        keep: int,
        rank: int = 0,
        group: dist.ProcessGroup | None = None,
        say: Callable[[str], None] = lambda _: None,
        staging: Path | None = None,
    ) -> None:
        self.directory = directory
        #: Finished saves, oldest first; the caller takes them out (`last_saved.pop(0)`).
        self.last_saved: list[Saved] = []
        self._keep = keep
        self._say = say
        self._image = Image(staging)
        self._group: dist.ProcessGroup | None = None
        self._coordinator = True
        if group is not None and group.size() > 1:
            members = dist.get_process_group_ranks(group)
            # Local synchronization: ranks of other replicas need not take part.
            self._group = dist.new_group(members, backend="gloo", use_local_synchronization=True)
            self._coordinator = group.rank() == 0
        self._thread = ThreadPoolExecutor(1, f"checkpoint-{rank}", initializer=_give_way)
        self._pending: list[Future[None]] = []

    def save(
        self,
        step: int,
        state: Mapping[str, Any],
        meta: Mapping[str, Any],
        *,
        best: bool = False,
        wait: bool = False,
    ) -> float:
        """Save `state` as the checkpoint of `step`; returns the seconds that the caller was kept waiting.

        `state`: nested dicts and lists of tensors, DTensors (this rank's shards) and plain values; it may
        change as soon as this returns. `meta`: JSON values. `best`: it becomes the best checkpoint, which is
        kept. `wait`: return when it is on the disk. A former save that is still being written is waited for.

        Raises:
            RunError: this or the former save met a full or read-only disk; `LATEST` is as it was.
            CheckpointError: the former save, or with `wait` this one, failed for another reason.
        """
        start = time.perf_counter()
        self.wait()
        frozen_meta = json.loads(json.dumps(dict(meta), allow_nan=False))
        try:
            plan = self._image.take(state)
        except OSError as error:
            raise unwritable(self.directory, error) from error
        saved = Saved(step, self.directory, 0, time.perf_counter() - start, 0.0, best)
        self._pending.append(self._thread.submit(self._write, saved, plan, frozen_meta))
        if wait:
            self.wait()
            saved.blocked_seconds = time.perf_counter() - start
        return time.perf_counter() - start

    def wait(self) -> None:
        """Return when everything asked for is on the disk. Raises as `save` does, once for each failure."""
        pending, self._pending = self._pending, []
        failure: BaseException | None = None
        for future in pending:
            failure = failure or future.exception()
        if failure is not None:
            raise failure

    def close(self) -> None:
        """Wait, then let the thread and the process group go. Raises as `wait` does."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()
            if self._group is not None:
                dist.destroy_process_group(self._group)
                self._group = None

    # Everything below runs in the background thread.

    def _write(self, saved: Saved, plan: dict[str, Any], meta: dict[str, Any]) -> None:
        start = time.perf_counter()
        path: Path | None = None
        try:
            path = self._agree(partial(open_fresh, self.directory, saved.step))
            writer = ImageWriter(path, self._image, partial(self._commit, saved, path, meta))
            dcp_save(plan, storage_writer=writer, process_group=self._group, no_dist=self._group is None)
        except BaseException as error:  # CheckpointException is no Exception
            if self._coordinator and path is not None and not (path / MANIFEST).exists():
                shutil.rmtree(path, ignore_errors=True)  # on a full disk its space is needed
            raise _in_users_words(error, path or self.directory, saved.step) from error
        if self._coordinator:
            saved.write_seconds = time.perf_counter() - start
            self.last_saved.append(saved)
            retain(self.directory, self._keep, self._say)

    def _agree(self, make: Callable[[], Path]) -> Path:
        """The first rank's path, or its error, on every rank."""
        outcome: list[Any] = [None]
        if self._coordinator:
            try:
                outcome = [make()]
            except Exception as error:
                outcome = [error]
        if self._group is not None:
            first = dist.get_global_rank(self._group, 0)
            dist.broadcast_object_list(outcome, src=first, group=self._group)
        if isinstance(outcome[0], Exception):
            raise outcome[0]
        assert isinstance(outcome[0], Path)
        return outcome[0]

    def _commit(self, saved: Saved, path: Path, meta: dict[str, Any], files: list[FileRecord]) -> None:
        versions = {"tutti": __version__, "torch": torch.__version__}
        manifest = Manifest(saved.step, next_sequence(self.directory), tuple(files), meta, versions)
        manifest = write_manifest(path, manifest)
        write_pointer(self.directory / LATEST, path, manifest)
        if saved.best:
            write_pointer(self.directory / BEST, path, manifest)
        saved.path, saved.bytes = path, manifest.size_bytes


def _give_way() -> None:
    """Lower the priority of this thread; on Linux, where threads have one of their own."""
    if sys.platform == "linux":
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)


def _in_users_words(error: BaseException, path: Path, step: int) -> TuttiError:
    if isinstance(error, CheckpointException):  # torch's: rank → (error, stack)
        _, (error, _) = sorted(error.failures.items())[0]
    if isinstance(error, TuttiError):
        return error
    if isinstance(error, OSError):
        return unwritable(path, error)
    return CheckpointError(
        f"the checkpoint of step {step} could not be written: {type(error).__name__}: {error}",
        "the former checkpoint is untouched: resume from it with --resume",
    )
