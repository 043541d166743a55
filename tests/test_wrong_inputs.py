"""Whatever is given in place of what is wanted, the error is one of this package, and names the argument."""

import os
from pathlib import Path

import astropy.units as u
import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.table import Table
from gammapy.data import DataStore
from gammapy.maps import HpxGeom, Map, RegionGeom, WcsGeom, WcsNDMap
from regions import CirclePixelRegion, PixCoord
from stores import observations, options, plain_store

from gammapy_accmaker import (
    AcceptanceAnalysis,
    AcceptanceAnalysisConfig,
    AcceptanceBackgroundMaker,
    AcceptanceConfig,
    AcceptanceModel,
    AcceptanceWorkflow,
    AcceptanceWorkflowConfig,
    attach_background,
    cross_validate,
    fit_acceptance,
    match_observations,
    plan_groups,
)
from gammapy_accmaker.analysis.workflow import SUPPORTED
from gammapy_accmaker.errors import AcceptanceError, InputError, NotFittedError
from gammapy_accmaker.utils.parallel import Execution

RADIAL = options("radial", "none")


@pytest.fixture(scope="module")
def runs():
    return observations(plain_store())


CALLS = {
    "fit_acceptance": lambda given: fit_acceptance(given, RADIAL),
    "maker.fit": lambda given: AcceptanceBackgroundMaker(RADIAL).fit(given),
    "OFF runs": lambda given: AcceptanceBackgroundMaker(RADIAL).fit(observations(plain_store())[:1], given),
    "plan_groups": lambda given: plan_groups(given, {"model": {"type": "radial"}}),
    "cross_validate": lambda given: cross_validate(given, {"a": RADIAL}),
    "match_observations": lambda given: match_observations(given, observations(plain_store())[:1]),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_data_store_in_place_of_observations(call):
    with pytest.raises(InputError, match=r"got a DataStore.*get_observations"):
        CALLS[call](DataStore.from_dir(plain_store().path))


@pytest.mark.parametrize("given", [3, "dl3", [1, 2], [None], {"a": 1}, np.zeros(3), b"x", ["dl3"], [[]]], ids=repr)
@pytest.mark.parametrize("call", CALLS)
def test_what_is_no_observations(call, given):
    with pytest.raises(InputError, match=r"(observations|on): got .*`Observation` is needed; take them"):
        CALLS[call](given)


def test_one_observation_is_a_list_of_one(runs):
    one, same = (fit_acceptance(given, RADIAL) for given in (runs[0], [runs[0]]))
    assert np.array_equal(one.rate_model.counts, same.rate_model.counts)


def test_before_the_fit():
    maker = AcceptanceBackgroundMaker()
    for use in (lambda: maker.model.peek(), lambda: maker.model.write("x.fits"), lambda: maker.found_regions):
        with pytest.raises(NotFittedError, match=r"call `maker.fit\(observations\)` first"):
            use()
    assert not maker.is_fitted and "call fit" in str(maker)
    with pytest.raises(InputError, match="model: got str.*AcceptanceModel.read"):
        AcceptanceBackgroundMaker(model="model.fits")
    with pytest.raises(InputError, match="model: got NoneType"):
        maker.model = None


READERS = {
    "maker": lambda config: AcceptanceBackgroundMaker(config).config,
    "fit_acceptance": lambda config: AcceptanceConfig.from_yaml(
        fit_acceptance(observations(plain_store())[0], config).config
    ),
    "coerce": AcceptanceConfig.coerce,
}


@pytest.mark.parametrize("kind", [str, lambda path: path], ids=["text", "path"])
@pytest.mark.parametrize("reader", READERS)
def test_the_path_of_a_configuration(reader, kind, tmp_path):
    path = tmp_path / "config.yaml"
    config = AcceptanceConfig.coerce(RADIAL | {"offset_max": "2.1 deg"})
    config.write(path)
    assert READERS[reader](kind(path)) == config
    with pytest.raises(InputError, match="there is no file.*none.yaml; write one"):
        READERS[reader](kind(tmp_path / "none.yaml"))
    with pytest.raises(InputError, match="no file"):
        READERS[reader](kind(tmp_path))
    path.write_text("offsetmax: 2 deg")
    with pytest.raises(InputError, match="config.yaml: offsetmax: unknown key; did you mean 'offset_max'"):
        READERS[reader](kind(path))


def test_paths_for_other_functions(runs, tmp_path):
    path = tmp_path / "config.yaml"
    AcceptanceConfig.coerce({"model": {"type": "radial"}}).write(path)
    assert plan_groups(runs, path).n_groups == plan_groups(runs, {"model": {"type": "radial"}}).n_groups
    with pytest.raises(InputError, match="there is no file"):
        cross_validate(runs, {"a": tmp_path / "none.yaml"})
    path.write_text("offset_max: 2 TeV")
    for read in (lambda: plan_groups(runs, path), lambda: cross_validate(runs, {"a": path})):
        with pytest.raises(InputError, match="config.yaml: offset_max: got.* 'deg' is needed"):
            read()


EXTENDED = [(AcceptanceAnalysis, AcceptanceAnalysisConfig)]
if SUPPORTED:
    EXTENDED.append((AcceptanceWorkflow, AcceptanceWorkflowConfig))


@pytest.mark.parametrize(("cls", "config_class"), EXTENDED)
def test_the_path_of_an_analysis(cls, config_class, tmp_path):
    path = tmp_path / "analysis.yaml"
    path.write_text("general: {log: {level: warning}}\ndatasets: {background: {method: acceptance}}\n")
    for given in (path, str(path)):
        config = cls(given).config
        assert type(config) is config_class and config.datasets.background.method == "acceptance"
    for wrong in ("a.yaml", tmp_path / "a.yaml", tmp_path, "x: 1", "a" * 5000, "a\0b"):
        with pytest.raises(InputError, match="config: got"):
            cls(wrong)


@pytest.mark.parametrize("wrong", [{"offset_maxx": 1}, {"modle": {}}, {"model": {"type": "radial", "offset_bin": 3}}])
def test_one_printer_of_errors(wrong, tmp_path):
    """Python says what the command line says, with the same hint."""
    path = tmp_path / "config.yaml"
    path.write_text(str(wrong))
    said = set()
    for given in (wrong, path):
        with pytest.raises(InputError, match="unknown key; did you mean") as caught:
            AcceptanceBackgroundMaker(given)
        said.add(str(caught.value).removeprefix("config: ").removeprefix(f"{path}: "))
    with pytest.raises(InputError) as caught:
        AcceptanceAnalysis({"datasets": {"background": {"method": "acceptance", "parameters": wrong}}})
    said.add(str(caught.value).removeprefix("config: ").removeprefix("datasets.background.parameters."))
    assert len(said) == 1


@pytest.mark.gammapy_data
@pytest.mark.parametrize("cls", [cls for cls, _ in EXTENDED])
def test_maps_of_an_effective_area_for_one_offset(cls, monkeypatch):
    """gammapy's own error is about the shapes of arrays, and comes after the fit; MAGIC's files for a RAD_MAX analysis
    are such."""
    monkeypatch.setattr(AcceptanceBackgroundMaker, "fit", None)
    folder = Path(os.environ["GAMMAPY_DATA"]) / "magic" / "rad_max" / "data"
    if not folder.is_dir():
        pytest.skip(f"there is no {folder}")
    crab = {"frame": "icrs", "lon": "83.63 deg", "lat": "22.01 deg"}
    energy, energy_true = ({"min": low, "max": "5 TeV", "nbins": 2} for low in ("0.2 TeV", "0.1 TeV"))
    run = cls({
        "observations": {"datastore": str(folder), "required_irf": ["aeff", "edisp"]},
        "datasets": {
            "type": "3d",
            "map_selection": ["counts", "exposure", "edisp"],
            "geom": {
                "wcs": {"skydir": crab, "binsize": "0.2 deg", "width": {"width": "2 deg", "height": "2 deg"}},
                "axes": {"energy": energy, "energy_true": energy_true},
            },
            "background": {"method": "acceptance", "parameters": RADIAL | {"offset_max": "1.5 deg"}},
        },
    })  # fmt: skip
    with pytest.raises(InputError, match="run 5029747 is that of one offset.*`type: 1d`"):
        if cls is AcceptanceAnalysis:
            run.get_observations()
            run.get_datasets()
        else:
            run.run(["observations", "datasets"])


def wrong_values(folder):
    """Things of every kind that someone may give by mistake."""
    (folder / "binary.dat").write_bytes(bytes(range(256)) * 20)
    (folder / "empty.yaml").write_text("")
    (folder / "half.yaml").write_text("a: [1")
    (folder / "list.yaml").write_text("- 1\n")
    (folder / "latin.yaml").write_bytes(b"\xff\xfe")
    fits.PrimaryHDU(np.zeros((5, 5))).writeto(folder / "image.fits")
    position = SkyCoord(1, 2, unit="deg")
    return [
        None, 3, -1, 1.5, np.nan, float("inf"), "spam", "", b"x", "a\0b", "1 TeV", [], (), {}, set(), [1, 2], ["a"],
        [None],
        {"a": 1}, range(2), iter([]), object(), int, len, True, np.zeros(3), np.zeros((2, 2)), 3 * u.m, [1, 2] * u.deg,
        [3, 1] * u.TeV, [1, 2] * u.m, Table(), Table({"a": [1]}), DataStore.from_dir(plain_store().path), Map.create(),
        WcsNDMap.create(npix=4), WcsGeom.create(npix=3), RegionGeom.create(None), HpxGeom.create(nside=4), position,
        SkyCoord([1, 2], [1, 2], unit="deg"), CirclePixelRegion(PixCoord(1, 1), 2), AcceptanceConfig(),
        Path("/nowhere"), folder,
        *sorted(folder.iterdir()), str(folder / "image.fits"),
    ]  # fmt: skip


MATCH = {"weights": {"cos_zenith": 1}}
ARGUMENTS = {
    "configuration": lambda x, runs, maker: AcceptanceConfig.coerce(x),
    "configuration file": lambda x, runs, maker: AcceptanceConfig.read(x),
    "configuration text": lambda x, runs, maker: AcceptanceConfig.from_yaml(x),
    "changes of a configuration": lambda x, runs, maker: AcceptanceConfig().update(x),
    "analysis": lambda x, runs, maker: AcceptanceAnalysis(x),
    "analysis file": lambda x, runs, maker: AcceptanceAnalysisConfig.read(x),
    "analysis text": lambda x, runs, maker: AcceptanceAnalysisConfig.from_yaml(x),
    "model file": lambda x, runs, maker: AcceptanceModel.read(x),
    "path of a model": lambda x, runs, maker: None if isinstance(x, str | Path) else maker.model.write(x),
    "IRF": lambda x, runs, maker: AcceptanceModel.from_irf(x),
    "energy": lambda x, runs, maker: maker.model.rate(x, 0 * u.deg, 0 * u.deg),
    "position": lambda x, runs, maker: maker.model.rate(1 * u.TeV, x, 0 * u.deg),
    "model": lambda x, runs, maker: AcceptanceBackgroundMaker(model=x),
    "exclusion": lambda x, runs, maker: AcceptanceBackgroundMaker(RADIAL, exclusion=x),
    "plan": lambda x, runs, maker: x is None or fit_acceptance(runs, {"model": {"type": "radial"}}, plan=x),
    "on_error": lambda x, runs, maker: fit_acceptance(runs, RADIAL, on_error=x),
    "parallel_backend": lambda x, runs, maker: x is None or list(Execution.of(1, x).map(abs, [(1,)])),
    "n_jobs": lambda x, runs, maker: list(Execution.of(x).map(abs, [(1,)])),
    "matches": lambda x, runs, maker: x is None or AcceptanceBackgroundMaker(RADIAL).fit(runs, runs, matches=x),
    "observation": lambda x, runs, maker: maker.make_irf(x),
    "alignment": lambda x, runs, maker: x is None or maker.make_irf(runs[0], x),
    "geometry": lambda x, runs, maker: maker.make_background(x, runs[0]),
    "dataset": lambda x, runs, maker: maker.run(x, runs[0]),
    "data store": lambda x, runs, maker: isinstance(x, DataStore) or attach_background(x, maker, "x"),
    "maker": lambda x, runs, maker: attach_background(plain_store().data_store, x, "x"),
    "obs_ids": lambda x, runs, maker: x is None or attach_background(plain_store().data_store, maker, "x", obs_ids=x),
    "folder": lambda x, runs, maker: isinstance(x, str | Path) or attach_background(plain_store().data_store, maker, x),
    "configurations": lambda x, runs, maker: cross_validate(runs, x),
    "n_folds": lambda x, runs, maker: cross_validate(runs, {"a": RADIAL}, n_folds=x),
    "seed": lambda x, runs, maker: cross_validate(runs, {"a": RADIAL}, n_folds=2, seed=x, energy_edges=[1] * u.TeV),
    "energy_edges": lambda x, runs, maker: x is None or cross_validate(runs, {"a": RADIAL}, n_folds=2, energy_edges=x),
    "band_edges": lambda x, runs, maker: x is None or cross_validate(runs, {"a": RADIAL}, n_folds=2, band_edges=x),
    "weights": lambda x, runs, maker: match_observations(runs, runs, weights=x),
    "limits": lambda x, runs, maker: match_observations(runs, runs, limits=x, **MATCH),
    "hours": lambda x, runs, maker: match_observations(runs, runs, hours=x, **MATCH),
    "n_runs": lambda x, runs, maker: match_observations(runs, runs, n_runs=x, **MATCH),
    "same": lambda x, runs, maker: match_observations(runs, runs, same=x, **MATCH),
    "location": lambda x, runs, maker: match_observations(runs, runs, location=x, **MATCH),
}


@pytest.fixture(scope="module")
def maker(runs):
    return AcceptanceBackgroundMaker(RADIAL).fit(runs[:2])


@pytest.mark.parametrize("argument", ARGUMENTS)
def test_whatever_is_given_is_used_or_refused(argument, runs, maker, tmp_path, monkeypatch):
    folder = tmp_path / "wrong"
    folder.mkdir()
    values = wrong_values(folder)
    monkeypatch.chdir(tmp_path)
    refused = 0
    for value in values:
        try:
            ARGUMENTS[argument](value, runs[:2], maker)
        except AcceptanceError as error:
            refused += 1
            assert len(str(error)) > 20
    assert refused > 0.6 * len(values)
