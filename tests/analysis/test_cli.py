"""The command line."""

import os
import re
import subprocess
import sys

import astropy.units as u
import demo_run
import numpy as np
import pytest
import stores
import yaml
from astropy.coordinates import SkyCoord
from astropy.table import Table
from click.testing import CliRunner
from gammapy.analysis import AnalysisConfig
from gammapy.data import DataStore
from gammapy.datasets import Datasets
from gammapy.maps import Map
from helpers import contents

from gammapy_accmaker import (
    AcceptanceAnalysis,
    AcceptanceAnalysisConfig,
    AcceptanceConfig,
    AcceptanceModel,
    plan_groups,
)
from gammapy_accmaker.analysis.cli import cli
from gammapy_accmaker.config.template import commented_yaml
from gammapy_accmaker.simulation.store import simulate_data_store
from gammapy_accmaker.validation import report as report_sections


@pytest.fixture(scope="module")
def demo():
    return demo_run.demo()


@pytest.mark.slow
def test_demo_leaves_what_it_promises(demo):
    path, result = demo
    assert result.exit_code == 0, result.output
    model = AcceptanceModel.read(path / "model.fits")
    assert len(model.run_table) == 20
    assert model.run_table["USED"].all()
    assert Datasets.read(path / "datasets.yaml").names == [f"run-{number}" for number in range(100001, 100009)]
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


def test_interrupted_demo_leaves_nothing_in_the_way(tmp_path, monkeypatch):
    def interrupted(maker, observations, n_jobs=None):
        raise KeyboardInterrupt

    monkeypatch.setattr("gammapy_accmaker.simulation.demo.AcceptanceBackgroundMaker.fit", interrupted)
    monkeypatch.setattr(
        "gammapy_accmaker.simulation.demo.simulate_data_store",
        lambda path: simulate_data_store(path, n_wobble=1, n_off=1),
    )
    for arguments in ([], ["--overwrite"]):
        result = invoke("demo", "--output", tmp_path / "demo", *arguments)
        assert result.exit_code == 1 and "Aborted" in result.output
        assert list(tmp_path.iterdir()) == []


def test_help_and_version():
    runner = CliRunner()
    assert "demo" in runner.invoke(cli, ["--help"]).output
    assert runner.invoke(cli, ["--version"]).output.strip()


def invoke(*arguments):
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def settings(folder, **background):
    """Configuration of a small analysis of the simulated store, as nested options."""
    store = stores.full_store()
    region = folder / "sources.reg"
    region.write_text("icrs\ncircle(100.0, -21.27, 0.4)\n")
    axes = {
        "energy": {"min": "0.5 TeV", "max": "10 TeV", "nbins": 2},
        "energy_true": {"min": "0.2 TeV", "max": "30 TeV", "nbins": 4},
    }
    wcs = {
        "skydir": {"frame": "icrs", "lon": "100 deg", "lat": "-21.27 deg"},
        "binsize": "0.1 deg",
        "width": {"width": "3 deg", "height": "3 deg"},
    }
    return {
        "observations": {"datastore": str(store.path), "obs_ids": list(store.on_obs_ids[:3])},
        "datasets": {
            "type": "3d",
            "geom": {"wcs": wcs, "axes": axes},
            "background": {
                "method": "acceptance",
                "exclusion": str(region),
                "parameters": {"model": {"type": "radial"}, "energy": {"min": "0.3 TeV", "max": "10.0 TeV"}},
            } | background,
        },
    }  # fmt: skip


def written(folder, options=None, **background):
    """The options, or `settings`, as a configuration file."""
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(options or settings(folder, **background)))
    return path


@pytest.fixture
def config(tmp_path):
    return written(tmp_path)


def test_template_loads_as_the_defaults():
    text = commented_yaml(AcceptanceConfig())
    assert AcceptanceConfig.from_yaml(text).to_yaml() == AcceptanceConfig().to_yaml()
    changed = AcceptanceConfig(
        model={"type": "grid", "offset_bins": ["0 deg", "1 deg", "2 deg"]}, renormalization={"type": "fov"}
    )
    assert AcceptanceConfig.from_yaml(commented_yaml(changed)).to_yaml() == changed.to_yaml()
    assert AnalysisConfig.from_yaml(commented_yaml(AnalysisConfig())) == AnalysisConfig()


def test_template_explains_every_group_and_names_the_choices():
    text = commented_yaml(AcceptanceConfig())
    lines = text.splitlines()
    for name in AcceptanceConfig.model_fields:
        (number,) = (k for k, line in enumerate(lines) if line.startswith(f"{name}:"))
        assert lines[number - 1].startswith("# "), f"{name} is not explained"
    assert "type: spline  # spline | radial | grid" in text
    assert "# none | norm | tilt | shift" in text
    assert "`" not in text and max(map(len, lines)) <= 100


def test_printed_configuration_is_one_of_an_acceptance():
    result = invoke("config")
    assert result.exit_code == 0
    found = AcceptanceAnalysisConfig.from_options(yaml.safe_load(result.output) | {"observations": {}})
    background = found.datasets.background
    assert background.method == "acceptance"
    searched = AcceptanceConfig(exclusion={"iterative": {}})
    assert AcceptanceConfig.coerce(background.parameters).to_yaml() == searched.to_yaml()
    defaults, rest = AcceptanceAnalysisConfig().model_dump(), found.model_dump()
    for options in (defaults, rest):
        options["datasets"].pop("background")
        options["datasets"].pop("type")
        options["datasets"]["geom"]["wcs"] = None
    assert rest == defaults
    assert found.datasets.type == "3d"
    found.check_complete()
    assert "# off_observations: null" in result.output and "# model: null" in result.output


@pytest.mark.slow
@pytest.mark.gammapy_data
def test_printed_configuration_runs_as_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert invoke("config", "--output", "config.yaml").exit_code == 0
    result = invoke("run", "config.yaml")
    assert result.exit_code == 0, result.output
    significance = Map.read(tmp_path / "datasets" / "significance.fits")
    crab = SkyCoord("83.633 deg", "22.014 deg")
    assert np.all(significance.get_by_coord({"skycoord": crab, "energy": significance.geom.axes[0].center[:3]}) > 10)
    model = AcceptanceModel.read(tmp_path / "datasets" / "model.fits")
    assert min(found.center.separation(crab) for found in model.found_regions) < 0.1 * u.deg


def test_configuration_file_is_kept(tmp_path):
    path = tmp_path / "config.yaml"
    assert invoke("config", "--output", path).exit_code == 0
    path.write_text("mine")
    assert invoke("config", "--output", path).exit_code == 1
    assert path.read_text() == "mine"
    assert invoke("config", "--output", path, "--overwrite").exit_code == 0
    assert path.read_text() == invoke("config").output


def test_fit_and_inspect(config, tmp_path):
    model = tmp_path / "model.fits"
    result = invoke("fit", config, "--output", model)
    assert result.exit_code == 0, result.output
    analysis = AcceptanceAnalysis(AcceptanceAnalysisConfig.read(config))
    analysis.get_observations()
    expected = analysis.get_acceptance().model.rate_model.to_arrays()
    found = AcceptanceModel.read(model).rate_model.to_arrays()
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values)
    before = contents(tmp_path)
    again = invoke("fit", config, "--output", model)
    assert again.exit_code == 1 and "--overwrite" in again.output
    assert contents(tmp_path) == before
    assert invoke("fit", config, "--output", model, "--overwrite", "--n-jobs", 2).exit_code == 0
    shown = invoke("inspect", model)
    assert shown.exit_code == 0
    for word in ("type: radial", "OBS_ID", "NORM", *map(str, stores.full_store().on_obs_ids[:3])):
        assert word in shown.output


def test_run_gives_what_the_analysis_gives(config, tmp_path):
    path = tmp_path / "results"
    result = invoke("run", config, "--output", path)
    assert result.exit_code == 0, result.output
    analysis = AcceptanceAnalysis(AcceptanceAnalysisConfig.read(config))
    analysis.get_observations()
    analysis.get_datasets()
    analysis.get_excess_map()
    (found,), (expected,) = Datasets.read(path / "datasets.yaml"), analysis.datasets
    np.testing.assert_array_equal(found.counts.data, expected.counts.data)
    np.testing.assert_allclose(found.background.data, expected.background.data, rtol=1e-6)  # FITS in single precision
    significance = Map.read(path / "significance.fits")
    np.testing.assert_allclose(significance.data, analysis.excess_map["sqrt_ts"].data, rtol=1e-5, equal_nan=True)
    assert significance.get_by_coord({"skycoord": expected.counts.geom.center_skydir, "energy": 2 * u.TeV}).max() > 5
    names = {"datasets.yaml", "config.yaml", "model.fits", "run_table.ecsv", "stacked.fits",
             "excess.fits", "excess.png", "significance.fits", "significance.png"}  # fmt: skip
    assert {p.name for p in path.iterdir()} == names
    assert AcceptanceAnalysisConfig.read(path / "config.yaml") == analysis.config
    assert {p.name for p in tmp_path.iterdir()} == {"config.yaml", "sources.reg", "results"}

    before = contents(path)
    again = invoke("run", config, "--output", path)
    assert again.exit_code == 1 and "--overwrite" in again.output
    assert contents(path) == before
    # with a model file nothing is fitted, and the result is the same
    (tmp_path / "applied.yaml").write_text(yaml.safe_dump(settings(tmp_path, model=str(path / "model.fits"))))
    (path / "earlier").touch()
    applied = invoke("run", tmp_path / "applied.yaml", "--output", path, "--overwrite")
    assert applied.exit_code == 0, applied.output
    assert {p.name for p in path.iterdir()} == names
    (found,) = Datasets.read(path / "datasets.yaml")
    np.testing.assert_allclose(found.background.data, expected.background.data, rtol=1e-6)
    assert invoke("fit", tmp_path / "applied.yaml", "--output", tmp_path / "m.fits").exit_code == 1


def test_datasets_of_runs_have_the_names_of_their_runs(config, tmp_path, caplog):
    options = settings(tmp_path)
    options["datasets"]["stack"] = False
    written(tmp_path, options)
    result = invoke("run", config, "--output", tmp_path / "results")
    assert result.exit_code == 0 and "stack: true" in result.output + caplog.text, result.output
    names = [f"run-{number}" for number in stores.full_store().on_obs_ids[:3]]
    assert Datasets.read(tmp_path / "results" / "datasets.yaml").names == names
    assert {path.stem for path in (tmp_path / "results").glob("run-*.fits")} == {*names}


def test_run_replaces_results_only(config, tmp_path):
    folder = tmp_path / "home"
    folder.mkdir()
    (folder / "thesis.txt").write_text("irreplaceable")
    result = invoke("run", config, "--output", folder, "--overwrite")
    assert result.exit_code == 1 and "home" in result.output
    assert (folder / "thesis.txt").read_text() == "irreplaceable"


@pytest.mark.parametrize("command", ["run", "fit"])
def test_interrupt_leaves_nothing_behind(command, config, tmp_path, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    # by then, part of the output is written
    last = (
        "gammapy_accmaker.analysis.analysis.AcceptanceAnalysis.get_excess_map"
        if command == "run"
        else "gammapy_accmaker.utils.files.os.replace"
    )
    monkeypatch.setattr(last, interrupted)
    before = contents(tmp_path)
    result = invoke(command, config, "--output", tmp_path / "output")
    assert result.exit_code == 1 and "Aborted" in result.output
    assert contents(tmp_path) == before
    assert {p.name for p in tmp_path.iterdir()} == {"config.yaml", "sources.reg"}


def test_plan_says_which_runs_are_pooled(tmp_path):
    parameters = {
        "model": {"type": "radial"},
        "zenith": {"type": "binned", "min_livetime": "10 min", "min_observations": 1},
    }
    path, picture = written(tmp_path, parameters=parameters), tmp_path / "plan.png"
    result = invoke("plan", path, "--output", picture)
    assert result.exit_code == 0, result.output
    analysis = AcceptanceAnalysis(AcceptanceAnalysisConfig.read(path))
    analysis.get_observations()
    expected = plan_groups(analysis.observations, parameters, exclusion=str(tmp_path / "sources.reg"))
    assert str(expected) in result.output and expected.n_groups > 1
    assert picture.stat().st_size > 5000
    again = invoke("plan", path, "--output", picture)
    assert again.exit_code == 1 and "--overwrite" in again.output
    # the plan is in the report and the model file too
    model = tmp_path / "model.fits"
    assert invoke("fit", path, "--output", model).exit_code == 0
    assert str(expected) in invoke("inspect", model).output
    text = report_sections._plan(AcceptanceModel.read(model))
    assert f"Runs were pooled in {expected.n_groups} bins" in text and "data:image/png" in text


def test_plan_of_the_default_model_is_one_group_that_says_why(tmp_path):
    path = written(tmp_path, parameters={})
    result = invoke("plan", path, "--output", tmp_path / "plan.png")
    assert result.exit_code == 0, result.output
    assert "1 group, 3 runs" in result.output and "smooth function of the zenith angle" in result.output
    result = invoke("plan", path, "--output", tmp_path / "plan.xyz")
    assert result.exit_code == 1 and "plan.xyz is no kind of picture" in result.output


def test_outputs_go_where_the_configuration_says(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = settings(tmp_path) | {"general": {"outdir": str(tmp_path / "results" / "today")}}
    written(tmp_path, options)
    result = invoke("fit", config)
    assert result.exit_code == 0, result.output
    assert AcceptanceModel.read(tmp_path / "results" / "today" / "model.fits").run_table["USED"].all()
    assert invoke("fit", config, "--output", "here.fits").exit_code == 0
    assert {p.name for p in tmp_path.iterdir()} == {"config.yaml", "sources.reg", "results", "here.fits"}
    written(tmp_path, options | {"general": {"outdir": str(tmp_path / "here.fits" / "below")}})
    assert "general.outdir: the folder" in invoke("fit", config).output
    monkeypatch.setattr("os.access", lambda path, mode: mode != os.W_OK)  # root may write anywhere
    assert "cannot be written to" in invoke("fit", config, "--output", "there.fits").output


@pytest.mark.parametrize("command", ["fit", "run", "report", "attach"])
def test_what_is_wrong_with_the_configuration_is_told_before_the_output(command, config, tmp_path):
    output = tmp_path / "output"
    if command in ("fit", "report"):
        output.touch()
    else:
        output.mkdir()
        (output / ("datasets.yaml" if command == "run" else "hdu-index.fits.gz")).touch()
    assert "--overwrite" in invoke(command, config, "--output", output).output
    result = invoke(command, tmp_path / "nowhere.yaml", "--output", output)
    assert result.exit_code in (1, 2) and "nowhere.yaml" in result.output and "--overwrite" not in result.output
    assert "gammapy-accmaker config --output" in result.output
    config.write_text(config.read_text().replace("radial", "redial"))
    result = invoke(command, config, "--output", output)
    assert result.exit_code == 1 and "redial" in result.output and "--overwrite" not in result.output


@pytest.mark.parametrize("given", [{}, {"datastore": "$GAMMAPY_DATA/hess-dl3-dr1"}])
def test_variable_that_is_not_set_is_named(given, tmp_path):
    path = written(tmp_path, settings(tmp_path) | {"observations": given})
    environment = {name: value for name, value in os.environ.items() if name != "GAMMAPY_DATA"}
    # gammapy looks at it when it is imported
    code = f"from gammapy_accmaker.analysis.cli import cli; cli(['fit', {str(path)!r}])"
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert result.returncode == 1
    assert "observations.datastore" in result.stderr and "GAMMAPY_DATA is not set" in result.stderr, result.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["fit", "--help"], ["fit"], ["nothing"]])
def test_help_and_wrong_usage_are_answered_without_gammapy(arguments):
    code = f"""
import sys
from gammapy_accmaker.analysis.cli import cli
try:
    cli({arguments!r})
except SystemExit:
    assert not {{"gammapy", "astropy", "numpy", "matplotlib"}} & set(sys.modules)
    print("answered")
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.endswith("answered\n"), result.stderr


def test_attach_writes_a_store_that_gammapy_reads(config, tmp_path):
    path = tmp_path / "dl3"
    result = invoke("attach", config, "--output", path)
    assert result.exit_code == 0 and "3 of 3" in result.output, result.output
    ids = list(stores.full_store().on_obs_ids[:3])
    observations = DataStore.from_dir(path).get_observations(ids, required_irf=["aeff", "edisp", "psf", "bkg"])
    assert len(observations) == 3 and all(o.bkg.data.max() > 0 for o in observations)
    before = contents(path)
    again = invoke("attach", config, "--output", path)
    assert again.exit_code == 1 and "--overwrite" in again.output
    assert contents(path) == before


def test_report_of_a_configuration(config, tmp_path, empty_pictures):
    path = tmp_path / "report.html"
    result = invoke("report", config, "--output", path)
    assert result.exit_code == 0, result.output
    text = path.read_text()
    assert "3 of 3" in text and "sources.reg" in text and f"/{stores.full_store().path.name}</h1>" in text
    assert invoke("report", config, "--output", path).exit_code == 1
    assert path.read_text() == text


# what is wrong, and the key that is named
BAD = {
    "misspelt key": ({"parameters": {"offsetmax": "2 deg"}}, "datasets.background.parameters.offsetmax"),
    "wrong unit": ({"parameters": {"offset_max": "2 TeV"}}, "offset_max"),
    "missing file": ({"exclusion": "nowhere.reg"}, "datasets.background.exclusion"),
    "missing model": ({"model": "nowhere.fits"}, "datasets.background.model"),
    "ring with several bins": ({"parameters": {"renormalization": {"type": "ring"}}}, "renormalization"),
    "OFF without runs": ({"off_observations": {}}, "off_observations"),
    "other method": ({"method": "ring", "parameters": {}}, "datasets.background.method"),
}  # fmt: skip


@pytest.mark.parametrize("command", ["fit", "run", "report"])
@pytest.mark.parametrize("kind", BAD)
def test_bad_configuration_is_told_by_key_before_data_are_read(command, kind, tmp_path, monkeypatch):
    def read(*args, **kwargs):
        raise AssertionError("data are read")

    monkeypatch.setattr(DataStore, "from_dir", read)
    background, key = BAD[kind]
    path = written(tmp_path, **background)
    before = contents(tmp_path)
    result = invoke(command, path, "--output", tmp_path / "output")
    assert result.exit_code == 1
    assert result.output.startswith("Error: ") and key in result.output, result.output
    assert contents(tmp_path) == before


def test_datasets_without_a_place_are_told_before_data_are_read(tmp_path, monkeypatch):
    options = settings(tmp_path)
    options["datasets"]["geom"]["wcs"].pop("skydir")
    path = written(tmp_path, options)
    monkeypatch.setattr(DataStore, "from_dir", None)
    result = invoke("run", path, "--output", tmp_path / "output")
    assert result.exit_code == 1 and "datasets.geom.wcs.skydir" in result.output, result.output


def test_files_that_are_no_configuration_or_model(config, tmp_path):
    path = tmp_path / "file.yaml"
    for command in ("fit", "run", "report", "inspect"):
        result = invoke(command, path)
        assert result.exit_code == 1 and "file.yaml" in result.output
    path.write_text("a: [")
    for command in ("fit", "run", "report"):
        result = invoke(command, path, "--output", tmp_path / "output")
        assert result.exit_code == 1 and "YAML" in result.output
    result = invoke("inspect", path)
    assert result.exit_code == 1 and result.output.count("is no FITS file") == 1
    result = invoke("fit", config, "--output", tmp_path / "nowhere" / "model.fits")
    assert result.exit_code == 1 and "nowhere" in result.output


NO_RUNS = {"obs_ids": ([1], ["observations"]), "required_irf": (["rad_max"], ["required_irf", "(rad_max)"])}


@pytest.mark.parametrize("command", ["plan", "fit", "run", "report", "attach"])
@pytest.mark.parametrize("key", NO_RUNS)
def test_selection_without_runs_is_told_of(key, command, tmp_path):
    options, (value, told) = settings(tmp_path), NO_RUNS[key]
    options["observations"][key] = value
    result = invoke(command, written(tmp_path, options), "--output", tmp_path / "output.png")
    assert result.exit_code == 1 and all(word in result.output for word in told), result.output


def test_warning_of_each_file_is_told_once():
    code = """
import logging
from gammapy_accmaker.analysis.cli import cli
try:
    cli(["config"])
except SystemExit:
    for run in range(3):
        logging.getLogger("gammapy").warning("of each file")
        logging.getLogger("gammapy").error("of each run")
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stderr == "WARNING: of each file\n" + 3 * "ERROR: of each run\n"


@pytest.mark.parametrize(
    "arguments",
    [["fit"], ["fit", "a.yaml", "--n-jobs", "0"], ["nothing"], ["--log-level", "loud", "config"], ["run", "a", "--no"]],
)
def test_wrong_usage_has_exit_code_2(arguments):
    assert invoke(*arguments).exit_code == 2
