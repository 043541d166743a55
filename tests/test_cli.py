"""The command line, and what the README prints."""

import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from astropy.table import Table
from click.testing import CliRunner
from gammapy.datasets import Datasets

from gammapy_accmaker import AcceptanceConfig, AcceptanceModel
from gammapy_accmaker.cli import cli

README = (Path(__file__).parent.parent / "README.md").read_text()


def code_blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    path = tmp_path_factory.mktemp("demo") / "gammapy-accmaker-demo"
    result = CliRunner().invoke(cli, ["demo", "--output", str(path)])
    return path, result


@pytest.mark.slow
def test_demo_leaves_what_it_promises(demo):
    path, result = demo
    assert result.exit_code == 0, result.output
    model = AcceptanceModel.read(path / "model.fits")
    assert len(model.run_table) == 20
    assert model.run_table["USED"].all()
    assert len(Datasets.read(path / "datasets.yaml")) == 8
    assert len(Table.read(path / "run_table.ecsv")) == 20
    for name in ("model", "residuals", "significance"):
        assert (path / f"{name}.png").stat().st_size > 20_000
    leftovers = [p.name for p in path.iterdir() if p.name.startswith(".") or p.name.startswith("tmp")]
    assert leftovers == []


@pytest.mark.slow
def test_demo_recovers_the_truth(demo):
    path, result = demo
    table = Table.read(path / "truth_against_fit.ecsv")
    # what the table holds is what is printed
    assert f"{table['FIT'][0]:.0f}" in result.output
    total = table["FIT"].sum() / table["TRUTH"].sum()
    assert total == pytest.approx(1, abs=0.01)
    assert np.abs(table["PULL"]).max() < 4
    assert "Source:" in result.output
    significance = float(re.search(r"Source: ([\d.]+) sigma", result.output)[1])
    mean, width = (float(x) for x in re.search(r"mean ([+-][\d.]+), width ([\d.]+)", result.output).groups())
    assert significance > 10
    assert abs(mean) < 0.2
    assert 0.85 < width < 1.15


@pytest.mark.slow
def test_demo_does_not_touch_what_exists(demo):
    path, _ = demo
    before = {p: p.stat().st_mtime_ns for p in path.rglob("*")}
    result = CliRunner().invoke(cli, ["demo", "--output", str(path)])
    assert result.exit_code == 1
    assert "--overwrite" in result.output
    assert {p: p.stat().st_mtime_ns for p in path.rglob("*")} == before


def test_demo_overwrites_only_an_earlier_demo(tmp_path):
    (tmp_path / "thesis.txt").write_text("irreplaceable")
    result = CliRunner().invoke(cli, ["demo", "--output", str(tmp_path), "--overwrite"])
    assert result.exit_code == 1
    assert (tmp_path / "thesis.txt").read_text() == "irreplaceable"


@pytest.mark.slow
def test_python_of_the_readme_runs_as_printed(demo, monkeypatch):
    path, _ = demo
    monkeypatch.chdir(path.parent)
    Path("sources.reg").write_text("icrs\ncircle(100.0, -21.27, 0.4)\n")
    (code,) = code_blocks("python")
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    datasets = names["datasets"]
    assert len(datasets) == 8  # the OFF runs lie outside of the map
    on = datasets[0]
    assert on.background.data[on.mask_safe.data].min() > 0
    assert on.counts.data.sum() > 0


def test_configuration_of_the_readme_is_the_default():
    (text,) = code_blocks("yaml")
    assert AcceptanceConfig.from_yaml(text).to_yaml() == AcceptanceConfig().to_yaml()
    assert set(yaml.safe_load(text)) == set(AcceptanceConfig.model_fields)


def test_help_and_version():
    runner = CliRunner()
    assert "demo" in runner.invoke(cli, ["--help"]).output
    assert runner.invoke(cli, ["--version"]).output.strip()
