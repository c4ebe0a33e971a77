"""What is compared: at most 20 named combinations of policy, codec and interval, and other software doing the same.

To add one, add a line.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

#: What others are measured against: all-reduce at every step, as cheap as it is without losing anything.
BASELINE = "allreduce bf16"


@dataclass(frozen=True)
class Arm:
    """`sync`: of Tutti, as a Tutti file has it. `peer`: else, which other software (`peers.py`), for which `sync` has
    its numbers."""

    name: str
    sync: dict[str, Any] = field(default_factory=dict)
    peer: str | None = None

    @property
    def every(self) -> int:
        """Steps of a round, after which what is sent repeats."""
        return int(self.sync.get("every", 1))

    @property
    def elastic(self) -> bool:
        """Whether its replicas may come and go, as they may wherever a user does not say otherwise."""
        return self.peer is None and self.sync.get("membership") != "fixed"

    @property
    def served(self) -> bool:
        """Whether its replicas meet at a parameter server, which has a host of its own."""
        return self.sync.get("policy") == "server"


def _rounds(policy: str, every: int, codec: str, **more: Any) -> dict[str, Any]:
    return {"policy": policy, "every": every, "codec": codec, **more}


#: SparseLoCo's (arXiv 2508.15706): 1/64 of the numbers, 2 bits each, and what is owed fades.
_SPARSE = {"density": 1 / 64, "value_bits": 2, "feedback_decay": 0.95}

ARMS = (
    Arm(BASELINE, {"codec": "bf16"}),
    Arm("allreduce int8", {"codec": "int8"}),
    Arm("allreduce int4", {"codec": "int4"}),
    Arm("allreduce int8 overlap", {"codec": "int8", "overlap": 1, "membership": "fixed"}),
    Arm("allreduce int4 overlap", {"codec": "int4", "overlap": 1, "membership": "fixed"}),
    Arm("allreduce topk 1/64", {"codec": "topk", "density": 1 / 64}),
    Arm("allreduce topk 2 bits", {"codec": "topk", "density": 1 / 64, "value_bits": 2}),
    Arm("allreduce powersgd 4", {"codec": "powersgd", "matrix_rank": 4}),
    Arm("local_sgd 10 bf16", _rounds("local_sgd", 10, "bf16")),
    Arm("diloco 10 bf16", _rounds("diloco", 10, "bf16")),
    Arm("diloco 10 int4", _rounds("diloco", 10, "int4")),
    Arm("diloco 30 int4", _rounds("diloco", 30, "int4")),
    Arm("diloco 15 topk 2 bits", _rounds("diloco", 15, "topk", **_SPARSE)),
    Arm("diloco 30 topk 2 bits", _rounds("diloco", 30, "topk", **_SPARSE)),
    Arm("diloco 30 streaming int4", _rounds("diloco", 30, "int4", fragments=3, overlap=4)),
    Arm("gossip 20 int8", _rounds("gossip", 20, "int8")),
    Arm("server int8", {"policy": "server", "codec": "int8", "delay_compensation": 0.0}),
    Arm("torch DDP bf16", peer="ddp_bf16"),
    Arm("torch DDP PowerSGD 4", {"matrix_rank": 4}, peer="ddp_powersgd"),
    Arm("torchft DiLoCo 10", {"every": 10}, peer="torchft_diloco"),
)
#: Software that belongs here and is not: said on the page.
NOT_MEASURED = {
    "hivemind": "not measured: its peers step when a tracker says that enough samples were seen by all, not after the "
    "same samples in every arm, so neither a step's time nor a loss at equal tokens is defined as it is here"
}

assert len(ARMS) <= 20 and len({arm.name for arm in ARMS}) == len(ARMS)


def chosen(names: Sequence[str] | None) -> list[Arm]:
    """The arms called `names`, in the order of the table; None: all.

    Raises:
        ValueError: there is no such arm.
    """
    if names is None:
        return list(ARMS)
    unknown = set(names) - {arm.name for arm in ARMS}
    if unknown:
        there_are = ", ".join(arm.name for arm in ARMS)
        raise ValueError(f"no arm is called {', '.join(sorted(unknown))}; there are: {there_are}")
    return [arm for arm in ARMS if arm.name in names]
