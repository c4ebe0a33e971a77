"""Texts that are too short, too long, or hardly made of letters."""

from __future__ import annotations

from collections import Counter
from functools import cache

import numpy as np
from numpy.typing import NDArray

from tutti.data.cleaning.step import Dropped
from tutti.data.cleaning.words import kinds_of_characters
from tutti.data.listing import Kind


class Length:
    """By characters."""

    name = "length"

    def __init__(self, shortest: int, longest: int | None) -> None:
        self._shortest = shortest
        self._longest = longest

    def apply(self, text: str, kind: Kind, found: Counter[str]) -> str | Dropped:
        if len(text) < self._shortest:
            return Dropped(f"shorter than {self._shortest}")
        if self._longest is not None and len(text) > self._longest:
            return Dropped(f"longer than {self._longest}")
        return text


class Letters:
    """By the share of letters and digits, of any writing, in what is not white space."""

    name = "letters"

    def __init__(self, share: float) -> None:
        self._share = share

    def apply(self, text: str, kind: Kind, found: Counter[str]) -> str | Dropped:
        return text if share_of_letters(text) >= self._share else Dropped(f"letters below {self._share:g}")


def share_of_letters(text: str) -> float:
    """Letters, digits and marks ÷ characters that are no white space; 0 of nothing."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
    visible = len(codes) - int(np.count_nonzero(_white()[codes]))
    return int(np.count_nonzero(kinds_of_characters()[codes])) / max(visible, 1)


@cache
def _white() -> NDArray[np.bool_]:
    """[code points]"""
    white = np.zeros(len(kinds_of_characters()), bool)
    for code in (*range(0x3001), 0xFEFF):
        white[code] = chr(code).isspace()
    return white
