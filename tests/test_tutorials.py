"""The tutorials run whole, as they are in the repository: without outputs, all of them in one folder, in any order."""

import json
import re

import nbformat
import pytest
from tutorials_run import NOTEBOOKS, executed


def parameter(path):
    marks = [pytest.mark.slow]
    if "GAMMAPY_DATA" in path.read_text():
        marks.append(pytest.mark.gammapy_data)
    return pytest.param(path, id=path.stem, marks=marks)


def test_there_are_tutorials():
    names = {path.stem for path in NOTEBOOKS}
    assert {"first_background", "ring_msh1552", "crab_3d", "spline_run_effects", "published_spectra"} <= names


@pytest.mark.parametrize("path", [pytest.param(path, id=path.stem) for path in NOTEBOOKS])
def test_outputs_are_stripped(path):
    code = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert code and all(cell.outputs == [] and cell.execution_count is None for cell in code)


@pytest.mark.parametrize("path", [pytest.param(path, id=path.stem) for path in NOTEBOOKS])
def test_says_what_it_is_for(path):
    text = "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown")
    assert all(words in text for words in ("## Context", "**Aim**", "**Steps**", "## What to try next"))


def test_write_to_folders_of_their_own():
    """They run beside each other: no two write to one folder."""
    written = {}
    for path in NOTEBOOKS:
        code = "".join("".join(c["source"]) for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code")
        for name in re.findall(r'(?:simulate_data_store\(\s*|Path\()"([^"/]+)', code):
            assert written.setdefault(name, path) == path, f"{name}: {path.name} and {written[name].name}"
    assert len(written) >= 6


@pytest.mark.parametrize("path", [parameter(path) for path in NOTEBOOKS])
def test_runs_whole(path):
    code = [cell for cell in nbformat.read(executed(path), as_version=4).cells if cell.cell_type == "code"]
    assert all(cell.execution_count is not None for cell in code)
    outputs = [output for cell in code for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    warnings = [output.text for output in outputs if output.output_type == "stream" and output.name == "stderr"]
    assert not warnings, "\n".join(warnings)
