"""Run as a program, with transformers and torch alone: the gradient of a batch, document by document.

    python plain_gradients.py MODEL_DIRECTORY DOCUMENTS.json GRADIENTS.safetensors

DOCUMENTS: a list of token lists; the loss is the mean over all next-token targets of all of them.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM


def main(directory: str, documents: str, out: str) -> None:
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    total = torch.zeros(())
    targets = 0
    for tokens in json.loads(Path(documents).read_text()):
        ids = torch.tensor([tokens])
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits
        total = total + torch.nn.functional.cross_entropy(logits[0].float(), ids[0, 1:], reduction="sum")
        targets += ids.shape[1] - 1
    (total / targets).backward()
    gradients = {name: p.grad.contiguous() for name, p in model.named_parameters() if p.grad is not None}
    save_file(gradients | {"loss": (total / targets).detach().reshape(1)}, out)


if __name__ == "__main__":
    assert "tutti" not in sys.modules
    main(*sys.argv[1:])
