"""The example configurations are short, say what they do, and are good."""

from pathlib import Path

import pytest

from tutti.cli import run
from tutti.config import load_config

EXAMPLES = Path(__file__).parents[2] / "examples"
FILES = sorted(EXAMPLES.glob("*.yaml"))


def test_the_examples_are_found() -> None:
    assert {"demo.yaml", "your_text.yaml"} <= {path.name for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_an_example_is_short_begins_with_its_purpose_and_is_good(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) < 25
    assert lines[0].startswith("# ") and len(lines[0]) > 20
    assert run(["validate", str(path)]) == 0
    assert "is ok" in capsys.readouterr().err


def test_two_examples_do_not_share_a_run() -> None:
    names = [load_config(path).name for path in FILES]
    assert len(set(names)) == len(names)
