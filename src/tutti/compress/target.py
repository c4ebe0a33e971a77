"""What a smaller model has to be: `4x smaller, 3x faster, <1% worse`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tutti.core import ConfigError

_SMALLER = re.compile(r"(\d+(?:\.\d+)?)\s*x\s+smaller")
_FASTER = re.compile(r"(\d+(?:\.\d+)?)\s*x\s+faster")
_WORSE = re.compile(r"<=?\s*(\d+(?:\.\d+)?)\s*%\s+worse")
#: By which a share may be larger than it should only because it was computed: 1 - 0.99 is 0.010000000000000009.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Target:
    """`smaller`, `faster` (batch 1): times, at least; `worse`: share of the quality that may be lost, at most."""

    smaller: float = 0.0
    faster: float = 0.0
    worse: float = 0.01

    @classmethod
    def of(cls, text: str) -> Target:
        """From parts between commas.

        Raises:
            ConfigError: a part is not understood.
        """
        values: dict[str, float] = {}
        for part in filter(None, (part.strip() for part in text.split(","))):
            for name, pattern, unit in (
                ("smaller", _SMALLER, 1.0),
                ("faster", _FASTER, 1.0),
                ("worse", _WORSE, 0.01),
            ):
                if match := pattern.fullmatch(part):
                    values[name] = float(match[1]) * unit
                    break
            else:
                raise ConfigError(
                    f"the target '{part}' is not understood",
                    'write for example "4x smaller, 3x faster, <1% worse"',
                )
        return cls(**values)

    def missed(self, smaller: float, faster: float, worse: float) -> list[str]:
        """What a model that is so many times smaller and faster, and has lost that share, falls short of."""
        found = []
        if smaller < self.smaller:
            found.append(f"{smaller:.2f}x smaller, not {self.smaller:g}x")
        if faster < self.faster:
            found.append(f"{faster:.2f}x faster (batch 1), not {self.faster:g}x")
        if not worse <= self.worse + _ROUNDING:  # nor is what is no number good enough
            found.append(f"{worse:.2%} worse, not at most {self.worse:.2%}")
        return found

    def __str__(self) -> str:
        parts = [f"{self.smaller:g}x smaller"] if self.smaller else []
        parts += [f"{self.faster:g}x faster (batch 1)"] if self.faster else []
        return ", ".join([*parts, f"at most {self.worse:.2%} worse"])
