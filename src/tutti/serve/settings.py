"""What may be chosen of how a model is served. Needs no torch: a gateway only hands it on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

#: How weights are computed with; `auto`: as whole numbers of 8 bits on a CPU.
Weights = Literal["auto", "as-they-are", "int8", "bf16"]
#: What computes a model that does not write; `auto`: what is faster here.
EngineChoice = Literal["auto", "native", "onnx"]


@dataclass(frozen=True)
class Settings:
    """`name`: None: the model's own. `slots`, `context`: of a model that writes. `queue_length`: None: what suits the
    kind. `documents`: a folder from which questions are answered; `embedder`: a model by which it is searched, too.
    `most_texts`: that one request may ask a writer for (None: as many as there are slots)."""

    name: str | None = None
    slots: int = 8
    context: int | None = None
    queue_length: int | None = None
    weights: Weights = "auto"
    engine: EngineChoice = "auto"
    documents: Path | None = None
    embedder: Path | None = None
    most_texts: int | None = None
