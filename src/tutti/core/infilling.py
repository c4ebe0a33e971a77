"""Filling in the middle: a text turned round, so that a model that goes on from texts writes what stands between two.

A text is cut into prefix, middle and suffix and told in one of two orders (Bavarian et al. 2022, arXiv 2207.14255):

    PSM   ⟨before⟩ prefix ⟨after⟩ suffix ⟨middle⟩ middle
    SPM   ⟨before⟩ ⟨after⟩ suffix ⟨middle⟩ prefix middle

Asked for a middle, a model is given what stands before it in PSM, and ends it with the end of text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

#: The marks ⟨before⟩, ⟨after⟩, ⟨middle⟩ of Tutti's own tokenizers (and Qwen's); those of StarCoder, SantaCoder, Code
#: Llama and DeepSeek.
OWN = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")
_KNOWN = (
    OWN,
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),
    ("▁<PRE>", "▁<SUF>", "▁<MID>"),
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
)


@dataclass(frozen=True)
class Sentinels:
    """Numbers of the marks."""

    before: int
    after: int
    middle: int

    @classmethod
    def of(cls, number: Callable[[str], int | None]) -> Sentinels | None:
        """Those of a tokenizer, of which `number` says what number a token has; None: it has no such marks."""
        for names in _KNOWN:
            found = [number(name) for name in names]
            if None not in found:
                return cls(*(one for one in found if one is not None))
        return None

    def ask(self, prefix: Sequence[int], suffix: Sequence[int]) -> list[int]:
        """What a model is given that is to write what stands between `prefix` and `suffix`."""
        return [self.before, *prefix, self.after, *suffix, self.middle]

    def tell(
        self, prefix: Sequence[int], middle: Sequence[int], suffix: Sequence[int], *, suffix_first: bool
    ) -> list[int]:
        """The whole, as a model learns it: PSM, or SPM."""
        if suffix_first:
            return [self.before, self.after, *suffix, self.middle, *prefix, *middle]
        return [*self.ask(prefix, suffix), *middle]
