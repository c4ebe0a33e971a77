"""The same splits, written by hand with torch alone around an unmodified Hugging Face Llama: what Tutti has to match.

Every function returns a step: it takes ids [B, S + 1], the same on all ranks, and makes one update of AdamW.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed._functional_collectives import all_to_all_single_autograd, wait_tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel
from transformers import AttentionInterface, LlamaConfig, LlamaForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward

Step = Callable[[Tensor], None]


def _model(config: LlamaConfig) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(copy.deepcopy(config))  # a model writes into its configuration


def _adamw(parameters: Any) -> torch.optim.AdamW:
    return torch.optim.AdamW(parameters, lr=1e-3, fused=True)


def _loss(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten())


def _plain_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, rank: int, shares: int, micro: int
) -> Step:
    def step(ids: Tensor) -> None:
        mine = ids.chunk(shares)[rank if shares > 1 else 0]
        pieces = mine.split(micro)
        for piece in pieces:
            logits = model(input_ids=piece[:, :-1], use_cache=False).logits
            (_loss(logits, piece[:, 1:]) / len(pieces)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def data_parallel(rank: int, ranks: int, config: LlamaConfig, micro: int) -> Step:
    """DDP: every rank a whole copy."""
    model = DistributedDataParallel(_model(config), gradient_as_bucket_view=True)
    return _plain_step(model, _adamw(model.parameters()), rank, ranks, micro)


def shard(rank: int, ranks: int, config: LlamaConfig, micro: int, again: bool = True) -> Step:
    """FSDP2, layer by layer; `again`: parameters are gathered once more in backward (ZeRO-3)."""
    model = _model(config)
    _shard(model, init_device_mesh("cpu", (ranks,)), again)
    return _plain_step(model, _adamw(model.parameters()), rank, ranks, micro)


def _shard(model: LlamaForCausalLM, mesh: DeviceMesh, again: bool = True) -> None:
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=again)
    fully_shard(model, mesh=mesh, reshard_after_forward=again)


def _cut(model: LlamaForCausalLM, mesh: DeviceMesh) -> None:
    """torch's column- and row-wise styles for every layer and the vocabulary."""
    for layer in model.model.layers:
        columns = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj")
        plan: dict[str, Any] = {name: ColwiseParallel() for name in columns}
        plan |= {name: RowwiseParallel() for name in ("self_attn.o_proj", "mlp.down_proj")}
        parallelize_module(layer, mesh, plan)
    outside = {
        "model.embed_tokens": RowwiseParallel(input_layouts=Replicate()),
        "lm_head": ColwiseParallel(output_layouts=Replicate()),
    }
    parallelize_module(model, mesh, outside)


def tensor(rank: int, ranks: int, config: LlamaConfig, micro: int) -> Step:
    """Every layer and the vocabulary cut."""
    model = _model(config)
    _cut(model, init_device_mesh("cpu", (ranks,)))
    cut = [p for p in model.parameters() if hasattr(p, "device_mesh")]
    whole = [p for p in model.parameters() if not hasattr(p, "device_mesh")]
    optimizer = _adamw([{"params": cut}, {"params": whole}])

    def step(ids: Tensor) -> None:
        pieces = ids.split(micro)
        for piece in pieces:
            logits = model(input_ids=piece[:, :-1], use_cache=False).logits
            (_loss(logits, piece[:, 1:]) / len(pieces)).backward()
        # torch's clip_grad_norm_ cannot take both kinds at once.
        squares = torch.stack([p.grad._local_tensor.square().sum() for p in cut]).sum()  # type: ignore[union-attr]
        dist.all_reduce(squares)
        norm = (squares + torch.stack([p.grad.square().sum() for p in whole]).sum()).sqrt()  # type: ignore[union-attr]
        factor = (1.0 / (norm + 1e-6)).clamp(max=1.0)
        for parameter in model.parameters():
            local = getattr(parameter.grad, "_local_tensor", parameter.grad)
            local.mul_(factor)  # type: ignore[union-attr]
        optimizer.step()
        optimizer.zero_grad()

    return step


def shard_tensor(rank: int, ranks: int, config: LlamaConfig, micro: int) -> Step:
    """Pairs of ranks cut every matrix, and the pairs share out the pieces."""
    model = _model(config)
    mesh = init_device_mesh("cpu", (ranks // 2, 2), mesh_dim_names=("shard", "tensor"))
    _cut(model, mesh["tensor"])
    _shard(model, mesh["shard"])
    # AdamW's fused form takes no mixture of meshes in one group.
    cut = [p for p in model.parameters() if p.device_mesh.ndim == 2]
    whole = [p for p in model.parameters() if p.device_mesh.ndim == 1]
    optimizer = _adamw([{"params": cut}, {"params": whole}])

    def step(ids: Tensor) -> None:
        pieces = ids.chunk(ranks // 2)[rank // 2].split(micro)
        for piece in pieces:
            logits = model(input_ids=piece[:, :-1], use_cache=False).logits
            (_loss(logits, piece[:, 1:]) / len(pieces)).backward()
        locals_ = [p.grad._local_tensor for p in model.parameters()]  # type: ignore[union-attr]
        squares = torch.stack([local.square().sum() for local in locals_]).sum()
        dist.all_reduce(squares)
        factor = (1.0 / (squares.sqrt() + 1e-6)).clamp(max=1.0)
        for local in locals_:
            local.mul_(factor)
        optimizer.step()
        optimizer.zero_grad()

    return step


class _Stage(nn.Module):
    """Half of a Llama."""

    def __init__(self, model: LlamaForCausalLM, first: bool) -> None:
        super().__init__()
        half = len(model.model.layers) // 2
        self.embed = model.model.embed_tokens if first else None
        self.layers = model.model.layers[:half] if first else model.model.layers[half:]
        self.rotary = model.model.rotary_emb
        self.norm = None if first else model.model.norm
        self.head = None if first else model.lm_head

    def forward(self, hidden: Tensor) -> Tensor:
        """Ids, or the first half's hidden states; hidden states, or logits."""
        if self.embed is not None:
            hidden = self.embed(hidden)
        positions = torch.arange(hidden.shape[1])[None]
        rotary = self.rotary(hidden, positions)
        for layer in self.layers:
            hidden = layer(hidden, attention_mask=None, position_ids=positions, position_embeddings=rotary)
        return hidden if self.head is None or self.norm is None else self.head(self.norm(hidden))


def pipeline(
    rank: int,
    ranks: int,
    config: LlamaConfig,
    micro: int,
    kind: type[Schedule1F1B | ScheduleGPipe] = Schedule1F1B,
) -> Step:
    """Two halves of the layers."""
    module = _Stage(_model(config), first=rank == 0)
    optimizer = _adamw(module.parameters())
    stage = PipelineStage(module, rank, ranks, torch.device("cpu"))
    schedules: dict[int, Any] = {}

    def step(ids: Tensor) -> None:
        count = len(ids) // micro
        schedule = schedules.setdefault(count, kind(stage, count, loss_fn=_loss))
        inputs = (ids[:, :-1].contiguous(),) if rank == 0 else ()
        schedule.step(*inputs, target=ids[:, 1:].contiguous(), return_outputs=False)
        squares = torch.stack([p.grad.square().sum() for p in module.parameters()]).sum()  # type: ignore[union-attr]
        dist.all_reduce(squares)
        factor = (1.0 / (squares.sqrt() + 1e-6)).clamp(max=1.0)
        for parameter in module.parameters():
            parameter.grad.mul_(factor)  # type: ignore[union-attr]
        optimizer.step()
        optimizer.zero_grad()

    return step


def _swap(part: Tensor, cut: int, joined: int) -> Tensor:
    group = dist.group.WORLD
    assert group is not None
    pieces = torch.stack(part.chunk(group.size(), cut))
    received = wait_tensor(all_to_all_single_autograd(pieces.flatten(0, 1).contiguous(), None, None, group))
    return torch.cat(received.view(pieces.shape).unbind(), dim=joined)


def _ulysses(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **rest: Any) -> Any:
    whole = (_swap(part, 1, 2) for part in (query, key, value))
    output, _ = sdpa_attention_forward(module, *whole, None, **rest)
    return _swap(output, 1, 2), None


AttentionInterface.register("bare_ulysses", _ulysses)


def context(rank: int, ranks: int, config: LlamaConfig, micro: int) -> Step:
    """All-to-all over heads around attention, FSDP2 for the rest."""
    model = _model(config)
    model.set_attn_implementation("bare_ulysses")
    _shard(model, init_device_mesh("cpu", (ranks,)))
    optimizer = _adamw(model.parameters())

    def step(ids: Tensor) -> None:
        pieces = ids.split(micro)
        for piece in pieces:
            inputs, labels = piece[:, :-1].chunk(ranks, 1)[rank], piece[:, 1:].chunk(ranks, 1)[rank]
            positions = torch.arange(piece.shape[1] - 1).chunk(ranks)[rank].expand(len(piece), -1)
            logits = model(input_ids=inputs, position_ids=positions, use_cache=False).logits
            (_loss(logits, labels) / len(pieces)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


SPLITS: dict[str, Callable[[int, int, LlamaConfig, int], Step]] = {
    "shard": shard,
    "shard, zero 2": functools.partial(shard, again=False),
    "tensor": tensor,
    "pipeline": pipeline,
    "pipeline, gpipe": functools.partial(pipeline, kind=ScheduleGPipe),
    "context": context,
    "shard × tensor": shard_tensor,
}
