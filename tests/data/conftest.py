"""Text, caches and where the larger real corpora may lie."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tutti.config.data import DataConfig

REAL = Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.fixture
def configure(tmp_path: Path) -> Callable[..., DataConfig]:
    """A DataConfig with a cache of its own; keywords as in the file."""

    def make(source: Any, **fields: Any) -> DataConfig:
        defaults = {"cache": str(tmp_path / "cache"), "sequence": 16, "tokenizer": "characters"}
        source = [str(item) for item in source] if isinstance(source, list) else str(source)
        return DataConfig(source=source, **(defaults | fields))

    return make


@pytest.fixture
def real_text() -> Callable[[str], Path]:
    """A file of ../shared/data; the test is skipped where it is not there."""

    def find(name: str) -> Path:
        path = REAL / name
        if not path.exists():
            pytest.skip(f"needs ../shared/data/{name}, which is not beside this checkout")
        return path

    return find
