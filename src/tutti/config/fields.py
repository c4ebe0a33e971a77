"""What every section of a Tutti file is made of."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Auto = Literal["auto"]
Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]


class Section(BaseModel):
    """A mapping in the file."""

    model_config = ConfigDict(extra="forbid", strict=True, validate_default=True, frozen=True)


def bytes_of(amount: str) -> int:
    """`500MB` or `2GB` in bytes."""
    return round(float(amount[:-2]) * {"MB": 1e6, "GB": 1e9}[amount[-2:]])
