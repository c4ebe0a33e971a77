"""Processes that prepare text are many, and small."""

from __future__ import annotations

import subprocess
import sys


def test_a_process_that_prepares_text_is_made_without_what_trains() -> None:
    code = "import sys, tutti.data.worker; print([n for n in ('torch', 'transformers') if n in sys.modules])"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"
