"""Every notebook runs from a clean kernel, as a reader who steps through it would run it."""

from __future__ import annotations

import os
import warnings

import pytest
from helpers.processes import ROOT

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # jupyter_core's, on some versions, about where its settings lie
    import nbformat
    from nbclient import NotebookClient

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=pytest.mark.smoke if path.stem == "figure2" else ()) for path in NOTEBOOKS],
    ids=lambda path: path.stem,
)
# jupyter_client and ipykernel warn of their own sockets and loops; the notebook's errors are raised all the same.
@pytest.mark.filterwarnings("ignore")
def test_a_notebook_runs_from_its_first_cell_to_its_last(path, monkeypatch):
    monkeypatch.setitem(os.environ, "OMP_NUM_THREADS", "1")
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(path.parent)}}).execute()
    assert not any(output.output_type == "error" for cell in notebook.cells for output in cell.get("outputs", []))
    if path.stem == "figure2":  # its words come from records: it must show what they say now
        assert shown(notebook) == shown(nbformat.read(path, as_version=4))


def shown(notebook):
    """The words that the cells have put out, cell by cell."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    texts = [output.get("text") or output.get("data", {}).get("text/plain", "") for output in outputs]
    return [text.split() for text in texts]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_committed_with_its_outputs(path):
    code = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code)
    assert any(cell.outputs for cell in code)
