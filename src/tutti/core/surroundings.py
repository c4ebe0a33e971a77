"""What torch finds around it when it is loaded, settled before: how threads wait, how large memory is taken.

OpenMP lets a thread that is done early spin for about a millisecond before it sleeps. Where anything else wants the
cores, the one that spins keeps the one that it waits for from its core: beside two busy processes of low priority a
small network on two threads did 3 steps a second, and 117 to 168 where threads spin a three-hundredth of that. On quiet
cores that costs nothing where layers are large, and 10 to 40 % where each takes microseconds.

A tensor of some megabytes is memory fresh from the system, which hands it over in pages of 4 KB, each at its first
touch, unless it is asked for pages of 2 MB: then to copy 40 MB took 7 ms instead of 24, and a training step of a 17M
model 7 to 12 % less time (AMD EPYC, Linux 6.18, 2026-11-22).
"""

from __future__ import annotations

import os

#: Turns of the waiting loop; libgomp's own default is 300,000.
_SPINS = "1000"


def settle_torch() -> None:
    """For torch in this process, if it is not loaded yet, and in those it starts; what the user says goes first."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
