"""How the threads that share one matrix product wait for each other, settled before torch is loaded.

OpenMP lets a thread that is done early spin for about a millisecond before it sleeps. Where anything else wants the
cores, the one that spins keeps the one that it waits for from its core: beside two busy processes of low priority a
small network on two threads did 3 steps a second, and 117 to 168 where threads spin a three-hundredth of that. On quiet
cores that costs nothing where layers are large, and 10 to 40 % where each takes microseconds.
"""

from __future__ import annotations

import os

#: Turns of the waiting loop; libgomp's own default is 300,000.
_SPINS = "1000"


def wait_politely() -> None:
    """For torch in this process, if it is not loaded yet, and in those it starts; what the user says goes first."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)
