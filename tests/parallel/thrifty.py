"""Run as a program: a few steps of a model whose state is larger than what is allowed.

    python thrifty.py OFFLOAD LIMIT_MB DIRECTORY     → the losses as JSON, or "out of memory"

The limit is on private memory (RLIMIT_DATA), counted from what the process has when everything is imported.
"""

import json
import resource
import sys
from contextlib import nullcontext
from pathlib import Path

import torch
from transformers import LlamaConfig

from tutti.config import TrainConfig
from tutti.models.blueprint import Blueprint
from tutti.parallel import Arithmetic, MappedFiles, World, apply_language_layout, keep_optimizer_state
from tutti.sync import AllReduce, Ledger, Place, StaticTransport
from tutti.tasks import find_manner
from tutti.train.optimizer import build_optimizers
from tutti.train.precision import LossScale
from tutti.train.step import Accumulator

VOCABULARY, SEQUENCE, SAMPLES = 2048, 64, 2


def blueprint() -> Blueprint:
    """65M parameters: with gradients and Adam's moments a state of 1.04 GB."""
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=1024, intermediate_size=2752, num_hidden_layers=5, num_attention_heads=8,
        num_key_value_heads=8, tie_word_embeddings=True, bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    return Blueprint(config, seed=0, end_token=0)


def train(offload: str, directory: Path, steps: int = 3) -> list[float]:
    """Losses of AdamW on one batch."""
    plan = blueprint()
    manner = find_manner(plan.twin())
    files = MappedFiles(directory)
    split = apply_language_layout(
        plan,
        manner,
        World.alone(),
        Arithmetic(offload=offload, files=files),
        micro_batch=1,
        sequence=SEQUENCE,
    )
    policy = AllReduce(
        StaticTransport(None), Place(0, 1), Ledger(), SAMPLES, bucket_bytes=1_000_000, everyone=None
    )
    accumulator = Accumulator(
        split, policy, nominal_targets=SAMPLES * SEQUENCE, clip=1.0, context=nullcontext(),
        loss_scale=LossScale("fp32"), seed=0,
    )  # fmt: skip
    optimizers = build_optimizers(split.objective.model, TrainConfig(), 1e-3)
    if offload == "all":
        keep_optimizer_state(optimizers.optimizers, files)
    ids = torch.randint(VOCABULARY, (SAMPLES, SEQUENCE + 1), generator=torch.Generator().manual_seed(1))
    batches = [{"input_ids": row[None, :-1], "labels": row[None, 1:]} for row in ids]
    losses = []
    for _ in range(steps):
        losses.append(accumulator.run(batches, tokens=0, key=0, stop=False).loss)
        optimizers.step()
    return losses


def private_bytes() -> int:
    """What RLIMIT_DATA counts."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmData:")[1].split()[0])


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.ones(8, 8).requires_grad_().square().sum().backward()  # threads that come with the first backward
    if (limit := int(sys.argv[2])) > 0:
        allowed = private_bytes() + limit * 1_000_000
        resource.setrlimit(resource.RLIMIT_DATA, (allowed, allowed))
    try:
        print(json.dumps(train(sys.argv[1], Path(sys.argv[3]))))
    except (RuntimeError, MemoryError) as error:
        if "memory" not in str(error):
            raise
        print(json.dumps("out of memory"))
