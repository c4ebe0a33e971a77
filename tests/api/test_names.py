"""The public names, in a fresh interpreter."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "first",
    [
        "tutti.train",
        *(
            pytest.param(f"tutti.{name}", marks=pytest.mark.slow)
            for name in ("fit", "evaluate", "load_config")
        ),
    ],
)
def test_functions_stay_functions_whatever_was_imported(first: str) -> None:
    """`train` and `evaluate` are rooms as well; asked for twice, the functions must not have become these."""
    code = (
        f"import tutti; {first}; "
        "assert not isinstance(tutti.train, type(tutti)) and not isinstance(tutti.evaluate, type(tutti)); "
        "from tutti.train.settings import Settings; from tutti.evaluate import Evaluation; "
        "assert not isinstance(tutti.train, type(tutti)) and not isinstance(tutti.evaluate, type(tutti))"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
