"""The default model, spline with run effects, through the public names on simulated runs with scatter."""

from functools import cache

import numpy as np
import pytest
from astropy.table import vstack
from gammapy.data import EventList
from gammapy.datasets import MapDataset
from gammapy.makers import MapDatasetMaker
from stores import altered, full_store, observations, sky_geom, source_region

from gammapy_accmaker import AcceptanceBackgroundMaker, AcceptanceModel
from gammapy_accmaker.camera.bins import CountsBins, FovBins
from gammapy_accmaker.data.counts import observation_track, reduce_observation
from gammapy_accmaker.data.exclusion import Exclusion
from gammapy_accmaker.errors import InputError
from gammapy_accmaker.products.background import expected_counts_directly, icrs_vectors
from gammapy_accmaker.validation.stacks import expected_in_camera

ENERGY = {"min": "0.12 TeV", "max": "40 TeV"}


@cache
def maker():
    store = full_store()
    return AcceptanceBackgroundMaker({"energy": ENERGY}, exclusion=[source_region(store)]).fit(observations(store))


def test_closure_with_the_truth_of_each_run():
    store, edges, fov = full_store(), np.geomspace(0.2, 20, 7), FovBins.grid(2.4, 24)
    inside = np.hypot(fov.fov_lon, fov.fov_lat) < 2.3
    truth, fit = 0.0, 0.0
    for observation in observations(store):
        expected = store.expected_counts(observation.obs_id, edges, *fov.edges).reshape(len(edges) - 1, -1)
        track = observation_track(observation, "altaz")
        predicted = expected_in_camera(maker().adapt(observation), track, edges, fov)
        # each run by itself is predicted to what its own events can tell
        total = expected[:, inside].sum()
        assert abs(predicted[:, inside].sum() - total) < 4 * np.sqrt(total)
        truth, fit = truth + expected[:, inside].sum(1), fit + predicted[:, inside].sum(1)
    assert fit.sum() / truth.sum() == pytest.approx(1, abs=3 / np.sqrt(truth.sum()) + 0.005)
    assert np.all(np.abs(fit - truth) < 4 * np.sqrt(truth))


def test_energy_shift_and_norm_of_the_truth_are_found():
    store, table = full_store(), maker().run_table
    true_shift = np.array([store.run_shift[i] for i in table["OBS_ID"]])
    # the mean over the runs belongs to the model, not to the runs
    found = table["SHIFT"] - np.mean(table["SHIFT"])
    expected = true_shift - true_shift.mean()
    assert np.corrcoef(found, expected)[0, 1] > 0.8
    assert np.sqrt(np.mean((found - expected) ** 2)) < 0.5 * np.std(expected) + 0.01
    assert np.all(table["NORM_ERR"] > 0)
    assert np.all(table["NORM_ERR"] < 0.1)


def test_fast_background_equals_the_direct_one():
    observation = observations(full_store())[0]
    model, track = maker().adapt(observation), observation_track(observation, "altaz")
    geom = sky_geom(observation.pointing.fixed_icrs, edges=(0.3, 0.6, 1.5, 5, 20), width=4, binsz=0.1)
    fast = maker().make_background(geom, observation).data
    image = geom.to_image()
    edges = geom.axes["energy"].edges.to_value("TeV")
    solid_angle = image.solid_angle().to_value("sr").ravel()
    direct = expected_counts_directly(model, track, icrs_vectors(image), solid_angle, edges, 60.0).reshape(fast.shape)
    np.testing.assert_allclose(fast.sum((1, 2)), direct.sum((1, 2)), rtol=2e-3)
    inside = geom.to_image().separation(observation.pointing.fixed_icrs).deg < 2
    np.testing.assert_allclose(fast[:, inside], direct[:, inside], rtol=0.02)


def test_model_file_is_exact(tmp_path):
    model = maker().model
    model.write(tmp_path / "model.fits")
    read = AcceptanceModel.read(tmp_path / "model.fits")
    arrays, again = model.rate_model.to_arrays(), read.rate_model.to_arrays()
    assert set(arrays) == set(again)
    for name, values in arrays.items():
        assert np.asarray(values).dtype.kind == again[name].dtype.kind
        np.testing.assert_array_equal(values, again[name], err_msg=name)
    observation = observations(full_store())[1]
    geom = sky_geom(observation.pointing.fixed_icrs, binsz=0.2)
    other = AcceptanceBackgroundMaker(model=read, exclusion=[source_region(full_store())])
    np.testing.assert_array_equal(
        other.make_background(geom, observation).data, maker().make_background(geom, observation).data
    )


def test_error_map_covers_the_truth():
    store, observation = full_store(), observations(full_store())[2]
    geom = sky_geom(observation.pointing.fixed_icrs, binsz=0.2, width=4)
    background, error = (f(geom, observation) for f in (maker().make_background, maker().make_background_error))
    covered = background.data > 0
    relative = error.data[covered] / background.data[covered]
    assert np.all(np.isfinite(relative))
    assert 0.005 < np.median(relative) < 0.2
    # the truth in the camera, within the errors of the model there
    fov, edges = FovBins.grid(2.0, 10), np.array([0.3, 1, 3, 10])
    adapted, track = maker().adapt(observation), observation_track(observation, "altaz")
    truth = store.expected_counts(observation.obs_id, edges, *fov.edges).reshape(3, -1)
    fit = expected_in_camera(adapted, track, edges, fov)
    centre = np.sqrt(edges[1:] * edges[:-1])
    cos_zenith = float(track.cos_zenith.mean())
    sigma = adapted.relative_error_grid(centre, fov.fov_lon, fov.fov_lat, cos_zenith)
    inside = np.hypot(fov.fov_lon, fov.fov_lat) < 2
    pulls = (np.log(fit / truth) / sigma)[:, inside]
    assert np.sqrt(np.mean(pulls**2)) < 2
    parts = [
        adapted.relative_error_grid(centre, fov.fov_lon, fov.fov_lat, cos_zenith, part=p)
        for p in ("coefficients", "run")
    ]
    np.testing.assert_allclose(np.hypot(*parts), sigma, rtol=1e-6)


def test_prior_on_the_norm_stays_on_the_dataset():
    store = full_store()
    free_tilt = {"type": "pl-norm",
        "parameters": [{"name": "norm", "value": 1.0}, {"name": "tilt", "value": 0.0, "frozen": False},
                                                   {"name": "reference", "value": 1.0, "unit": "TeV"}]}  # fmt: skip
    renormalization = {"type": "fov", "method": "fit", "prior": True, "spectral_model": free_tilt}
    config = maker().model.config.update({"renormalization": renormalization})
    with_prior = AcceptanceBackgroundMaker(config, model=maker().model, exclusion=[source_region(store)])
    observation = observations(store)[0]
    empty = MapDataset.create(sky_geom(observation.pointing.fixed_icrs, binsz=0.1, width=4), name="run")
    dataset = MapDatasetMaker(selection=["counts", "exposure"]).run(empty, observation)
    spectral = with_prior.run(dataset, observation).models["run-bkg"].spectral_model
    assert spectral.norm.prior.mu.value == 1
    # most events that tell of the norm are in the dataset: what is left comes near the spread of the runs
    population = maker().model.rate_model.spline.population
    assert 1.5 * spectral.norm.error < spectral.norm.prior.sigma.value < 1.1 * population.norm_spread
    assert spectral.tilt.prior.mu.value == 0
    assert 0 < spectral.tilt.prior.sigma.value < 0.2
    assert spectral.norm.value == pytest.approx(1, abs=0.1)


def test_a_faint_source_that_is_not_excluded_does_not_move_the_effects():
    """A point source at 1 % of the background, with the spectrum of a hard gamma-ray source
    behind an effective area."""
    observation = observations(full_store(), full_store().off_obs_ids[1:2])[0]
    table, rng = observation.events.table, np.random.default_rng(4)
    energy, inside = table["ENERGY"].quantity.to_value("TeV"), observation.events.offset.deg < 2.5
    bins = np.geomspace(0.3, 20, 200)
    source = table[rng.choice(len(table), int(0.01 * (inside & (energy > 0.12) & (energy < 40)).sum()))]
    weights = bins**-1.3
    source["ENERGY"] = rng.choice(bins, len(source), p=weights / weights.sum())
    center, scatter = observation.pointing.fixed_icrs, rng.normal(scale=0.06, size=(2, len(source)))
    source["RA"] = center.ra.deg + (0.5 + scatter[0]) / np.cos(center.dec.rad)
    source["DEC"] = center.dec.deg + 0.2 + scatter[1]
    with_source = altered(observation, events=EventList(vstack([table, source], metadata_conflicts="silent")))
    first, second = (maker().adapt(o).effect for o in (observation, with_source))
    assert second.counts.sum() - first.counts.sum() == len(source) > 50
    assert abs(second.norm - first.norm) < first.norm_error
    assert abs(second.shift - first.shift) < first.shift_error
    moved = (second.coefficients - first.coefficients) / np.sqrt(np.diag(first.covariance))
    assert np.abs(moved).max() < 1


def test_min_counts_of_the_configuration_reaches_the_run():
    config = maker().model.config.update({"run_effects": {"min_counts": 10**6}})
    observation = observations(full_store())[0]
    adapted = AcceptanceBackgroundMaker(config, model=maker().model).adapt(observation)
    # no energy has so many counts: the run is what is expected under its conditions
    assert adapted.effect.norm_error > 2 * maker().adapt(observation).effect.norm_error
    assert adapted.effect.norm == pytest.approx(1, abs=0.02)


def test_run_table_tells_what_is_applied():
    """The effects that the fit found are those that a run is adapted by."""
    for observation in observations(full_store())[:3]:
        effect = maker().adapt(observation).effect
        (row,) = (r for r in maker().run_table if r["OBS_ID"] == observation.obs_id)
        assert row["NORM"] == pytest.approx(effect.norm, rel=1e-6)
        assert row["NORM_ERR"] == pytest.approx(effect.norm_error, rel=1e-6)
        assert row["SHIFT"] == pytest.approx(effect.scaling + effect.shift, abs=1e-6)
        assert row["EXPECTED"] == pytest.approx(effect.expected.sum(), rel=1e-6)


def test_slices_of_a_run_sum_to_the_run():
    # the run that goes to the largest zenith angle moves most in it
    observation = max(observations(full_store()), key=lambda o: np.ptp(observation_track(o, "altaz").cos_zenith))
    bins = CountsBins(np.geomspace(0.1, 100, 13), FovBins.grid(2.5, 10))

    exclusion = Exclusion([source_region(full_store(), 0.6)])
    whole = reduce_observation(observation, bins, exclusion)
    slices = reduce_observation(observation, bins, exclusion, max_zenith_change=0.01).slices
    assert len(slices) > 3
    assert (sum(part.counts for part in slices) - whole.counts).nnz == 0
    np.testing.assert_allclose(sum(part.exposure for part in slices), whole.exposure, atol=0.03 * whole.ontime)
    assert sum(part.ontime for part in slices) == pytest.approx(whole.ontime, rel=1e-12)
    assert sum(part.livetime for part in slices) == pytest.approx(whole.livetime, rel=1e-12)
    cos_zenith = [part.cos_zenith for part in slices]
    assert np.all(np.diff(cos_zenith) > 0) or np.all(np.diff(cos_zenith) < 0)
    assert np.average(cos_zenith, weights=[p.ontime for p in slices]) == pytest.approx(whole.cos_zenith, abs=1e-4)


@pytest.mark.parametrize("number", [1, 3])
def test_few_runs_need_no_tuning(number):
    store = full_store()
    runs = observations(store, store.off_obs_ids[:number])
    few = AcceptanceBackgroundMaker({"energy": ENERGY}).fit(runs)
    geom = sky_geom(runs[0].pointing.fixed_icrs, edges=(0.3, 1, 3, 10), width=4, binsz=0.1)
    background = few.make_background(geom, runs[0])
    inside = geom.to_image().separation(runs[0].pointing.fixed_icrs).deg < 1.9
    counts = MapDatasetMaker.make_counts(geom, runs[0]).data[:, inside].sum(1)
    predicted = background.data[:, inside].sum(1)
    assert np.all(np.isfinite(background.data))
    assert np.all(np.abs(predicted - counts) < 4 * np.sqrt(counts) + 2)


def test_binned_models_refuse_what_only_the_spline_has():
    with pytest.raises(InputError, match="zenith: 'continuous' needs the model type 'spline'"):
        AcceptanceBackgroundMaker({"model": {"type": "radial"}, "zenith": {"type": "continuous"}})
