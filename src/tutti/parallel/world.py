"""Who this process is: its replica, its part of the replica, and the groups that it belongs to.

With fixed membership all ranks form one torch.distributed world, seen as a mesh (replica × layout). With
elastic membership the world is this replica alone, and the other replicas are met through `sync`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from functools import cache

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from tutti.core.errors import LaunchError

#: A collective that takes longer has lost a peer without noticing.
_COLLECTIVE_TIMEOUT = timedelta(minutes=10)


@dataclass(frozen=True)
class World:
    """Rank = replica × parts + part. `mesh` is the layout's mesh inside this replica (None: one rank)."""

    replica: int
    replicas: int
    part: int
    parts: int
    device: torch.device
    elastic: bool
    mesh: DeviceMesh | None = None
    #: The ranks of this replica (None when there is only one).
    inside: dist.ProcessGroup | None = None
    #: Fixed membership: the ranks that hold the same part in every replica, and all ranks.
    peers: dist.ProcessGroup | None = None
    everyone: dist.ProcessGroup | None = None

    @property
    def rank(self) -> int:
        """Number of this process in the whole run."""
        return self.replica * self.parts + self.part

    @property
    def size(self) -> int:
        """Processes of the whole run, as configured."""
        return self.replicas * self.parts


def pick_device(neighbours: int = 0) -> torch.device:
    """The accelerator of this local rank, or the CPU. `neighbours`: ranks of other launches on this host before it."""
    if torch.accelerator.is_available():
        index = (neighbours + int(os.environ.get("LOCAL_RANK", "0"))) % torch.accelerator.device_count()
        torch.accelerator.set_device_index(index)
        kind = torch.accelerator.current_accelerator()
        assert kind is not None
        return torch.device(kind.type, index)
    return torch.device("cpu")


@cache
def started_store() -> Store:
    """The store of the world that the environment describes; open before the process group and used by it."""
    store, _, _ = next(rendezvous("env://", timeout=timedelta(minutes=2)))
    # The launcher's store outlives a restart: nobody may read the addresses of dead processes.
    return PrefixStore(f"attempt-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def join_world(*, replicas: int, parts: int, elastic_replica: int | None) -> World:
    """Enter the process group that the environment describes (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT).

    `elastic_replica`: the number of this replica when its world is its own, None when one world holds all.

    Raises:
        LaunchError: the environment has another number of processes than replicas × parts.
    """
    device = pick_device((elastic_replica or 0) * parts)
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
    if elastic_replica is not None:
        mesh = init_device_mesh(device.type, (parts,), mesh_dim_names=("shard",)) if parts > 1 else None
        inside = mesh.get_group("shard") if mesh is not None else None
        return World(elastic_replica, replicas, rank, parts, device, True, mesh, inside)
    replica, part = divmod(rank, parts)
    if size == 1:
        return World(0, 1, 0, 1, device, False)
    mesh = init_device_mesh(device.type, (replicas, parts), mesh_dim_names=("replica", "shard"))
    return World(
        replica,
        replicas,
        part,
        parts,
        device,
        False,
        mesh["shard"] if parts > 1 else None,
        mesh.get_group("shard") if parts > 1 else None,
        mesh.get_group("replica") if replicas > 1 else None,
        dist.group.WORLD,
    )


def leave_world() -> None:
    """Leave the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _accelerator_backend(device: torch.device) -> str:
    return dist.get_default_backend_for_device(device)
