"""The global order: which samples make up which step, whoever computes them.

Position p = 0, 1, 2, … counts the samples of the whole run. Epoch e has n_e samples and takes the positions
P_e ≤ p < P_e + n_e with P_0 = 0 and P_{e+1} = P_e + n_e. At position p stands sample π(p − P_e) of epoch
e, where π is a permutation of {0, …, n_e − 1} that depends on (seed, e, n_e) alone and needs no memory:
a Feistel network over the numbers of 2h bits, walked until it falls below n_e.

All arithmetic is on unsigned 64-bit integers, modulo 2^64. ⊕ is exclusive or.

    S(x):  z = x + 0x9E3779B97F4A7C15
           z = (z ⊕ (z >> 30)) · 0xBF58476D1CE4E5B9
           z = (z ⊕ (z >> 27)) · 0x94D049BB133111EB
           S(x) = z ⊕ (z >> 31)                      (SplitMix64: Steele, Lea, Flood, OOPSLA 2014)

    key  = S(S(seed mod 2^64) ⊕ e)
    k_r  = S(key + r)                                for the rounds r = 0, …, 7
    h    = max(1, ⌈b / 2⌉), b the number of bits of n_e − 1
    m    = 2^h − 1

    F(x):  L = x >> h,  R = x & m
           for r = 0, …, 7:  (L, R) = (R, L ⊕ (S(R ⊕ k_r) & m))
           F(x) = (L << h) | R                       (a bijection of the numbers below 2^(2h) < 4·max(n_e, 2))

    π(i):  x = F(i);  while x ≥ n_e: x = F(x);  π(i) = x

Walking along a cycle of F from a point below n_e comes back below n_e, at the latest at that point itself,
so π is a bijection (Black and Rogaway, CT-RSA 2002). `docs/explanation/global-order.md` says it at leisure.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

ROUNDS = 8
#: Positions are permuted in aligned blocks, the last of which is kept: a step asks for few samples at a time,
#: and NumPy takes as long for ten numbers as for a thousand.
_BLOCK = 4096
_MASK = (1 << 64) - 1
_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


class GlobalOrder:
    """The endless sequence of samples of a run; its epoch e has `samples_in_epoch(e)` samples."""

    def __init__(self, seed: int, samples_in_epoch: Callable[[int], int]) -> None:
        self._seed = seed
        self._samples_in_epoch = samples_in_epoch
        self._starts = [0]  # P_0, P_1, …: as many epochs as were asked for yet
        self._block: tuple[tuple[int, int], NDArray[np.int64]] = ((-1, -1), np.empty(0, dtype=np.int64))

    def locate(self, start: int, stop: int) -> list[tuple[int, NDArray[np.int64]]]:
        """Samples at the positions [start, stop), as (epoch, indices) in order; no epoch twice, none empty.

        Raises:
            ValueError: not 0 <= start <= stop, or an epoch without samples.
        """
        if not 0 <= start <= stop:
            raise ValueError(f"positions must be 0 <= start <= stop, not [{start}, {stop})")
        self._reach(stop)
        found = []
        while start < stop:
            epoch = bisect_right(self._starts, start) - 1
            first, end = self._starts[epoch], self._starts[epoch + 1]
            until = min(stop, end)
            found.append((epoch, self._permuted(epoch, end - first, start - first, until - first)))
            start = until
        return found

    def _permuted(self, epoch: int, samples: int, low: int, high: int) -> NDArray[np.int64]:
        """π at [low, high)."""
        result = np.empty(high - low, dtype=np.int64)
        at = low
        while at < high:
            number = at // _BLOCK
            key, block = self._block
            if key != (epoch, number):
                positions = np.arange(number * _BLOCK, min((number + 1) * _BLOCK, samples), dtype=np.uint64)
                block = permute(self._seed, epoch, samples, positions)
                self._block = ((epoch, number), block)
            until = min(high, (number + 1) * _BLOCK)
            result[at - low : until - low] = block[at - number * _BLOCK : until - number * _BLOCK]
            at = until
        return result

    def _reach(self, position: int) -> None:
        while self._starts[-1] < position:
            epoch = len(self._starts) - 1
            samples = self._samples_in_epoch(epoch)
            if samples < 1:
                raise ValueError(f"epoch {epoch} has no samples")
            self._starts.append(self._starts[-1] + samples)


def permute(seed: int, epoch: int, samples: int, positions: NDArray[np.uint64]) -> NDArray[np.int64]:
    """π of the module's head at `positions` (each below `samples`), in time and memory of their number."""
    half = np.uint64(max(1, ((samples - 1).bit_length() + 1) // 2))
    mask = np.uint64((1 << int(half)) - 1)
    keys = _round_keys(seed, epoch)
    result = _feistel(positions.astype(np.uint64), half, mask, keys)
    outside = np.flatnonzero(result >= samples)
    while outside.size:
        result[outside] = _feistel(result[outside], half, mask, keys)
        outside = outside[result[outside] >= samples]
    return result.astype(np.int64)


def mix(value: int) -> int:
    """S(value mod 2^64) of the module's head."""
    return int(_mix(np.array([value & _MASK], dtype=np.uint64))[0])


def _round_keys(seed: int, epoch: int) -> NDArray[np.uint64]:
    key = mix(mix(seed) ^ epoch)
    return np.array([mix(key + number) for number in range(ROUNDS)], dtype=np.uint64)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    # Arrays wrap around silently, which is what is wanted.
    z = x + _GAMMA
    z = (z ^ (z >> np.uint64(30))) * _MIX_1
    z = (z ^ (z >> np.uint64(27))) * _MIX_2
    return z ^ (z >> np.uint64(31))


def _feistel(
    x: NDArray[np.uint64], half: np.uint64, mask: np.uint64, keys: NDArray[np.uint64]
) -> NDArray[np.uint64]:
    left, right = x >> half, x & mask
    for key in keys:
        left, right = right, left ^ (_mix(right ^ key) & mask)
    return (left << half) | right
