"""What is served: a model that has learnt Python from the standard library, and texts that it has not seen."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.trained import train_to_the_end
from tutti import api
from tutti.config import Config, load_config
from tutti.core.rundir import RunDirectory

#: Tokens that it sees.
CONTEXT = 512


@dataclass(frozen=True)
class Written:
    """`export`: a Hugging Face directory; `gguf`: the same for llama.cpp, 8 bits; `held_out`: tokens [T] in order."""

    export: Path
    gguf: Path
    held_out: np.ndarray[Any, Any]

    def load(self, **more: Any) -> Any:
        """The model, by plain transformers."""
        return AutoModelForCausalLM.from_pretrained(self.export, local_files_only=True, **more).eval()

    def tokenizer(self) -> Any:
        """As transformers has it."""
        return AutoTokenizer.from_pretrained(self.export, local_files_only=True)

    def prompts(self, count: int, length: int, seed: int) -> list[list[int]]:
        """`count` pieces of the held-out text."""
        starts = np.random.default_rng(seed).integers(0, len(self.held_out) - length, count)
        return [self.held_out[start : start + length].tolist() for start in starts]


def make_written(work: Path, *, size: str, steps: int) -> Written:
    """Train a model of `size` parameters for `steps` in `work`, unless it is there."""
    name = f"written-{size}-{steps}"
    config = Config.model_validate(
        {
            "name": name,
            "runs": str(work),
            "data": {"source": "python-stdlib", "sequence": CONTEXT, "cache": str(work / "text")},
            "model": size,
            "replicas": 1,
            "train": {"steps": steps, "batch": 4, "optimizer": "muon"},
            "checkpoint": {"every": max(1, steps // 4)},
        }
    )
    run = RunDirectory(work / name)
    if not run.report_json.exists() or json.loads(run.report_json.read_text())["state"] != "finished":
        train_to_the_end(config, resume=run.config.exists())
    gguf = work / f"{name}.gguf"
    if not gguf.exists():
        api.export(run.path, gguf, format="gguf", weights="q8_0")
    prepared = api.prepare(load_config(run.config))
    parts = [prepared.open_tokens(shard) for shard in prepared.splits["validation"].shards]
    return Written(run.export, gguf, np.concatenate(parts))
