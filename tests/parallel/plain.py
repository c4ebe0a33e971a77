"""Run as a program, with torch and transformers alone: what one device makes of a batch.

    python plain.py JOBS.json

JOBS: a list of {model: DIRECTORY, documents: [[token, …], …], out: FILE, steps: N, dtype: NAME}. Every document is
computed by itself. `out` gets the loss and the gradient of each parameter (mean over all next-token targets), and
the losses of `steps` steps of AdamW on that same batch.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM


def loss_of(model, documents):
    total, targets = 0.0, 0
    for tokens in documents:
        ids = torch.tensor([tokens])
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits[0]
        total = total + torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum")
        targets += ids.shape[1] - 1
    return total / targets


def compute(job):
    dtype = getattr(torch, job["dtype"])
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=dtype).eval()
    loss = loss_of(model, job["documents"])
    loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)
    losses = [loss.detach()]
    for _ in range(job["steps"]):
        optimizer.step()
        optimizer.zero_grad()
        loss = loss_of(model, job["documents"])
        loss.backward()
        losses.append(loss.detach())
    save_file(found | {"losses": torch.stack(losses)}, job["out"])


if __name__ == "__main__":
    torch.set_num_threads(1)
    for job in json.loads(Path(sys.argv[1]).read_text()):
        compute(job)
    assert not any(name.startswith("tutti") for name in sys.modules)
