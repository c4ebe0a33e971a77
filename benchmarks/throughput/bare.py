"""The bare peer: the same Hugging Face model in the shortest loop that trains it on two ranks.

DDP over gloo, fused AdamW, cross-entropy on the full logits; no clipping, no schedule, no logging, no checkpoint.
Where there was a choice it favours this peer (gradients as views of DDP's buckets save a copy).
"""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext

import torch
import torch.distributed as dist
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler
from transformers import AutoModelForCausalLM

from benchmarks.throughput.windows import Windows, read_task
from benchmarks.turns import Turns


def main() -> None:
    task = read_task(sys.argv[1])
    rank = int(os.environ["RANK"])
    turns = Turns.of_environment(rank)
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    model = AutoModelForCausalLM.from_pretrained(task["model"], dtype=torch.float32).train()
    module = DistributedDataParallel(model, gradient_as_bucket_view=True)
    if "compile" in sys.argv[2:]:
        module = torch.compile(module)
    optimizer = torch.optim.AdamW(module.parameters(), lr=task["learning_rate"], fused=True)
    text = Windows(task["files"], task["sequence"], shifted=True)
    sampler = DistributedSampler(text, seed=0)
    low = task["precision"] == "bf16"
    loss = None
    while True:
        for batch in DataLoader(text, batch_size=task["micro_batch"], sampler=sampler, drop_last=True):
            turns.before_step(None if loss is None else float(loss))
            with torch.autocast("cpu", torch.bfloat16) if low else nullcontext():
                logits = module(input_ids=batch["input_ids"], use_cache=False).logits
            loss = functional.cross_entropy(logits.float().flatten(0, 1), batch["labels"].flatten())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)


if __name__ == "__main__":
    main()
