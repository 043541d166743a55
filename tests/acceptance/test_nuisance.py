"""Nuisance models: priors that are known without the events of the datasets, on datasets and on arrays."""

from dataclasses import replace

import numpy as np
import pytest
from gammapy.datasets import Datasets, MapDataset, SpectrumDataset
from gammapy.makers import MapDatasetMaker
from gammapy.maps import MapAxis, RegionGeom, WcsGeom
from gammapy.modeling import Fit
from gammapy.modeling.models import Models
from regions import CircleSkyRegion
from scipy.sparse import csr_array
from simulated_runs import CENTERS, EDGES, LAT, LON, SOLID_ANGLE, simulate_runs, true_rate
from stores import full_store, observations, options, plain_store, sky_geom, source_region
from test_spline_maker import maker

from gammapy_accmaker import AcceptanceBackgroundMaker
from gammapy_accmaker.acceptance.nuisance import _leading, _priors_of_rate
from gammapy_accmaker.errors import InputError
from gammapy_accmaker.models.spline.adapt import fit_run
from gammapy_accmaker.models.spline.fit import fit_spline
from gammapy_accmaker.models.spline.rate import SplineRate


def runs(n):
    return list(observations(full_store()))[:n]


def dataset_of(run, name="run", width=4):
    empty = MapDataset.create(sky_geom(run.pointing.fixed_icrs, binsz=0.2, width=width), name=name)
    return maker().run(MapDatasetMaker(selection=["counts", "exposure"]).run(empty, run), run)


def total_error(models, dataset):
    """Relative standard deviation of the sum of the background."""
    return np.sqrt(sum(model.map.data.sum() ** 2 for model in models)) / dataset.background.data.sum()


def known_afterwards(dataset, run):
    """The same with all events of the run."""
    shared, own = maker().background_errors(dataset.counts.geom, run).of_sum(np.ones(dataset.counts.data[0].size))
    return np.sqrt((shared.sum(0) ** 2).sum() + (own.sum(0) ** 2).sum()) / dataset.background.data.sum()


def test_models_are_written_read_and_fitted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = runs(1)[0]
    dataset = dataset_of(run)
    models = maker().make_nuisance_models(dataset, run, n=4)
    models.write("models.yaml")
    read = Models.read("models.yaml")
    assert read.names == models.names and read[0].datasets_names == ["run"]
    for model, again in zip(models, read, strict=True):
        np.testing.assert_allclose(again.map.data, model.map.data, rtol=1e-5)
        norm = again.spectral_model.norm
        assert (norm.value, norm.frozen, norm.prior.mu.value, norm.prior.sigma.value) == (0, False, 0, 1)
    dataset.models = read
    assert Fit().run(dataset).success
    errors = [model.spectral_model.norm.error for model in dataset.models]
    # the first, the norm, is known from the dataset itself; none is known less than before
    assert errors[0] < 0.7 and np.max(errors) < 1.01
    assert np.abs([model.spectral_model.norm.value for model in dataset.models]).max() < 3.5


def test_priors_are_wide_where_the_dataset_holds_the_events():
    run = runs(1)[0]
    field = dataset_of(run, width=5)
    after, prior = known_afterwards(field, run), total_error(maker().make_nuisance_models(field, run), field)
    spread = maker().model.rate_model.spline.population.norm_spread
    assert prior > 1.5 * after and prior == pytest.approx(spread, rel=0.4)
    # of a small dataset most events of the run lie outside
    small = dataset_of(run, width=0.8)
    afterwards = known_afterwards(small, run)
    assert 0.97 * afterwards < total_error(maker().make_nuisance_models(small, run, n=40), small) < 1.15 * afterwards


def test_a_region_within_the_exclusion_holds_no_event_of_the_adaptation(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run, region = runs(1)[0], source_region(full_store())
    axis = MapAxis.from_energy_bounds("0.4 TeV", "10 TeV", nbin=4)
    geom = RegionGeom(CircleSkyRegion(region.center, 0.5 * region.radius), axes=[axis])
    dataset = SpectrumDataset.create(geom, name="on / 1")  # a name that is none of a file
    dataset.background = maker().make_background(geom, run)
    dataset.mask_safe.data[:] = True
    models = maker().make_nuisance_models(dataset, run, n=30)
    changes = np.array([model.map.data.ravel() for model in models])
    np.testing.assert_allclose(
        np.sqrt((changes**2).sum(0)), maker().make_background_error(geom, run).data.ravel(), rtol=0.15
    )
    for model in models:
        model.spectral_model.norm.value = 0.5
    models.write("models.yaml")
    dataset.mask_safe.data[:] = True
    expected = dataset.background.data.ravel() + 0.5 * changes.sum(0)
    for dataset.models in (models, Models.read("models.yaml")):
        np.testing.assert_allclose(dataset.npred().data.ravel(), expected, rtol=1e-5)


@pytest.mark.parametrize("effects", ["none", "norm"])
@pytest.mark.parametrize(("kind", "number"), [("radial", 1), ("radial", 4), ("grid", 2), ("spline", 2)])
def test_what_runs_of_the_fit_tell_of_the_rate_is_not_told_again(kind, number, effects):
    """Runs that share one rate: without one of n it is known from n - 1 as many counts, from one run not at all."""
    fitted = observations(plain_store())[:number]
    with_rate = AcceptanceBackgroundMaker(options(kind, effects, energy={"min": "0.3 TeV", "max": "10 TeV"}))
    run = with_rate.fit(fitted) and fitted[0]
    axes = [MapAxis.from_energy_bounds("0.3 TeV", "10 TeV", nbin=4)]
    geom = WcsGeom.create(skydir=run.pointing.fixed_icrs, binsz=0.2, width=7, axes=axes)
    dataset = MapDataset.create(geom, name="run")
    dataset = with_rate.run(MapDatasetMaker(selection=["counts", "exposure"]).run(dataset, run), run)
    prior = with_rate._prior_errors(dataset, with_rate._apply(run))
    before, after = rate_error(dataset, prior), rate_error(dataset, replace(prior, removed=None))
    if effects == "none":
        expected = np.sqrt(number / (number - 1)) if number > 1 else 10
        assert before / after == pytest.approx(expected, rel=0.25 if number == 1 else 0.08)
    else:  # what a free norm makes good the counts do not tell of the rate
        assert before >= after


def test_slices_are_those_of_the_reduction_whatever_the_model_follows(monkeypatch):
    """A model of one zenith bin follows no zenith angle, of which its runs were reduced in slices all the same."""
    monkeypatch.setattr("gammapy_accmaker.acceptance.reduction.MAX_ZENITH_CHANGE", 5e-4)
    run = observations(plain_store())[0]
    config = {"model": {"type": "radial"}, "zenith": {"type": "interpolated"}}
    of_one_bin = AcceptanceBackgroundMaker(config).fit([run])
    assert len(of_one_bin._apply(run).run.slices) > 1
    empty = MapDataset.create(sky_geom(run.pointing.fixed_icrs, binsz=0.2, width=2), name="run")
    dataset = of_one_bin.run(MapDatasetMaker(selection=["counts", "exposure"]).run(empty, run), run)
    assert len(of_one_bin.make_nuisance_models(dataset, run)) > 2
    dataset.mask_safe.data[:] = False
    assert not len(of_one_bin.make_nuisance_models(dataset, run))


def rate_error(dataset, prior):
    """Standard deviation of the sum of the background by the rate alone."""
    roots = _priors_of_rate([prior])
    shared = np.concatenate([shared for shared, _ in prior.errors.along_leading()]).sum(0) @ roots[0]
    return np.sqrt((shared**2).sum())


def test_a_stack_has_of_each_run_what_lies_above_its_threshold():
    some = runs(3)
    geom = sky_geom(some[0].pointing.fixed_icrs, edges=(0.4, 0.8, 1.6, 5), binsz=0.2, width=4)
    stacked = MapDataset.create(geom, name="stack")
    for first, run in enumerate(some):
        empty = MapDataset.create(geom, name="run")
        dataset = maker().run(MapDatasetMaker(selection=["counts", "exposure"]).run(empty, run), run)
        dataset.mask_safe.data[:first] = False
        stacked.stack(dataset)
    models = maker().make_nuisance_models(stacked, some, n=60)
    of_run = [model.map.data for model in models]
    # below the thresholds of the others it is that of the one run
    alone = maker().make_nuisance_models(stacked, some[:1], n=60)
    found, expected = (
        np.sqrt(sum(changes[0].sum() ** 2 for changes in of)) for of in (of_run, [model.map.data for model in alone])
    )
    assert found == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("number", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_a_mode_that_datasets_share_weighs_once(number, tmp_path, monkeypatch):
    """gammapy adds the prior of a linked parameter once for each dataset."""
    monkeypatch.chdir(tmp_path)
    run = runs(1)[0]
    first = dataset_of(run, width=2)
    datasets = Datasets([first.copy(name=f"part-{k}") for k in range(number)])
    models = maker().make_nuisance_models(datasets, [run] * number, n=1)
    rate = [model for model in models if "-rate-" in model.name]
    assert len(rate) == number and len(models) == 2 * number
    assert all(model.spectral_model.norm is rate[0].spectral_model.norm for model in rate)
    models.write("models.yaml")
    for datasets.models in (models, Models.read("models.yaml")):
        parameters = datasets.models.parameters
        assert len(parameters.free_unique_parameters) == number + 1
        before = parameters.prior_stat_sum()
        datasets.models[rate[0].name].spectral_model.norm.value = 1.7
        # -2 log of the prior at 1.7 standard deviations, once
        assert parameters.prior_stat_sum() - before == pytest.approx(1.7**2)


def test_a_stacked_dataset_has_the_modes_of_its_runs():
    some = runs(2)
    geom = sky_geom(some[0].pointing.fixed_icrs, binsz=0.2, width=5)
    stacked, single = MapDataset.create(geom, name="stack"), []
    for run in some:
        empty = MapDataset.create(geom, name="run")
        single.append(maker().run(MapDatasetMaker(selection=["counts", "exposure"]).run(empty, run), run))
        stacked.stack(single[-1])
    models = maker().make_nuisance_models(stacked, some, n=60)
    errors = [
        total_error(maker().make_nuisance_models(one, run, n=60), one) for one, run in zip(single, some, strict=True)
    ]
    together = total_error(models, stacked)
    # norms of runs are independent, what they share is not
    assert np.mean(errors) / np.sqrt(2) * 0.95 < together < np.mean(errors)


def test_the_error_of_a_norm_that_the_dataset_tells_is_that_without_prior():
    run, found = runs(1)[0], {}
    for prior in (True, False):
        config = maker().model.config.update({"renormalization": {"type": "fov", "method": "fit", "prior": prior}})
        population = maker().model.rate_model.spline.population
        wide = replace(population, covariance=population.covariance * 25)
        spline = replace(maker().model.rate_model.spline, population=wide)
        model = replace(maker().model, rate_model=replace(maker().model.rate_model, spline=spline))
        with_norm = AcceptanceBackgroundMaker(config, model=model, exclusion=[source_region(full_store())])
        empty = MapDataset.create(sky_geom(run.pointing.fixed_icrs, binsz=0.2, width=5), name="run")
        dataset = with_norm.run(MapDatasetMaker(selection=["counts", "exposure"]).run(empty, run), run)
        found[prior] = dataset.models["run-bkg"].spectral_model.norm
    assert found[True].prior.sigma.value > 5 * found[False].error
    assert found[True].error == pytest.approx(found[False].error, rel=0.03)
    assert found[True].value == pytest.approx(found[False].value, abs=0.1 * found[False].error)


def test_what_cannot_have_models_is_named():
    run = runs(1)[0]
    dataset = dataset_of(run, width=2)
    empty = MapDataset.create(dataset.counts.geom, name="empty")
    with pytest.raises(InputError, match="empty has no background"):
        maker().make_nuisance_models(empty, run)
    with pytest.raises(InputError, match="got 1 for 2 datasets"):
        maker().make_nuisance_models([dataset, dataset], [run])
    with pytest.raises(InputError, match="the names run, run, but each needs one"):
        maker().make_nuisance_models([dataset, dataset], [run, run])
    with pytest.raises(InputError, match="n: "):
        maker().make_nuisance_models(dataset, run, n=0)


# ---- On arrays: a source whose flux is fitted beside the background ----

BANDS = np.searchsorted(EDGES, [0.4, 0.7, 1.3, 3.0, 9.9])
DISC = np.hypot(LON - 0.4, LAT) < 0.9


def in_bands(values):
    return np.add.reduceat(values[..., : BANDS[-1], :], BANDS[:-1], axis=-2)


def fitted_flux(counts, background, source, modes):
    """Maximum likelihood (with Gaussian priors on the modes) by Newton steps: flux and its error."""
    columns = np.stack([source, *modes]).reshape(1 + len(modes), -1)
    prior = np.diag([0.0, *np.ones(len(modes))])
    values = np.zeros(len(columns))
    for _ in range(20):
        mu = np.maximum(background.ravel() + values @ columns, 1e-9)
        information = (columns / mu) @ columns.T + prior
        values += np.linalg.solve(information, columns @ (counts.ravel() / mu - 1) - prior @ values)
    return values[0], np.sqrt(np.linalg.inv(information)[0, 0])


@pytest.mark.slow
def test_fluxes_of_a_source_have_pulls_of_width_one_with_nuisance_models_and_wider_ones_without():
    bins = (EDGES, LON, LAT, SOLID_ANGLE)
    model = fit_spline(simulate_runs(30, seed=5, zenith=(0.7, 1.0)), *bins)[0]
    with_modes, without = [], []
    for k, run in enumerate(simulate_runs(200, seed=6, zenith=(0.75, 0.95), obs_id=500)):
        rng = np.random.default_rng(k)
        exposure = np.full(len(LON), 1700.0)
        volume = exposure * SOLID_ANGLE * np.diff(EDGES)[:, None] * 1e6
        counts = rng.poisson(true_rate(CENTERS, LON, LAT, run.cos_zenith, run.norm, run.shift) * volume)
        # adapted outside of the source; the dataset holds the whole field
        outside = replace(run, counts=csr_array(counts * ~DISC), exposure=exposure * ~DISC)
        held = [(outside.exposure, np.ones(len(CENTERS)))]
        prior = SplineRate(model, fit_run(model, [outside], held=held), run.azimuth)
        rate = prior.rate_grid(CENTERS, LON, LAT, run.cos_zenith) * volume
        background = in_bands(rate)
        shared, own = prior.error_rows(CENTERS, LON, LAT, run.cos_zenith)
        along = prior.error_factor(run.cos_zenith, leading=True)
        changes = in_bands(rate * np.concatenate([np.tensordot(along.T, shared, axes=1), own]))
        flat = changes.reshape(len(changes), -1)
        directions = _leading((flat / background.ravel()) @ flat.T, 10)
        source = DISC * in_bands(volume * CENTERS[:, None] ** -2.0 * 1e-8)
        source *= 300 / source.sum()
        data = in_bands(counts.astype(float)) + rng.poisson(source)
        for pulls, modes in ((with_modes, np.tensordot(directions.T, changes, axes=1)), (without, [])):
            flux, error = fitted_flux(data, background, source, modes)
            pulls.append((flux - 1) / error)
    assert np.std(with_modes) == pytest.approx(1, abs=0.1)
    assert np.std(without) > 1.15
