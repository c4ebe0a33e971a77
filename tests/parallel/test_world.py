"""Ranks that do not fit together say so, all of them, instead of waiting for each other."""

from __future__ import annotations

import torch

from ranks import run_ranks
from tutti.config import LayoutConfig
from tutti.core import LaunchError
from tutti.parallel import World, arrange
from tutti.parallel.world import require_same_versions


def with_another_torch(rank: int) -> str:
    require_same_versions("torch 2.13.0")
    try:
        require_same_versions("torch 2.13.0" if rank != 2 else "torch 2.12.1")
    except LaunchError as error:
        return str(error)
    return ""


def test_another_version_on_one_rank_is_named_on_all() -> None:
    said = run_ranks(3, with_another_torch)
    assert len(set(said)) == 1
    assert "rank 0 has torch 2.13.0, rank 2 has torch 2.12.1" in said[0]


def place_of(rank: int) -> tuple[int, dict[str, int], bool, list[int]]:
    layout = LayoutConfig(pipeline=2, context=2, tensor=2)
    world = arrange(layout, torch.device("cpu"), 0, 1)
    group = world.group("tensor")
    assert group is not None
    members = torch.distributed.get_process_group_ranks(group)
    return world.part, {name: world.at(name) for name in layout.sizes}, world.counts, members


def test_the_most_talkative_dimension_has_neighbours() -> None:
    places = run_ranks(8, place_of)
    for part, at, _, tensor in places:
        assert part == 4 * at["pipeline"] + 2 * at["context"] + at["tensor"]
        assert tensor == [part - at["tensor"], part - at["tensor"] + 1]
    # Who has the loss: the end of the pipeline, both pieces of the sequence, one of those that computed it together.
    assert [part for part, _, counts, _ in places if counts] == [4, 6]


def test_alone_everything_is_here() -> None:
    world = World.alone()
    assert world.counts and world.speaks and world.group("tensor") is None and world.at("shard") == 0
