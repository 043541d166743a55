"""The tutorials run whole, as they are in the repository: without outputs."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parent.parent / "tutorials").glob("*.ipynb"))
TIMEOUT = 300  # s a cell; a notebook takes less than 2 min on two cores


def parameter(path):
    marks = [pytest.mark.slow]
    if "GAMMAPY_DATA" in path.read_text():
        marks.append(pytest.mark.gammapy_data)
    return pytest.param(path, id=path.stem, marks=marks)


def test_there_are_tutorials():
    assert {"first_background", "ring_msh1552", "crab_3d", "spline_run_effects"} <= {path.stem for path in NOTEBOOKS}


@pytest.mark.parametrize("path", [pytest.param(path, id=path.stem) for path in NOTEBOOKS])
def test_outputs_are_stripped(path):
    code = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert code and all(cell.outputs == [] and cell.execution_count is None for cell in code)


@pytest.mark.parametrize("path", [parameter(path) for path in NOTEBOOKS])
def test_runs_whole(path, tmp_path):
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook, timeout=TIMEOUT, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    ).execute()
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count is not None for cell in code)
    assert any("image/png" in output.get("data", {}) for cell in code for output in cell.outputs)
