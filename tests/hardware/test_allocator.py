"""What is freed is kept, or given back: counted in pages that the system has to clear, in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

_COUNT = """
import resource, torch
from tutti.hardware.allocator import {name}
{name}()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def step():
    torch.ones(12 << 20)  # 48 MiB
for _ in range(3):
    step()
before = faults()
for _ in range(5):
    step()
print(faults() - before)
"""
_PAGES = 5 * (48 << 20) // 4096


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's")
@pytest.mark.parametrize(("name", "kept"), [("keep_what_is_freed", True), ("give_back_what_is_freed", False)])
def test_the_next_tensor_has_the_memory_of_the_one_before(name: str, kept: bool) -> None:
    said = subprocess.run(
        [sys.executable, "-c", _COUNT.format(name=name)],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    cleared = int(said.stdout)
    assert cleared < _PAGES / 100 if kept else cleared > _PAGES / 100
