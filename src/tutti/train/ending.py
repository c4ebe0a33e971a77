"""The end of a run: its last save, the model that it hands on, and what that model says."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

from torch import nn

from tutti.core.rundir import RunDirectory
from tutti.parallel import World, leave_world
from tutti.train import checkpoints
from tutti.train.job import Job
from tutti.train.loop import Loop


def finish(loop: Loop, run: RunDirectory, outcome: str) -> None:
    """Complete the last save; the leading replica writes the export and lets the model speak."""
    with loop.live.phase("finishing"):
        loop.keeper.finish()
        loop.keeper.note_saves(loop.events)
        if outcome == "finished" and loop.notes.leads:
            with loop.average.in_place() if loop.average is not None else nullcontext():
                _hand_on(loop, run)
        loop.notes.memory()
        loop.live.set(step=loop.state.step)
        if loop.notes.leads:
            loop.events.write("finished", step=loop.state.step, state=outcome)
        loop.policy.close()
        leave_world()


def _hand_on(loop: Loop, run: RunDirectory) -> None:
    model, step = _final_model(loop, run)
    loop.job.complete(model, loop.settings.context)
    loop.job.export(model, run.export)
    if (found := loop.job.examine(model, loop.settings.context)) is not None:
        loop.events.write("test", step=step, **found)
    loop.job.write_samples(
        model,
        lambda prompt, text: loop.events.write("sample_text", step=loop.state.step, prompt=prompt, text=text),
    )


def _final_model(loop: Loop, run: RunDirectory) -> tuple[nn.Module, int]:
    """The whole model that is handed on, and its step."""
    best = loop.state.best_step
    if not loop.validator.hands_on_best or best in (None, loop.state.step):
        model = whole_model(loop.job, loop.world, lambda: checkpoints.newest_valid(run.checkpoints))
        return model, loop.state.step
    saved = checkpoints.best_valid(run.checkpoints)
    assert saved is not None, "present weights were saved a moment ago"
    model = loop.job.whole_model()
    return model, int(checkpoints.load_weights(saved, model)["step"])


def whole_model(job: Job, world: World, find: Callable[[], Path | None]) -> nn.Module:
    """The whole model with its present weights, on the CPU: this rank's, or read from what `find` finds saved."""
    if world.parts == 1 and world.device.type == "cpu":
        return job.objective.model
    saved = find()
    assert saved is not None, "present weights were saved a moment ago"
    model = job.whole_model()
    checkpoints.load_weights(saved, model)
    return model
