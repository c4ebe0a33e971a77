"""While workers are started without the user's script, the script's module is whole for everybody else."""

from __future__ import annotations

import inspect
import sys
from multiprocessing import spawn
from pathlib import Path

import pytest

from tutti.launch.agent import hidden_main


def test_children_get_no_script_and_this_process_keeps_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    code = tmp_path / "of_no_module.py"
    code.write_text("0")
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    monkeypatch.setattr(sys.modules["__main__"], "__file__", __file__, raising=False)
    assert "init_main_from_path" in spawn.get_preparation_data("a worker")  # what would run the script again
    # torch elastic logs with this, in the agent's thread; it had looked at the script before, from elsewhere.
    monkeypatch.setitem(inspect._filesbymodname, "__main__", "elsewhere")  # type: ignore[attr-defined]
    with hidden_main():
        data = spawn.get_preparation_data("a worker")
        assert not [key for key in data if key.startswith("init_main")] and "sys_path" in data
        assert inspect.getmodule(compile("0", str(code), "exec")) is None
    assert "init_main_from_path" in spawn.get_preparation_data("a worker")
