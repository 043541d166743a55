"""Parametric models and limits of norms through configuration, fit, maker and files; and on H.E.S.S. DL3 DR1.

This work made use of data from the H.E.S.S. DL3 public test data release 1 (HESS DL3 DR1, H.E.S.S. collaboration,
2018).
"""

import copy
import json
import pickle
from functools import cache

import astropy.units as u
import numpy as np
import pytest
from astropy.modeling.models import Gaussian2D
from gammapy.data import DataStore
from gammapy.datasets import MapDataset
from gammapy.makers import MapDatasetMaker
from gammapy.maps import MapAxis, WcsGeom
from stores import IRFS, NORM, PLAIN, mean_in_bins, observations, options, plain_store, sky_geom

from gammapy_accmaker import AcceptanceBackgroundMaker, AcceptanceConfig, AcceptanceModel, fit_acceptance
from gammapy_accmaker.errors import FitError, InputError

RING = 2.2  # deg


def truth_like(
    energy,
    fov_lon,
    fov_lat,
    scale=1.0,
    index=2.7,
    width=1.6,
    growth=0.08,
    lon_0=0.04,
    lon_1=0.0,
    lat_0=-0.035,
    lat_1=0.0,
):
    """The shape of the simulated truth, with some of its numbers free."""
    bend = 0.6 * np.tanh(np.log10(energy))
    threshold = 1 / (1 + (0.15 / energy) ** 6)
    profile = np.exp(-((np.hypot(fov_lon, fov_lat) / (width * energy**growth)) ** 2.5))
    gradient = 1 + (lon_0 + lon_1 * bend) * fov_lon + (lat_0 + lat_1 * bend) * fov_lat
    return 1.8e-4 * scale * energy**-index * threshold * profile * gradient


def parametric(function, effects="none", **more):
    """Configuration with wide bins, which a parametric model integrates over."""
    model = {"type": "parametric", "function": function, "offset_bins": 6, **more}
    energy = {"min": "0.1 TeV", "max": "30 TeV", "nbins_per_decade": 5}
    return {"model": model, **(PLAIN if effects == "none" else NORM), "energy": energy}


@cache
def made(function, effects="none"):
    return AcceptanceBackgroundMaker(parametric(function, effects)).fit(observations(plain_store()))


def test_the_simulated_truth_is_recovered():
    """A function of energy and position, through events, ALTAZ rotation and a gap in the good time."""
    result = made(truth_like).model.rate_model.result
    truth = {
        "scale": 4,
        "index": 2.7,
        "width": 1.6,
        "growth": 0.08,
        "lon_0": 0.04,
        "lon_1": -0.04,
        "lat_0": -0.035,
        "lat_1": -0.035,
    }
    assert result.valid and result.message == "converged"
    for name, got, error in zip(result.names, result.values, result.errors, strict=True):
        assert error > 0 and abs(got - truth[name]) < 4 * error, (name, got, error)
    assert result.errors[0] < 0.01 * 4


@pytest.mark.parametrize("function", [truth_like, "gaussian_gradient", "radial_profile"])
def test_the_background_is_that_of_the_store(function):
    store, maker = plain_store(), made(function)
    edges, pixels = np.array([0.2, 0.5, 1, 3, 10]), np.linspace(-2.2, 2.2, 45)
    expected, got = [], []
    for run in observations(store)[:3]:
        background = maker.make_background(sky_geom(run.pointing.fixed_icrs, edges=edges, width=5.5), run)
        near = background.geom.to_image().separation(run.pointing.fixed_icrs).deg < RING
        got.append(background.data[:, near].sum(1))
        cells = store.expected_counts(run.obs_id, edges, pixels, pixels)
        middle = 0.5 * (pixels[1:] + pixels[:-1])
        expected.append(cells[:, np.hypot(*np.meshgrid(middle, middle, indexing="ij")) < RING].sum(1))
    ratio = np.array(got) / np.array(expected)
    # the disc is cut out of pixels of two kinds
    assert np.abs(ratio - 1)[:, :3].max() < (0.02 if function is truth_like else 0.04)


def test_a_dataset_is_filled_in_a_worker_and_from_a_file(tmp_path):
    run, maker = observations(plain_store())[0], made(truth_like)
    geom = sky_geom(run.pointing.fixed_icrs, binsz=0.1)
    dataset = MapDatasetMaker(selection=["counts", "exposure"]).run(MapDataset.create(geom, name="one"), run)
    here = maker.run(dataset, run)
    there = pickle.loads(pickle.dumps(maker)).run(dataset, run)
    maker.model.write(tmp_path / "model.fits")
    applied = AcceptanceBackgroundMaker(model=AcceptanceModel.read(tmp_path / "model.fits"))
    assert np.array_equal(here.background.data, there.background.data)
    assert np.array_equal(here.background.data, applied.run(dataset, run).background.data)
    assert here.counts.data.sum() == pytest.approx(here.background.data.sum(), rel=0.03)
    irf = maker.make_irf(run)
    assert irf.fov_alignment.value == "ALTAZ" and irf.is_pointlike is False
    error = maker.make_background_error(geom, run).data
    assert np.all(error[here.background.data > 0] > 0) and error.sum() < 0.1 * here.background.data.sum()
    # a file holds no code: what it says of the function can be applied but not fitted
    with pytest.raises(InputError, match="truth_like.*holds no code"):
        applied.fit(observations(plain_store())[:1])


def test_norms_of_runs_are_fitted():
    maker = made("gaussian", "norm")
    table = maker.run_table
    assert np.all(np.abs(table["NORM"] - 1) < 4 * table["NORM_ERR"] + 0.005) and np.all(table["NORM_ERR"] > 0)
    assert table["EXPECTED"].sum() == pytest.approx(table["COUNTS"].sum(), rel=1e-4)


def test_a_fit_that_fails_is_raised_or_flagged(caplog):
    def degenerate(energy, fov_lon, fov_lat, one=1.0, two=1e-4):
        return one * two * energy**-2.7

    runs = observations(plain_store())[:2]
    with pytest.raises(FitError, match="do not tell one from two"):
        fit_acceptance(runs, parametric(degenerate))
    model = fit_acceptance(runs, parametric(degenerate, on_failure="flag"))
    assert not model.rate_model.result.valid and "flagged" in caplog.text


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({}, "function.*power_law \\* gaussian"),
        ({"function": "gauss"}, "function: got 'gauss'"),
        ({"function": "gaussian", "parameters": {"width": {"value": 1}}}, "parameters: got 'width'"),
        ({"function": "gaussian", "parameters": {"sigma": {"tied": "lon_0"}}}, "tied: 'lon_0'.*callable"),
        ({"function": "gaussian", "parameters": {"sigma": {"values": 1}}}, "sigma.values"),
        ({"function": "gaussian", "parameters": {"sigma": {"value": "1 deg"}}}, "sigma.value"),
        ({"function": "gaussian", "shared": ["width"]}, "shared.*width"),
        ({"function": "gaussian", "on_failure": "ignore"}, "on_failure"),
        ({"function": lambda fov_lat, fov_lon, norm=1: norm}, "in this order"),
        ({"function": "gaussian", "offset_bins": 0}, "offset_bins"),
    ],
)
def test_wrong_options_are_named(wrong, named):
    with pytest.raises(InputError, match=named):
        AcceptanceConfig.coerce({"model": {"type": "parametric", **wrong}})


def test_options_a_parametric_model_has_not_are_refused():
    given = {"model": {"type": "parametric", "function": "gaussian"}}
    config = AcceptanceConfig.coerce(given)
    assert (config.zenith.type, config.run_effects.type) == ("interpolated", "shift")
    for wrong in ({"run_effects": {"type": "tilt"}}, {"zenith": {"type": "continuous"}}):
        with pytest.raises(InputError, match="parametric"):
            AcceptanceConfig.coerce(given | wrong)


def test_the_configuration_round_trips():
    text = """
    model:
      type: parametric
      function: power_law_cutoffs * gaussian_gradient
      parameters: {sigma: {value: 1.5, min: 0.5}, twist: {fixed: true}}
      offset_bins: ["-2 deg", "0 deg", "2 deg"]
      on_failure: flag
    fit_energy: [0.1 TeV, 1 TeV, 10 TeV]
    """
    config = AcceptanceConfig.from_yaml(text)
    assert config.model.given_parameters() == {"sigma": {"value": 1.5, "min": 0.5}, "twist": {"fixed": True}}
    again = AcceptanceConfig.from_yaml(config.to_yaml())
    assert (
        again.to_yaml()
        == config.to_yaml()
        == AcceptanceConfig.from_yaml(json.dumps(config.model_dump(mode="json"))).to_yaml()
    )


@pytest.mark.parametrize("function", [truth_like, Gaussian2D(), ["power_law", Gaussian2D(name="blob")]])
def test_a_python_function_is_named_in_the_file(function):
    config = AcceptanceConfig.coerce(parametric(function))
    again = AcceptanceConfig.from_yaml(config.to_yaml())
    assert again.to_yaml() == config.to_yaml() and again.model.function.startswith("python: ")
    assert config.update({"offset_max": "2 deg"}).model.function is function
    with pytest.raises(InputError, match="holds no code"):
        fit_acceptance(observations(plain_store())[:1], again)


@pytest.mark.parametrize(
    "function", [lambda lon, lat, width=1.2: np.exp(-(lon**2 + lat**2) / 2 / width**2), truth_like]
)
def test_a_fitted_maker_goes_to_other_processes_whatever_its_function(function):
    runs = observations(plain_store())[:2]
    config = parametric(function)
    maker = AcceptanceBackgroundMaker(config).fit(runs, n_jobs=1)
    sent = pickle.loads(pickle.dumps(maker))
    here, there = (m.make_irf(runs[0]).data for m in (maker, sent))
    assert np.array_equal(here, there) and here.sum() > 0
    assert copy.deepcopy(maker).config.model.function is function is maker.model.config.model.function
    if function is truth_like:  # another process imports it
        assert sent.config.model.function is function
    else:
        assert "<lambda>" in sent.config.model.function
        with pytest.raises(InputError, match="holds no code"):
            sent.fit(runs, n_jobs=1)


@pytest.mark.parametrize("kind", ["radial", "spline"])
def test_norms_outside_of_limits_are_flagged_and_kept(kind, caplog):
    runs = observations(plain_store())[:3]
    config = options(kind) if kind == "radial" else {"run_effects": {"type": "norm"}}
    config["energy"] = {"min": "0.3 TeV", "max": "10 TeV"}
    free = fit_acceptance(runs, config).run_table
    low, high = np.sort(free["NORM"])[[0, 2]]
    limits = [0.5 * (low + np.sort(free["NORM"])[1]), 1.1 * high]
    config["run_effects"] = {"type": "norm", "norm_limits": limits}
    table = fit_acceptance(runs, config).run_table
    assert np.array_equal(table["NORM"], free["NORM"]) and np.array_equal(table["NORM_ERR"], free["NORM_ERR"])
    outside = table["NORM"] < limits[0]
    flagged = ["norm outside of limits [" in flag for flag in table["FLAG"]]
    assert outside.sum() == 1 and np.array_equal(flagged, outside) and np.all(table["USED"])
    ours = [record.message for record in caplog.records if "lie outside of" in record.message]
    assert len(ours) == 1 and str(table["OBS_ID"][outside][0]) in ours[0]


@pytest.mark.parametrize("limits", [[2, 1], [-1, 1], [1], ["a", 2], 3])
def test_wrong_limits_are_named(limits):
    with pytest.raises(InputError, match="norm_limits"):
        AcceptanceConfig.coerce({"run_effects": {"type": "norm", "norm_limits": limits}})


def test_limits_are_kept_where_the_effects_are_chosen():
    config = AcceptanceConfig.coerce({"model": {"type": "radial"}, "run_effects": {"norm_limits": [0.5, 2]}})
    assert config.run_effects.type == "shift" and config.run_effects.norm_limits == (0.5, 2)
    assert AcceptanceConfig.from_yaml(config.to_yaml()).to_yaml() == config.to_yaml()
    with pytest.raises(InputError, match="norm_limits.*no norm"):
        AcceptanceConfig.coerce({"run_effects": {"type": "none", "norm_limits": [0.5, 2]}})


@pytest.mark.gammapy_data
@pytest.mark.parametrize("function", ["radial_profile", "power_law_cutoffs * radial_profile"])
def test_dr1_counts_are_kept(function):
    runs = DataStore.from_dir("$GAMMAPY_DATA/hess-dl3-dr1").get_observations([33787, 33788], required_irf=IRFS)
    config = parametric(function, "norm", offset_bins=12) | {
        "energy": {"min": "0.3 TeV", "max": "20 TeV", "nbins_per_decade": 8},
        "run_effects": {"type": "norm", "norm_energy": ["0.3 TeV", "20 TeV"]},  # all of them
    }
    maker = AcceptanceBackgroundMaker(config).fit(runs)
    model = maker.model.rate_model
    assert model.result.valid
    axis = MapAxis.from_energy_edges(np.geomspace(0.3, 20, 9), unit="TeV")
    counts, expected = 0, 0
    for run in runs:
        geom = WcsGeom.create(skydir=run.pointing.fixed_icrs, width=3.4, binsz=0.1, axes=[axis])
        filled = maker.run(MapDatasetMaker(selection=["counts"]).run(MapDataset.create(geom), run), run)
        counts, expected = counts + filled.counts.data.sum((1, 2)), expected + filled.background.data.sum((1, 2))
    assert counts.sum() > 5_000
    # the maps show the middle of the field, which a function of few parameters gives to some per cent
    assert counts.sum() == pytest.approx(expected.sum(), rel=0.05)
    rate = mean_in_bins(model, model.fov, model.bin_edges)
    table = maker.run_table
    assert table["EXPECTED"].sum() == pytest.approx(table["COUNTS"].sum(), rel=1e-6)
    seconds = np.sum(table["NORM"] * table["ONTIME"])
    fitted = (rate * model.fov.solid_angle * seconds).sum(1)
    in_energy = _counts_of_the_fit(runs, model)
    assert fitted.sum() == pytest.approx(in_energy.sum(), abs=2 * in_energy.sum() ** 0.5)
    if "*" not in function:
        assert np.abs((fitted - in_energy) / np.sqrt(in_energy + 1)).max() < 3


def _counts_of_the_fit(runs, model):
    """Events in the square of the fit, by energy, from gammapy's frames alone."""
    counts = 0
    for run in runs:
        fov = run.events.radec.transform_to(run.get_fov_frame(run.events.time, "ALTAZ"))
        inside = np.maximum(np.abs(fov.fov_lon.wrap_at("180d")), np.abs(fov.fov_lat)) < 2.5 * u.deg
        counts = counts + np.histogram(run.events.energy.to_value("TeV")[inside], model.bin_edges)[0]
    return counts
