"""Every policy with every codec on sharded replicas: what may be together trains, what may not is refused; and the
table in the documentation is what this test found."""

from __future__ import annotations

import tempfile
import typing
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig

from benchmarks.split_step import SplitStep
from ranks import run_ranks
from served import Serving, rules
from tutti.config import LayoutConfig
from tutti.config.agreement import CodecName, PolicyName, SyncConfig
from tutti.config.training import TrainConfig
from tutti.core import ConfigError
from tutti.launch.companion import free_port
from tutti.sync import check_sync, inadmissible, positions
from tutti.sync.channel import new_secret
from tutti.sync.policy import local_part
from tutti.sync.server import ServerAddress
from tutti.train.served import server_optimizer

PAGE = Path(__file__).parents[2] / "docs/reference/sync.md"
POLICIES = typing.get_args(PolicyName)
CODECS = typing.get_args(CodecName)
STEPS, SEQUENCE, BATCH = 24, 16, 8
LLAMA = LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
    num_key_value_heads=4, bos_token_id=0, eos_token_id=0, pad_token_id=0,
)  # fmt: skip
#: Loss after these steps, relative to that of the policy with fp32.
BAND = 0.1


def settings(policy: str, codec: str) -> SyncConfig:
    return SyncConfig(
        policy=policy,
        codec=codec,
        every=4,
        density=0.1,
        matrix_rank=8,
        outer_momentum=0.5,
        outer_learning_rate=0.9,
    )


def train(rank: int, pairs: list[tuple[str, str]], shard: int = 2) -> list[tuple[float, float, int]]:
    """First and last loss of each pair, and a checksum of this rank's weights."""
    text = drunken_text()
    found = []
    for policy, codec in pairs:
        sync = settings(policy, codec)
        server = serve(rank, sync, shard) if policy == "server" else None
        step = SplitStep(
            LLAMA, LayoutConfig(shard=shard), micro_batch=2, sequence=SEQUENCE, samples=BATCH,
            bucket_bytes=6000, sync=sync, learning_rate=0.01, server=server,
        )  # fmt: skip
        step.policy.start(0, STEPS)
        losses = []
        for number in range(1, STEPS + 1):
            places = positions(step.policy.samples(number))
            places = torch.from_numpy(places).chunk(shard)[step.world.at("shard")]
            ids = torch.stack([text[p : p + SEQUENCE + 1] for p in (places % 500).tolist()])
            batch = {"input_ids": ids[:, :-1].contiguous(), "labels": ids[:, 1:].contiguous()}
            losses.append(step([batch]))
            step.policy.after_step(number, STEPS, step.totals)
        weights = torch.cat([local_part(p.detach()).flatten() for p in step.split.objective.parameters()])
        found.append((losses[0], sum(losses[-3:]) / 3, zlib.crc32(weights.numpy().tobytes())))
        for name, tensor in step.policy.owed().items():
            assert bool(local_part(tensor).isfinite().all()), name
        step.policy.close()
    return found


def serve(rank: int, sync: SyncConfig, shard: int) -> ServerAddress:
    """A parameter server for all ranks, in a thread of the first."""
    address: list[Any] = [None]
    if rank == 0:
        train = TrainConfig()
        what = rules(
            2, STEPS, sync, batch=BATCH, parts=shard, clip=1.0, make_stepper=server_optimizer(train, 0.01)
        )
        at = ServerAddress(f"tcp://127.0.0.1:{free_port()}", new_secret())
        Serving(Path(tempfile.mkdtemp()), at, what).start()
        address = [(at.address, at.secret)]
    torch.distributed.broadcast_object_list(address)
    return ServerAddress(*address[0])


def test_totals_and_buckets_keep_their_order_where_they_share_a_group() -> None:
    """With one rank a replica, the replicas' group is that of all ranks; sums of both kinds travel on it."""
    ours, theirs = run_ranks(2, train, [("allreduce", "int8"), ("allreduce", "topk")], 1, timeout_seconds=120)
    assert [member[2] for member in ours] == [member[2] for member in theirs]


def drunken_text() -> torch.Tensor:
    """16 letters; each follows from the one before up to one of four ways: no model gets below ln 4 = 1.39."""
    dice = torch.Generator().manual_seed(1)
    tokens = [0]
    for way in torch.randint(4, (600,), generator=dice).tolist():
        tokens.append((5 * tokens[-1] + way + 1) % 16)
    return torch.tensor(tokens)


EVERY = [(policy, codec) for policy in POLICIES for codec in CODECS]
EVERY_DAY = [
    *(("allreduce", "fp32"), ("allreduce", "int4"), ("diloco", "fp32"), ("diloco", "topk")),
    *(("gossip", "fp32"), ("gossip", "int4"), ("server", "fp32"), ("server", "int4")),
]


@pytest.mark.parametrize("pairs", [EVERY_DAY, pytest.param(EVERY, marks=pytest.mark.slow)], ids=len)
def test_what_may_be_together_trains_and_agrees(pairs: list[tuple[str, str]]) -> None:
    admitted = [pair for pair in pairs if inadmissible(settings(*pair), "fp32") is None]
    ranks = run_ranks(4, train, admitted, timeout_seconds=280)
    result = dict(zip(admitted, zip(*ranks, strict=True), strict=True))
    for pair, members in result.items():
        # Rank r is shard r % 2 of replica r // 2.
        assert members[0][2] == members[2][2] and members[1][2] == members[3][2], f"{pair}: replicas differ"
        first, last, _ = members[0]
        assert last < 0.8 * first, f"{pair}: {first:.3f} → {last:.3f}"
        exact = result[pair[0], "fp32"][0][1]
        assert last == pytest.approx(exact, rel=BAND), f"{pair}: {last:.4f}, with fp32 {exact:.4f}"
    if pairs is EVERY:
        assert table(set(result)) in PAGE.read_text(), f"{PAGE} should hold\n\n{table(set(result))}"


def table(trained: set[tuple[str, str]]) -> str:
    """As the documentation has it."""
    lines = ["| codec | " + " | ".join(f"`{policy}`" for policy in POLICIES) + " |"]
    lines.append("| --- " * (len(POLICIES) + 1) + "|")
    for codec in CODECS:
        cells = ["yes" if (policy, codec) in trained else "no" for policy in POLICIES]
        lines.append(f"| `{codec}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("settings", "precision", "reason"),
    [
        ({"then": "zstd"}, "fp32", "then: zstd cannot compress codec fp32"),
        ({"then": "zstd", "codec": "powersgd"}, "fp32", "then: zstd cannot compress codec powersgd"),
        ({"implementation": "ddp", "codec": "int8"}, "fp32", "needs implementation: buckets"),
        ({"policy": "gossip", "codec": "powersgd"}, "fp32", "sends to one at a time"),
        ({"codec": "topk"}, "fp16", "loss scale"),
        ({"codec": "bf16"}, "fp16", "loss scale"),
        ({"policy": "server"}, "fp16", "loss scale"),
        ({"policy": "server", "codec": "powersgd"}, "fp32", "one by one"),
    ],
)
def test_what_cannot_be_is_refused_with_its_reason(
    settings: dict[str, Any], precision: str, reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason) as refused:
        check_sync(SyncConfig(**settings), precision)
    assert "docs/reference/sync.md" in refused.value.hint


@pytest.mark.parametrize("optimizer", ["adafactor", "muon"])
def test_a_server_of_pieces_has_no_whole_matrices(optimizer: str) -> None:
    served = SyncConfig(policy="server")
    assert inadmissible(served, "fp32", optimizer=optimizer) is None
    with pytest.raises(ConfigError, match="whole matrices"):
        check_sync(served, "fp32", optimizer=optimizer, parts=2)
