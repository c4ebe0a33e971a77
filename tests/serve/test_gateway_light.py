"""A gateway passes on what others compute: it is small, and there at once."""

from __future__ import annotations

import subprocess
import sys

#: Of what computes.
HEAVY = ["torch", "transformers", "onnxruntime", "datasets"]


def test_a_gateway_is_made_without_what_computes() -> None:
    code = (
        "import sys, tutti.cli.serve, tutti.cli.release, tutti.serving, tutti.serve.gateway.run\n"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"
