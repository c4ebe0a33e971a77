"""Saved by two ranks, loaded by one, and back: the same weights and the same optimizer state, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_workers import (
    Forge,
    forge,
    network,
    optimizers_of,
    replica_of_two,
    replica_with_failing_rank,
    train,
    whole,
)

from tutti.train.checkpoints import Checkpointer, apply_state, gather_state, load, newest_valid

__all__ = ["forge"]


def two_ranks(forge: Forge, place: Path, name: str, **arguments: Any) -> None:
    children = [
        forge.start(replica_of_two, rank=rank, store=str(place / f"store-{name}"), **arguments)
        for rank in (0, 1)
    ]
    assert [forge.wait(child) for child in children] == [0, 0]


def assert_same(one: dict[str, Any], other: dict[str, Any], path: str = "") -> None:
    assert one.keys() == other.keys(), path
    for key, value in one.items():
        if isinstance(value, dict):
            assert_same(value, other[key], f"{path}.{key}")
        else:
            assert torch.equal(value, other[key]), f"{path}.{key}"


@pytest.mark.parametrize("kind", ["adamw", "adafactor", "muon"])
def test_two_ranks_to_one_and_back(forge: Forge, tmp_path: Path, kind: str) -> None:
    directory, out = tmp_path / "checkpoints", tmp_path / "whole.pt"
    common: dict[str, Any] = {"directory": str(directory), "kind": kind, "out": str(out)}
    two_ranks(forge, tmp_path, "a", first=0, last=3, **common)
    saved = torch.load(out)

    model = network(seed=1)
    optimizers = optimizers_of(model, kind)
    state = gather_state(model, optimizers)
    path = newest_valid(directory)
    assert path is not None
    assert len(list(path.glob("*.distcp"))) == 2
    assert load(path, state)["step"] == 3
    apply_state(model, optimizers, state)
    assert_same(whole(gather_state(model, optimizers)), saved)
    assert all(values["step"] == 3 for values in saved["optimizer"].values() if "step" in values)

    # One process that never stopped agrees to rounding: nothing was lost on the way.
    reference = network(seed=5)
    reference_optimizers = optimizers_of(reference, kind)
    train(reference, reference_optimizers, range(5))
    train(model, optimizers, range(3, 5))
    for one, other in zip(model.parameters(), reference.parameters(), strict=True):
        # Muon iterates in bfloat16, where another order of summing shows.
        torch.testing.assert_close(one, other, atol=2e-2 if kind == "muon" else 1e-6, rtol=0)

    Checkpointer(directory, keep=3).save(5, gather_state(model, optimizers), {"step": 5}, wait=True)
    two_ranks(forge, tmp_path, "b", first=5, last=5, **common)
    assert_same(torch.load(out), whole(gather_state(model, optimizers)))


def test_a_failure_on_one_rank_is_heard_by_all_and_the_next_save_works(forge: Forge, tmp_path: Path) -> None:
    directory, out = tmp_path / "checkpoints", tmp_path / "heard"
    children = [
        forge.start(
            replica_with_failing_rank,
            rank=rank,
            store=str(tmp_path / "store"),
            directory=str(directory),
            out=str(out),
        )
        for rank in (0, 1)
    ]
    assert [forge.wait(child) for child in children] == [0, 0]
    for rank in (0, 1):
        heard, latest = json.loads(Path(f"{out}{rank}").read_text())
        assert heard.startswith("RunError")
        assert "is full" in heard
        assert latest == "step-1"
    found = {"model": {"weight0": torch.zeros(3), "weight1": torch.zeros(3)}}
    path = newest_valid(directory)
    assert path == directory / "step-3"
    load(path, found)
    assert torch.equal(found["model"]["weight1"], torch.ones(3))
