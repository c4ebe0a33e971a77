"""Shared by all tests: one thread per process (workers share two cores), and where the optional real data lies."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# As the launcher sets it: torchft reads it when it is first imported, here by whichever test comes first.
os.environ.setdefault("RUST_LOG", "error")
sys.path.insert(0, str(Path(__file__).parent))
