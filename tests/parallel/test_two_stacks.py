"""Of an encoder-decoder, what is done block by block is done to the blocks that read as to those that write."""

from __future__ import annotations

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from transformers import T5Config, T5ForConditionalGeneration

from ranks import run_ranks
from tutti.compress.prune import zero_smallest
from tutti.config import LayoutConfig
from tutti.hardware.tracked import TensorBytes
from tutti.parallel import Arithmetic, apply_layout, arrange
from tutti.tasks.sequences import EncoderDecoder

SHAPE = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_heads": 4, "num_layers": 6, "vocab_size": 64}


def t5() -> T5ForConditionalGeneration:
    """Tiny, always the same."""
    torch.manual_seed(0)
    return T5ForConditionalGeneration(T5Config(**SHAPE, dropout_rate=0.0, decoder_start_token_id=0))


def kept_bytes(recompute: str) -> tuple[int, float]:
    """What waits for backward after a long text was read and a short one written, and the loss."""
    objective = EncoderDecoder(t5())
    apply_layout(
        objective, arrange(LayoutConfig(), torch.device("cpu"), 0, 1), Arithmetic(recompute=recompute)
    )
    read, written = torch.arange(256).remainder(60)[None], torch.arange(4)[None]
    with TensorBytes() as tracked:
        loss = objective.model(input_ids=read, labels=written).loss
    return tracked.now, float(loss.detach())


def test_what_is_recomputed_of_the_encoder_is_not_kept() -> None:
    (everything, loss), (little, same) = kept_bytes("none"), kept_bytes("full")
    assert little < 0.3 * everything
    assert loss == same


def sharded(rank: int) -> list[bool]:
    """Of each block of both stacks: whether it is sharded by itself."""
    model = t5()
    objective = EncoderDecoder(model)
    apply_layout(objective, arrange(LayoutConfig(shard=2), torch.device("cpu"), 0, 1), Arithmetic())
    ids = torch.arange(8)[None]
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids[:, :4]}
    objective(batch).total.backward()
    return [
        isinstance(block, FSDPModule) for stack in (model.encoder, model.decoder) for block in stack.block
    ]


def test_both_stacks_are_sharded_block_by_block() -> None:
    assert run_ranks(2, sharded) == [[True] * 12] * 2


def test_both_stacks_are_thinned_out() -> None:
    model = t5()
    zero_smallest(model, 0.5, "magnitude", lambda: iter(()))
    for stack in (model.encoder, model.decoder):
        layers = [m.weight for m in stack.block.modules() if isinstance(m, nn.Linear)]
        assert all(float((weight == 0).float().mean()) == 0.5 for weight in layers)
