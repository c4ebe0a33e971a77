"""The peer: nanoGPT's published recipe for a laptop CPU, as a plain PyTorch loop.

Recipe (nanoGPT's README, "I only have a macbook"): characters of tiny Shakespeare, 4 layers, 4 heads, 128
wide, block 64, batch 12, 2000 iterations, dropout 0; learning rate 1e-3 with a cosine to 1e-4, warm-up 100,
betas (0.9, 0.99), weight decay 0.1 on matrices, gradients clipped at 1.0, fp32; the last 10 % of the text is
validation. The code is our own; nothing of Tutti is imported. Where the choice was ours, it favours the peer:
the fused AdamW, scaled_dot_product_attention, no logging, and evaluation outside its clock.

    python benchmarks/time_to_quality/peer.py --text input.txt --core 1 --out peer.json
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

LAYERS, HEADS, WIDTH, BLOCK, BATCH, STEPS = 4, 4, 128, 64, 12, 2000
PEAK, FINAL, WARMUP = 1e-3, 1e-4, 100


class Block(nn.Module):
    """Pre-norm attention and a GELU MLP, without biases."""

    def __init__(self) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(WIDTH, bias=False)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.out = nn.Linear(WIDTH, WIDTH, bias=False)
        self.norm_mlp = nn.LayerNorm(WIDTH, bias=False)
        self.up = nn.Linear(WIDTH, 4 * WIDTH, bias=False)
        self.down = nn.Linear(4 * WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Hidden states [B, S, D] to hidden states."""
        b, s, d = x.shape
        q, k, v = (
            part.view(b, s, HEADS, d // HEADS).transpose(1, 2)
            for part in self.qkv(self.norm_attention(x)).split(d, dim=2)
        )
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(b, s, d))
        return x + self.down(functional.gelu(self.up(self.norm_mlp(x))))


class Peer(nn.Module):
    """GPT-2's shape, head tied to the embedding."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, WIDTH)
        self.positions = nn.Embedding(BLOCK, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm = nn.LayerNorm(WIDTH, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() >= 2:
                residual = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * LAYERS) if residual else 0.02)

    def forward(self, ids: Tensor) -> Tensor:
        """Characters [B, S] to logits [B, S, V]."""
        x = self.tokens(ids) + self.positions.weight[: ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        return functional.linear(self.norm(x), self.tokens.weight)


def learning_rate(step: int) -> float:
    """nanoGPT's schedule; `step` is 0-based."""
    if step < WARMUP:
        return PEAK * (step + 1) / (WARMUP + 1)
    return FINAL + 0.5 * (PEAK - FINAL) * (1 + math.cos(math.pi * (step - WARMUP) / (STEPS - WARMUP)))


@torch.no_grad()
def validate(model: nn.Module, text: Tensor) -> float:
    """Mean nats per character over all of `text`, in windows of BLOCK side by side."""
    windows = (len(text) - 1) // BLOCK
    inputs = text[: windows * BLOCK].view(windows, BLOCK)
    labels = text[1 : windows * BLOCK + 1].view(windows, BLOCK)
    total = 0.0
    for x, y in zip(inputs.split(128), labels.split(128), strict=True):
        total += functional.cross_entropy(model(x).flatten(0, 1), y.flatten(), reduction="sum").item()
    return total / (windows * BLOCK)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--core", type=int, default=None, help="pin to this core")
    parser.add_argument("--seed", type=int, default=1337)
    parser.add_argument("--every", type=int, default=250, help="iterations between validations")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    if arguments.core is not None:
        os.sched_setaffinity(0, {arguments.core})
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)

    characters = arguments.text.read_text(encoding="utf-8")
    alphabet = sorted(set(characters))
    number = {character: index for index, character in enumerate(alphabet)}
    ids = torch.tensor([number[character] for character in characters])
    training, validation = ids[: int(0.9 * len(ids))], ids[int(0.9 * len(ids)) :]

    model = Peer(len(alphabet))
    decayed = [parameter for parameter in model.parameters() if parameter.dim() >= 2]
    rest = [parameter for parameter in model.parameters() if parameter.dim() < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=PEAK, betas=(0.9, 0.99), fused=True)
    offsets = torch.arange(BLOCK)

    curve: list[dict[str, float]] = []
    wall = cpu = 0.0
    for step in range(STEPS):
        started, started_cpu = time.perf_counter(), time.process_time()
        where = torch.randint(len(training) - BLOCK, (BATCH, 1)) + offsets
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step)
        loss = functional.cross_entropy(model(training[where]).flatten(0, 1), training[where + 1].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        wall += time.perf_counter() - started
        cpu += time.process_time() - started_cpu
        if (step + 1) % arguments.every == 0 or step + 1 == STEPS:
            nats = validate(model, validation)
            curve.append(
                {"step": step + 1, "wall_seconds": wall, "cpu_seconds": cpu, "nats_per_character": nats}
            )
            print(f"step {step + 1}  {wall:.1f} s  {nats:.4f} nats/character", flush=True)
    result = {
        "who": "peer",
        "seed": arguments.seed,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "wall_seconds": wall,
        "cpu_seconds": cpu,
        "nats_per_character": curve[-1]["nats_per_character"],
        "curve": curve,
    }
    arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
