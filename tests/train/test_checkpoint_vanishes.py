"""A replica comes back and reads the newest checkpoint, while those that train on write newer ones and delete it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tutti.core import CheckpointError, LossSum, Objective
from tutti.parallel import Split, World
from tutti.sync import AllReduce, Ledger, Place, StaticTransport
from tutti.train import state as state_module
from tutti.train.checkpoints import Checkpointer, retention
from tutti.train.state import RunState, StateKeeper


class Line(Objective):
    def __init__(self, weight: float) -> None:
        super().__init__(nn.Linear(1, 1, bias=False))
        nn.init.constant_(self.model.weight, weight)  # type: ignore[arg-type]

    def forward(self, batch: Any) -> LossSum:
        raise NotImplementedError


def keeper_of(directory: Path, weight: float, said: list[str]) -> StateKeeper:
    objective = Line(weight)
    optimizer = torch.optim.AdamW(objective.parameters())
    policy = AllReduce(StaticTransport(None), Place(0, 1), Ledger(), 1, bucket_bytes=100, everyone=None)
    return StateKeeper(
        split=Split(objective, World.alone()),
        optimizers=[optimizer],
        policy=policy,
        policy_name="allreduce",
        codec_name="fp32",
        identity={"seed": 0},
        directory=directory,
        make_checkpointer=lambda at: Checkpointer(at, keep=2, rank=0, group=None, say=said.append),
        say=said.append,
    )


def weight_of(keeper: StateKeeper) -> Tensor:
    return keeper.split.objective.model.weight.detach()  # type: ignore[return-value]


def save(directory: Path, step: int) -> None:
    keeper_of(directory, float(step), []).save(RunState(step=step), best=False, wait=True)


@pytest.mark.parametrize("moment", ["found", "half read"])
def test_a_newer_one_takes_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    save(tmp_path, 3)
    real, met = state_module.load, []

    def load_while_others_save(path: Path, *arguments: Any, **named: Any) -> dict[str, Any]:
        if not met:  # two more saves: `keep` deletes the one that is about to be read
            met.append(path)
            if moment == "half read":
                next(path.glob("*.distcp")).unlink()  # as rmtree does, before the rest
            save(tmp_path, 6)
            save(tmp_path, 9)
            assert not path.exists()
        return real(path, *arguments, **named)

    monkeypatch.setattr(state_module, "load", load_while_others_save)
    said: list[str] = []
    keeper, state = keeper_of(tmp_path, 0.0, said), RunState()
    assert keeper.resume(state) == tmp_path / "step-9"
    assert met == [tmp_path / "step-3"]
    assert (state.step, float(weight_of(keeper))) == (9, 9.0)
    assert said == ["checkpoint step-3 was deleted while it was read: a newer one takes its place"]


def test_all_that_were_found_are_gone_before_one_is_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 3)
    real, listed = retention.read_manifest, []

    def read_and_lose(path: Path) -> Any:
        manifest = real(path)
        if not listed:
            listed.append(path)
            save(tmp_path, 6)
            save(tmp_path, 9)
        return manifest

    monkeypatch.setattr(retention, "read_manifest", read_and_lose)
    said: list[str] = []
    state = RunState()
    assert keeper_of(tmp_path, 0.0, said).resume(state) == tmp_path / "step-9"
    assert state.step == 9
    assert not any("passed over" in line for line in said)


def test_one_that_is_there_and_cannot_be_read_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 3)

    def fail(path: Path, *_: Any, **__: Any) -> dict[str, Any]:
        raise CheckpointError(f"{path} cannot be loaded", "check the disk")

    monkeypatch.setattr(state_module, "load", fail)
    with pytest.raises(CheckpointError, match="step-3 cannot be loaded"):
        keeper_of(tmp_path, 0.0, []).resume(RunState())
