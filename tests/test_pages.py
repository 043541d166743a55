"""The pages: built with warnings as errors, from the tutorials as they were executed, and shown by a browser."""

import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec

import browser
import nbformat
import pytest
import yaml
from tutorials_run import NOTEBOOKS, TUTORIALS, executed

import gammapy_accmaker
from gammapy_accmaker.acceptance.run_table import RUN_COLUMNS
from gammapy_accmaker.config.config import AcceptanceConfig
from gammapy_accmaker.config.template import option_groups

needs_sphinx = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("sphinx", "myst_nb", "pydata_sphinx_theme")),
    reason="the pages are built with the extra `docs`",
)
PHONE = 390  # px
THEME = '"[PST]: '  # how the theme's notes to the console begin


def build(source, output, **environment):
    """Pages of a folder; a warning, such as that of a link that leads nowhere, is an error."""
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-n", "-b", "html", source, output]
    environment = {name: value for name, value in {**os.environ, **environment}.items() if value is not None}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr[-5000:]
    return output


@pytest.fixture(scope="module")
def without_data(tmp_path_factory):
    """Pages where there is no data and nothing is executed."""
    output = tmp_path_factory.mktemp("pages")
    return build(TUTORIALS, output, GAMMAPY_DATA=None, ACCMAKER_PAGES_WITHOUT_OUTPUTS="1")


@pytest.mark.slow
@needs_sphinx
def test_pages_without_data_say_so(without_data):
    for path in NOTEBOOKS:
        page = (without_data / f"{path.stem}.html").read_text()
        assert ("This page was built where" in page) == ("$GAMMAPY_DATA" in path.read_text()), path.stem
        assert re.search(rf'href="_downloads/\w+/{path.name}"', page), f"{path.name} cannot be downloaded"


@pytest.mark.slow
@needs_sphinx
def test_reference_is_complete(without_data):
    api, keys, table = (
        (without_data / "reference" / f"{name}.html").read_text() for name in ("api", "configuration", "run_table")
    )
    for name in gammapy_accmaker.__all__:
        assert f'id="{name.lower().replace("_", "-")}"' in api, name
    for group in option_groups(AcceptanceConfig):
        assert all(f'"pre">{option.key}</span>' in keys for option in group.options), group.title
    assert all(f'"pre">{name}</span>' in table for name in RUN_COLUMNS)


def test_every_key_is_described():
    for group in option_groups(AcceptanceConfig):
        assert group.summary
        for option in group.options:
            assert option.description or option.key in group.summary, f"{group.title}: {option.key}"


def test_defaults_are_those_of_the_configuration():
    """What stands in the reference as a default can be given, and changes nothing."""
    defaults = {option.key: option.default for option in next(option_groups(AcceptanceConfig)).options}
    assert list(defaults) == list(AcceptanceConfig.model_fields)
    for key, text in defaults.items():
        if text != "{...}":  # a group without a type: its own table has the defaults of its keys
            given = AcceptanceConfig(**{key: yaml.safe_load(text)})
            assert getattr(given, key) == getattr(AcceptanceConfig(), key), key


@pytest.mark.slow
@needs_sphinx
@pytest.mark.gammapy_data
def test_pages_with_outputs(tmp_path):
    """Each tutorial with its pictures; no page complains in the browser, or is wider than a phone."""
    source = tmp_path / "source"
    shutil.copytree(TUTORIALS, source)
    pictures = {}
    for path in NOTEBOOKS:
        shutil.copy(executed(path), source / path.name)
        cells = nbformat.read(executed(path), as_version=4).cells
        outputs = [output for cell in cells if cell.cell_type == "code" for output in cell.outputs]
        pictures[path.stem] = sum("image/png" in output.get("data", {}) for output in outputs)
    pages = build(source, tmp_path / "pages")
    for name, expected in pictures.items():
        assert (pages / f"{name}.html").read_text().count('src="_images/') >= expected > 0, name
    if browser.CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    for page in sorted(page for page in pages.rglob("*.html") if "_static" not in page.parts):
        assert [line for line in browser.console_lines(page) if THEME not in line] == [], page.name
        found = browser.measure(page, PHONE, page.parent)
        assert found["scroll"] <= PHONE and found["broken"] == 0, (page.name, found)
