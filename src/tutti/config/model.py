"""Which model learns."""

from __future__ import annotations

import re
from typing import Any

from pydantic import Field, model_validator

from tutti.config.fields import Fraction, NonNegative, Section


class ModelConfig(Section):
    """What is trained: a size, or a Hugging Face architecture, or a checkpoint."""

    size: str | None = Field(
        default=None,
        pattern=r"^\d+(\.\d+)?[KMB]$",
        description="One dial: about so many parameters (`800K`, `15M`, `1B`); depth, width and heads follow.",
    )
    path: str | None = Field(
        default=None,
        description="A Hugging Face model directory: `config.json`, and weights where there are any.",
    )
    config: dict[str, Any] | None = Field(
        default=None,
        description="A Hugging Face configuration, e.g. `{model_type: llama, hidden_size: 256, …}`; "
        "the vocabulary is set to the tokenizer's.",
    )
    python: str | None = Field(
        default=None, description="The class of a module given to `tutti.fit`; written by Tutti, not by hand."
    )
    from_scratch: bool = Field(
        default=False, description="Take only the architecture from `path`, not its weights."
    )
    dropout: Fraction | None = Field(
        default=None,
        description="Dropout in attention and residuals, where the architecture has it; `null`: none in a "
        "language model, and what the architecture says where labelled examples are learned.",
    )
    seed: NonNegative | None = Field(
        default=None,
        description="What first weights are drawn from; `null`: `train.seed`, and for each of several groups another.",
    )

    @model_validator(mode="after")
    def _one_origin(self) -> ModelConfig:
        given = [name for name in ("size", "path", "config", "python") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"give exactly one of size, path and config (got {' and '.join(given) or 'none'})"
            )
        if self.from_scratch and self.path is None:
            raise ValueError("from_scratch takes the architecture from `path`, which is not given")
        return self


def model_section(value: Any) -> Any:
    """`model: 15M` is short for a size, `model: DIR` for a path."""
    if not isinstance(value, str):
        return value
    is_size = re.fullmatch(r"[\d.]+[KMBkmb]", value) is not None
    return {"size": value} if is_size else {"path": value}
