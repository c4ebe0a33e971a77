"""The text that all peers train on: windows over tokens that Tutti prepared. Imports nothing of Tutti."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset


class Windows(Dataset[dict[str, Tensor]]):
    """Sample i is tokens i·S … i·S + S − 1 with the tokens that follow them; `files`: `.npy`, memory-mapped."""

    def __init__(self, files: list[str], sequence: int, *, shifted: bool) -> None:
        """`shifted`: labels are the next tokens; otherwise they equal the inputs and the model shifts them."""
        self._tokens = [np.load(file, mmap_mode="r") for file in files]
        self._sequence = sequence
        self._shifted = shifted
        self._samples = [(len(tokens) - 1) // sequence for tokens in self._tokens]

    def __len__(self) -> int:
        return sum(self._samples)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        file = 0
        while index >= self._samples[file]:
            index -= self._samples[file]
            file += 1
        start = index * self._sequence
        window = torch.from_numpy(self._tokens[file][start : start + self._sequence + 1].astype(np.int64))
        inputs = window[:-1]
        return {"input_ids": inputs, "labels": window[1:] if self._shifted else inputs}


def read_task(path: str) -> dict[str, Any]:
    """What `run.py` wrote for the peers: model, token files, sizes, precision."""
    task: dict[str, Any] = json.loads(Path(path).read_text())
    return task
