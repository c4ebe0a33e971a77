"""What torch finds around it: settled for whoever has not settled it, before torch is loaded."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tutti.core.surroundings import settle_torch

_NAMES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "THP_MEM_ALLOC_ENABLE")
_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.fixture
def unsaid(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment that says nothing, as it was again afterwards."""
    for name in _NAMES:
        monkeypatch.setenv(name, "")  # so that it is put back, whatever is set meanwhile
        monkeypatch.delenv(name)
    return monkeypatch


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "77"}, "77"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None)],
    ids=["unsaid", "spins", "policy"],
)
def test_threads_wait_as_the_user_says_or_politely(
    given: dict[str, str], expected: str | None, unsaid: pytest.MonkeyPatch
) -> None:
    for name, value in given.items():
        unsaid.setenv(name, value)
    settle_torch()
    assert os.environ.get("GOMP_SPINCOUNT") == expected


@pytest.mark.skipif(
    not _PAGES.is_file() or "[madvise]" not in _PAGES.read_text(),
    reason="large pages are not given to who asks for them here",
)
@pytest.mark.parametrize(("given", "large"), [(None, True), ("0", False)], ids=["unsaid", "refused"])
def test_large_tensors_lie_in_large_pages(given: str | None, large: bool, unsaid: pytest.MonkeyPatch) -> None:
    if given is not None:
        unsaid.setenv("THP_MEM_ALLOC_ENABLE", given)
    settle_torch()
    code = "import torch; kept = torch.ones(2**24); print(open('/proc/self/smaps_rollup').read())"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    found = re.search(r"^AnonHugePages:\s*(\d+) kB$", said, re.MULTILINE)
    assert found is not None
    assert (int(found[1]) >= 32 * 1024) == large, "64 MB of ones"
