"""Who this process is: its replica, its part of the replica, and the groups that it belongs to.

With fixed membership all ranks form one torch.distributed world, seen as a mesh (replica × layout; and of the
layout pipeline × shard × context × tensor, dimensions of one rank left out). With elastic membership the world is
this replica alone, and the other replicas are met through `sync`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from tutti import __version__
from tutti.config.layout import LayoutConfig
from tutti.core.errors import LaunchError

#: A collective that takes longer has lost a peer without noticing.
_COLLECTIVE_TIMEOUT = timedelta(minutes=10)


@dataclass(frozen=True)
class World:
    """Rank = replica × parts + part; part = position in the layout, row by row in the order of `LayoutConfig.sizes`.

    So the most talkative dimension has neighbours, which are on one host when it has room for them.
    """

    replica: int
    replicas: int
    part: int
    parts: int
    device: torch.device
    elastic: bool
    layout: LayoutConfig = field(default_factory=LayoutConfig)
    #: Dimensions of the layout with more than one rank, inside this replica (None: one rank).
    mesh: DeviceMesh | None = None
    #: The ranks over which parameters are sharded: `shard` and `context` as one dimension.
    data: DeviceMesh | None = None
    #: The ranks of this replica (None when there is only one).
    inside: dist.ProcessGroup | None = None
    #: Fixed membership: the ranks that hold the same part in every replica, and all ranks.
    peers: dist.ProcessGroup | None = None
    everyone: dist.ProcessGroup | None = None

    @classmethod
    def alone(cls) -> World:
        """One process on the CPU."""
        return cls(0, 1, 0, 1, torch.device("cpu"), False)

    @property
    def rank(self) -> int:
        """Number of this process in the whole run."""
        return self.replica * self.parts + self.part

    @property
    def size(self) -> int:
        """Processes of the whole run, as configured."""
        return self.replicas * self.parts

    def at(self, dimension: str) -> int:
        """This rank's place along `dimension` of the layout."""
        if self.mesh is None or dimension not in (self.mesh.mesh_dim_names or ()):
            return 0
        return self.mesh.get_local_rank(dimension)

    def group(self, dimension: str) -> dist.ProcessGroup | None:
        """The ranks that differ from this one only along `dimension` (None: there are no others)."""
        if self.mesh is None or dimension not in (self.mesh.mesh_dim_names or ()):
            return None
        return self.mesh.get_group(dimension)

    @property
    def counts(self) -> bool:
        """Whether what this rank says of its samples counts: of the ranks that compute the same loss, the one that
        has it at the end of the pipeline, and the first of those that computed it together. (Ranks of `context` each
        have the loss of a piece.)"""
        return self.at("tensor") == 0 and self.at("pipeline") == self.layout.pipeline - 1

    @property
    def speaks(self) -> bool:
        """Whether this rank says which samples it has computed: one of the ranks that computed them together."""
        return self.counts and self.at("context") == 0


def pick_device(neighbours: int = 0, *, kind: str | None = None) -> torch.device:
    """The accelerator of this local rank, or the CPU. `neighbours`: ranks of other launches on this host before it.
    `kind`: `cpu` to leave accelerators alone."""
    if kind != "cpu" and torch.accelerator.is_available():
        index = (neighbours + int(os.environ.get("LOCAL_RANK", "0"))) % torch.accelerator.device_count()
        torch.accelerator.set_device_index(index)
        found = torch.accelerator.current_accelerator()
        assert found is not None
        return torch.device(found.type, index)
    return torch.device("cpu")


@cache
def started_store() -> Store:
    """The store of the world that the environment describes; open before the process group and used by it."""
    store, _, _ = next(rendezvous("env://", timeout=timedelta(minutes=2)))
    # The launcher's store outlives a restart: nobody may read the addresses of dead processes.
    return PrefixStore(f"attempt-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def join_world(
    *,
    replicas: int,
    layout: LayoutConfig,
    elastic_replica: int | None,
    device_kind: str | None = None,
    ranks_before: int = 0,
) -> World:
    """Enter the process group that the environment describes (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT).

    `elastic_replica`: the number of this replica when its world is its own, None when one world holds all.
    `device_kind`: as `pick_device`'s `kind`. `ranks_before`: workers of other worlds on this host that take their
    devices first.

    Raises:
        LaunchError: the environment has another number of processes than replicas × layout.
    """
    parts = layout.ranks
    device = pick_device(ranks_before + (elastic_replica or 0) * parts, kind=device_kind)
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    expected = parts if elastic_replica is not None else replicas * parts
    if size != expected:
        raise LaunchError(
            f"{size} processes were started, but replicas × layout asks for {replicas} × {parts}",
            f"start {expected} processes, or change `replicas` or `layout`",
        )
    if size > 1 and not dist.is_initialized():
        backend = "gloo" if device.type == "cpu" else f"cpu:gloo,{device.type}:{_accelerator_backend(device)}"
        dist.init_process_group(
            backend,
            store=PrefixStore("world", started_store()),
            rank=rank,
            world_size=size,
            timeout=_COLLECTIVE_TIMEOUT,
        )
    if size > 1:
        require_same_versions(f"torch {torch.__version__}, tutti {__version__}")
    if elastic_replica is not None:
        return arrange(layout, device, elastic_replica, replicas, elastic=True)
    return arrange(layout, device, rank // parts, replicas)


def require_same_versions(mine: str) -> None:
    """Raise LaunchError on all ranks unless all run what this one does: `mine`.

    Other versions compute other numbers, or wait for each other in different collectives.
    """
    everybody: list[str] = [""] * dist.get_world_size()
    dist.all_gather_object(everybody, mine)
    odd = next((rank for rank, theirs in enumerate(everybody) if theirs != everybody[0]), None)
    if odd is not None:
        raise LaunchError(
            f"ranks run different versions: rank 0 has {everybody[0]}, rank {odd} has {everybody[odd]}",
            "install the same versions on all hosts",
        )


def arrange(
    layout: LayoutConfig, device: torch.device, replica: int, replicas: int, *, elastic: bool = False
) -> World:
    """The groups of a world whose processes have met: all replicas, or with `elastic` this one alone."""
    parts = layout.ranks
    rank = dist.get_rank() if dist.is_initialized() else 0
    part = rank % parts
    if parts == 1 and (elastic or replicas == 1):
        return World(replica, replicas, 0, 1, device, elastic, layout)
    sizes, together = layout.sizes, 1 if elastic else replicas
    names = tuple(sizes)
    root = init_device_mesh(device.type, (together, *sizes.values()), mesh_dim_names=("replica", *names))
    return World(
        replica,
        replicas,
        part,
        parts,
        device,
        elastic,
        layout,
        mesh=root[names] if names else None,
        data=_as_one(root, tuple(name for name in ("shard", "context") if name in sizes), "data"),
        inside=inside.get_group() if (inside := _as_one(root, names, "inside")) is not None else None,
        peers=root.get_group("replica") if together > 1 else None,
        everyone=None if elastic else dist.group.WORLD,
    )


def _as_one(root: DeviceMesh, names: tuple[str, ...], name: str) -> DeviceMesh | None:
    """The dimensions `names` of `root` as a single one."""
    if len(names) < 2:
        return root[names[0]] if names else None
    return root[names]._flatten(name)


def leave_world() -> None:
    """Leave the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _accelerator_backend(device: torch.device) -> str:
    return dist.get_default_backend_for_device(device)
