"""The model of an asker as onnxruntime computes it, and which of the two is faster on this machine."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch

from tutti.models.onnx import OnnxModel, export_fastest
from tutti.package import Asker
from tutti.serve.engine.backend import AskerBackend
from tutti.serve.engine.written import kept, name_of
from tutti.tasks.task import Row

#: The least of so many times counts: what others do on the machine makes it no faster.
_TIMES = 8


def in_onnx(asker: Asker, *, int8: bool) -> Asker:
    """`asker`, whose model is a plain one in fp32, computed by onnxruntime; `int8`: in whole numbers of 8 bits.

    Raises:
        ModelError: its architecture cannot be written so, or a library is missing.
    """
    model: Any = asker.objective.model
    ids = torch.arange(8).view(2, 4)
    inputs = {"input_ids": ids}
    if asker.task.kind != "recommend":
        inputs["attention_mask"] = torch.ones_like(ids)
    if asker.encoder.types and asker.task.kind != "embed":
        inputs["token_type_ids"] = torch.zeros_like(ids)
    computed = kept(
        name_of(model, inputs, int8=int8),
        write=lambda path: export_fastest(model, inputs, path, int8=int8),
        read=lambda path: OnnxModel(path, threads=torch.get_num_threads()),
    )
    objective = asker.task.objective(computed, asker.labels)
    objective.eval()
    return dataclasses.replace(asker, objective=objective, context=nullcontext())


def tokens_per_second(backends: Sequence[AskerBackend], rows: Sequence[Row]) -> list[float]:
    """How fast each of `backends` computes `rows` together, then the first one alone; they take turns."""
    seconds = [float("inf")] * len(backends)
    for turn in range(_TIMES + 1):
        for number, backend in enumerate(backends):
            began = time.perf_counter()
            backend.answer(rows)
            backend.answer(rows[:1])
            if turn:  # the first one gets ready
                seconds[number] = min(seconds[number], time.perf_counter() - began)
    tokens = sum(len(row["input_ids"]) for row in [*rows, rows[0]])
    return [tokens / one for one in seconds]
