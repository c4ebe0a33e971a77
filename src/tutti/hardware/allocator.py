"""What the C library does with memory that is freed: glibc's, for others have habits of their own."""

from __future__ import annotations

import contextlib
import ctypes

#: `mallopt`'s numbers (malloc.h).
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4


def keep_what_is_freed() -> None:
    """Let the next tensor have the memory of the one before.

    Large blocks are otherwise asked of the system and given back each time, which clears every page of them anew. A
    step of training makes and frees gigabytes in the same few sizes: of MiniLM's with 16 texts (22.7M parameters) a
    fifth was this (15,800 page faults, 340 without; the most memory it took was the same).
    """
    _mallopt((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1))


def give_back_what_is_freed() -> None:
    """Let large blocks return to the system when they are freed.

    glibc learns from large blocks that come and go to keep them, in pieces that then fit nothing: loading 250 MB of
    weights one after another left 340 MB behind (measured in 2026). Who sends tensors into files cannot have that.
    """
    _mallopt((_M_MMAP_THRESHOLD, 1 << 20))


def _mallopt(*settings: tuple[int, int]) -> None:
    with contextlib.suppress(OSError, AttributeError):  # another C library
        library = ctypes.CDLL("libc.so.6")
        for number, value in settings:
            library.mallopt(number, value)
