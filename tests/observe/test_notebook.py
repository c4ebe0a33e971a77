"""What a notebook shows of a run: a real kernel, real workers, code of cells that no worker could import."""

from __future__ import annotations

import base64
import threading
import time
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

SETTINGS = "batch=16, workers=2, train__precision='fp32', train__learning_rate=0.01, trackers=[]"
CELLS = [
    """
import threading, time, torch, tutti

SLOW = 0.0

class Mine(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)

    def forward(self, x):
        if self.training:
            time.sleep(SLOW)
        return self.layer(x).squeeze(-1)

class Pairs(torch.utils.data.Dataset):
    def __len__(self):
        return 64

    def __getitem__(self, i):
        x = torch.arange(4.0) * 0.1 + i / 64
        return x, x.sum()

def mine(outputs, targets):
    return (outputs - targets).square()
""",
    f"result = tutti.fit(Mine(), mine, Pairs(), steps=12, name='r', {SETTINGS})\nprint(result.report['state'])",
    f"""
try:
    lock = threading.Lock()
    tutti.fit(Mine(), lambda o, t: (mine(o, t), lock)[0], Pairs(), steps=2, name='locked', {SETTINGS})
except tutti.TuttiError as error:
    print(error)
""",
]


def notebook(tmp_path: Path, cells: list[str]) -> NotebookClient:
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell.strip()) for cell in cells])
    return NotebookClient(
        made, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )


def printed(cell: Any) -> str:
    return "".join(o["text"] for o in cell.outputs if o.output_type == "stream" and o.name == "stdout")


def test_code_of_cells_is_trained_and_drawn(tmp_path: Path) -> None:
    _, trained, refused = notebook(tmp_path, CELLS).execute().cells
    (shown,) = [output for output in trained.outputs if output.output_type == "display_data"]
    html, plain = shown.data["text/html"], shown.data["text/plain"]
    for part in ("2 workers joined by allreduce", "step 12/12 · loss ", "finished at step 12"):
        assert part in html and part in plain
    picture = base64.b64decode(html.partition("base64,")[2].partition('"')[0])
    assert picture.startswith(b"\x89PNG") and len(picture) > 5000
    assert printed(trained) == "finished\n"
    assert [o.output_type for o in trained.outputs if o.output_type == "error"] == []
    assert "the loss cannot be carried to the workers: cannot pickle '_thread.lock'" in printed(refused)
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["r"]


@pytest.mark.slow
def test_the_stop_button_saves_and_says_how_to_go_on(tmp_path: Path) -> None:
    again = f"result = tutti.fit(Mine(), mine, Pairs(), steps=14, name='r', resume=True, {SETTINGS})"
    cells = [
        CELLS[0].replace("SLOW = 0.0", "SLOW = 0.05"),
        f"result = tutti.fit(Mine(), mine, Pairs(), steps=5000, name='r', {SETTINGS})\nprint(result.report['state'])",
        "SLOW = 0.0",
        again.replace("steps=14", "steps=result.report['steps'] + 2")
        + "\nprint(result.report['state'], result.report['restarts'])",
    ]
    client = notebook(tmp_path, cells)

    def press() -> None:
        events, deadline = tmp_path / "runs" / "r" / "events" / "rank-0.jsonl", time.monotonic() + 60
        while not (events.is_file() and '"kind":"step"' in events.read_text()):
            if time.monotonic() > deadline:
                return
            time.sleep(0.1)
        # As Jupyter does it: to every process of the kernel's group.
        kernel = client.km
        assert kernel is not None
        import asyncio

        asyncio.run(kernel._async_interrupt_kernel())

    presser = threading.Thread(target=press)
    presser.start()
    _, stopped, _, resumed = client.execute().cells
    presser.join()
    assert printed(stopped) == "interrupted\n"
    (shown,) = [output for output in stopped.outputs if output.output_type == "display_data"]
    assert "everything is saved" in shown.data["text/plain"]
    assert "to go on: tutti.fit(…, resume=True)" in shown.data["text/plain"]
    assert printed(resumed) == "finished 0\n"


def test_outside_of_a_notebook_lines_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    from tutti.observe.notebook import in_notebook

    assert not in_notebook()
    import IPython  # imported, but nobody's shell

    assert IPython.get_ipython() is None and not in_notebook()
