"""The tutorial notebook runs from its first cell to its last, as a reader runs it."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[2] / "docs" / "tutorial.ipynb"


def test_it_is_kept_without_outputs_and_its_links_lead_somewhere() -> None:
    import re

    found = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(found)
    assert all(
        not cell.outputs and cell.execution_count is None for cell in found.cells if cell.cell_type == "code"
    )
    links = re.findall(
        r"\]\(([\w/.-]+)\)", "".join(c.source for c in found.cells if c.cell_type == "markdown")
    )
    generated = {"reference/configuration.md"}
    assert len(links) > 5
    assert all((NOTEBOOK.parent / link).is_file() for link in links if link not in generated), links


@pytest.mark.slow
def test_every_cell_runs(tmp_path: Path) -> None:
    found = nbformat.read(NOTEBOOK, as_version=4)
    place = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(found, timeout=240, kernel_name="python3", resources=place).execute()
    shown = str([cell.get("outputs") for cell in found.cells])
    assert "200/200" in shown and "400/400" in shown and shown.count("data:image/png") == 2
    assert "'state', 'finished'" not in shown and "finished at step 200" in shown
