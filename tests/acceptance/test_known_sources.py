"""Known gamma-ray sources in the likelihood, from the observations to the background of a dataset."""

import os
import pickle
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import astropy.units as u
import numpy as np
import pytest
from gammapy.data import DataStore
from gammapy.datasets import MapDataset
from gammapy.makers import MapDatasetMaker
from gammapy.modeling.models import (
    ConstantTemporalModel,
    DiskSpatialModel,
    FoVBackgroundModel,
    Models,
    PointSpatialModel,
    PowerLawNormSpectralModel,
    PowerLawSpectralModel,
    SkyModel,
)
from regions import CircleSkyRegion
from shared import made_once
from stores import altered, observations, simulated, sky_geom, source_region

from gammapy_accmaker import AcceptanceBackgroundMaker, AcceptanceModel, cross_validate, fit_acceptance
from gammapy_accmaker.acceptance.sources import make_source_table
from gammapy_accmaker.data.sources import SourceList
from gammapy_accmaker.errors import InputError
from gammapy_accmaker.models.source_terms import AmplitudeFit, CountsPatch, SourceBands
from gammapy_accmaker.simulation.store import BackgroundTruth

KINDS = {
    "spline": {"model": {"type": "spline"}},
    "radial": {"model": {"type": "radial"}, "fit_energy": {"type": "adaptive"}},
    "grid": {"model": {"type": "grid", "offset_bins": 8}, "zenith": {"type": "none"}},
    "parametric": {"model": {"type": "parametric", "function": "power_law * gaussian"}, "zenith": {"type": "none"}},
}
SOME_SLOW = ["spline", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("radial", "grid", "parametric"))]
ENERGY = {"energy": {"min": "0.3 TeV", "max": "30 TeV", "nbins_per_decade": 8}}


def store():
    """Wobble runs on a bright source, whose norms differ."""
    truth = BackgroundTruth(zenith_dependent=False)
    return simulated("bright", n_wobble=6, n_off=1, zenith_range=(0, 20) * u.deg, shift_scatter=0, truth=truth)


def runs():
    return observations(store(), store().on_obs_ids)


def true_source(factor=1.0, frozen=False, name="the source"):
    """That of the store, with its flux times a factor."""
    model = store().source.copy(name=name)
    model.spectral_model.amplitude.value *= factor
    model.spectral_model.amplitude.frozen = frozen
    return model


def options(kind, **more):
    return {**KINDS[kind], **ENERGY, **more}


def fitted(kind, what):
    """Fits of one kind, each made once in a session: with the source excluded, ignored or known."""
    given = {"excluded": {"exclusion": [source_region(store())]}, "ignored": {}, "known": {"sources": true_source(0.5)}}
    return made_once(f"bright {kind} {what}", lambda folder: fit_acceptance(runs(), options(kind), **given[what]))


def background_in_source(model, radius=0.15):
    """Of all runs, above 0.5 TeV."""
    maker, total = AcceptanceBackgroundMaker(model=model), 0.0
    geom = sky_geom(store().source.spatial_model.position, edges=(0.5, 30), width=0.6, binsz=0.02)
    mask = geom.to_image().region_mask([source_region(store(), radius)]).data
    for observation in runs():
        total += (maker.make_background(geom, observation).data * mask).sum()
    return total


def above_thresholds(model):
    """Rows of the table of sources that are fluxes."""
    return model.source_table[model.source_table["FLAG"] != "below thresholds"]


def counts_in_source(radius=0.15, of=None):
    where = source_region(store(), radius)
    total = 0
    for observation in of or runs():
        events = observation.events
        near = events.radec.separation(where.center) < where.radius
        total += int((near & (events.energy > 0.5 * u.TeV)).sum())
    return total


@pytest.mark.parametrize("kind", SOME_SLOW)
def test_the_background_is_that_of_a_fit_without_the_source(kind):
    excluded, ignored, known = (fitted(kind, what) for what in ("excluded", "ignored", "known"))
    without, eaten, beside = (background_in_source(model) for model in (excluded, ignored, known))
    excess = counts_in_source() - without
    assert excess > 100
    # a ring has much more background than the source in it, which tells less of the amplitude
    assert abs(beside - without) < (0.05 if kind == "radial" else 0.02) * excess
    if kind == "grid":
        assert eaten - without > 3 * abs(beside - without)


@pytest.mark.parametrize("kind", SOME_SLOW)
def test_amplitudes_are_those_of_the_truth(kind):
    """The model was given with half of the true flux."""
    table = above_thresholds(fitted(kind, "known"))
    assert len(table) == 3 and np.all(table["FREE"])
    pulls = (table["AMPLITUDE"] - 2) / table["AMPLITUDE_ERR"]
    assert np.all(np.abs(pulls) < 3.5), table
    # a ring has much more background than the source in it
    assert np.all(table["AMPLITUDE_ERR"] < (1.5 if kind == "radial" else 0.5))
    assert np.all((table["INFORMATION"] > 0.25) & (table["INFORMATION"] <= 1)), table
    assert np.all(table["E_MIN"][1:] == table["E_MAX"][:-1])
    assert not any(table["FLAG"])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["spline", "radial", "grid"])
def test_the_flux_in_which_a_free_source_is_given_does_not_matter(kind):
    fits = [fit_acceptance(runs()[:4], options(kind), sources=true_source(f), n_jobs=1) for f in (0.5, 500)]
    first, second = (fit.source_table["AMPLITUDE"] * f for fit, f in zip(fits, (1, 1000), strict=True))
    np.testing.assert_allclose(second, first, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_energies_without_background_tell_nothing_of_others(caplog):
    """Below all thresholds nothing is expected but the source, and nothing is seen."""
    low = {**KINDS["radial"], "energy": {"min": "0.05 TeV", "max": "30 TeV", "nbins_per_decade": 8}}
    table = fit_acceptance(runs()[:3], low, sources=true_source(), n_jobs=1).source_table
    assert len(table) == 5 and not any("look like each other" in message for message in caplog.messages)
    # one count more cannot be told
    assert np.all(table["AMPLITUDE_ERR"] * table["COUNTS"] >= table["AMPLITUDE"])


@pytest.mark.parametrize("kind", SOME_SLOW[:2])
def test_the_run_table_expects_background_and_source(kind):
    known, ignored = fitted(kind, "known").run_table, fitted(kind, "ignored").run_table
    assert known["EXPECTED"].sum() == pytest.approx(known["COUNTS"].sum(), rel=0.01)
    # norms are of the background alone
    assert np.all(np.abs(known["NORM"] / ignored["NORM"] - 1) < 0.05)


@pytest.mark.parametrize("kind", [SOME_SLOW[0], SOME_SLOW[2]])
def test_a_model_is_written_read_and_applied_with_its_sources(kind, tmp_path):
    model = fitted(kind, "known")
    model.write(tmp_path / "model.fits")
    again = AcceptanceModel.read(tmp_path / "model.fits")
    assert again.sources.names == ["the source"] == model.sources.names
    assert again.sources[0].spectral_model.amplitude.value == true_source(0.5).spectral_model.amplitude.value
    assert str(again) == str(model) and "the source" in str(model)
    assert again.source_table["AMPLITUDE"].tolist() == model.source_table["AMPLITUDE"].tolist()
    geom = sky_geom(store().source.spatial_model.position)
    makers = [AcceptanceBackgroundMaker(model=m) for m in (model, again, pickle.loads(pickle.dumps(model)))]
    first, *others = (maker.make_background(geom, runs()[0]).data for maker in makers)
    for other in others:
        np.testing.assert_allclose(other, first, rtol=1e-12)
    # a maker that was given the same source again has it once
    maker = AcceptanceBackgroundMaker(model=again, sources=true_source(5))
    np.testing.assert_allclose(maker.make_background(geom, runs()[0]).data, first, rtol=1e-12)


def test_an_adaptation_sees_the_source():
    """What a run without the source in its fit is adapted to: with it as given, and without."""
    model = fitted("spline", "excluded")
    bare = AcceptanceModel(model.rate_model, model.config, model.run_table)
    # known only as a number and a place: a new run
    new = runs()[:2]
    norm = AcceptanceBackgroundMaker({"run_effects": {"type": "norm"}}, model=bare)
    with_source = AcceptanceBackgroundMaker(
        {"run_effects": {"type": "norm"}}, model=bare, sources=true_source(40, frozen=True)
    )
    geom = sky_geom(store().source.spatial_model.position, width=4)
    for observation in new:
        plain, beside = (m.make_background(geom, observation).data.sum() for m in (norm, with_source))
        # forty times the flux is no more there than the counts allow: the background is much lower
        assert beside < 0.95 * plain


def test_the_chain_of_makers_fills_the_background_alone():
    model = fitted("spline", "known")
    maker = AcceptanceBackgroundMaker(model=model)
    geom = sky_geom(store().source.spatial_model.position, edges=(0.5, 30))
    observation = runs()[0]
    dataset = MapDatasetMaker(selection=["counts"]).run(MapDataset.create(geom, name="one"), observation)
    filled = maker.run(dataset, observation)
    np.testing.assert_allclose(filled.background.data, maker.make_background(geom, observation).data)
    other = AcceptanceBackgroundMaker(model=fitted("spline", "excluded")).run(dataset, observation)
    assert filled.background.data.sum() == pytest.approx(other.background.data.sum(), rel=0.01)


@pytest.mark.parametrize("kind", ["fov", "ring"])
def test_a_renormalisation_does_not_count_the_source_for_background(kind):
    """It is that of the source excluded by hand, whatever models the dataset has."""
    options_of_ring = {"r_in": "0.5 deg", "width": "0.2 deg"} if kind == "ring" else {}
    axis = (0.5, 30) if kind == "ring" else (0.5, 1, 3, 30)
    geom = sky_geom(store().source.spatial_model.position, edges=axis, width=3, binsz=0.05)
    observation, sums = runs()[0], []
    for what in ("known", "excluded"):
        config = {"renormalization": {"type": kind, **options_of_ring}}
        maker = AcceptanceBackgroundMaker(config, model=fitted("spline", what))
        empty = MapDataset.create(geom, name=what)
        dataset = MapDatasetMaker(selection=["counts", "exposure", "psf", "edisp"]).run(empty, observation)
        done = maker.run(dataset, observation)
        assert done.models is None or list(done.models.names) == [f"{what}-bkg"]
        sums.append((done.background if kind == "ring" else done.npred_background()).data.sum())
        if kind == "fov" and what == "known":
            dataset.models = [true_source()]
            again = maker.run(dataset, observation)
            assert list(again.models.names) == ["the source", f"{what}-bkg"]
            norms = (one.background_model.spectral_model.norm.value for one in (done, again))
            assert next(norms) == pytest.approx(next(norms), rel=1e-9)
    assert sums[0] == pytest.approx(sums[1], rel=0.015)


def test_a_renormalisation_of_a_run_that_does_not_see_the_source():
    observation, geom, norms = runs()[0], sky_geom(store().source.spatial_model.position, edges=(0.5, 1, 30)), []
    far = true_source(frozen=True, name="far")
    far.spatial_model.lat_0.value += 30
    for sources in (None, far):
        config = {"renormalization": {"type": "fov"}}
        maker = AcceptanceBackgroundMaker(config, model=fitted("spline", "excluded"), sources=sources)
        dataset = MapDatasetMaker(selection=["counts"]).run(MapDataset.create(geom, name="run"), observation)
        norms.append(maker.run(dataset, observation).background_model.spectral_model.norm.value)
    assert norms[0] == norms[1] != 1


def test_known_and_excluded_may_be_mixed():
    """A circle that covers a part of the source alone: its amplitude follows from the rest."""
    core = CircleSkyRegion(store().source.spatial_model.position, 0.1 * u.deg)
    model = fit_acceptance(runs(), options("spline"), exclusion=[core], sources=true_source(), n_jobs=1)
    table = above_thresholds(model)
    assert 0 < table["COUNTS"].sum() < 0.6 * fitted("spline", "known").source_table["COUNTS"].sum()
    assert np.all(np.abs(table["AMPLITUDE"] - 1) < 4 * table["AMPLITUDE_ERR"])


def test_a_source_that_is_excluded_is_told_to_be():
    model = fit_acceptance(
        runs()[:3],
        options("radial"),
        exclusion=[CircleSkyRegion(store().source.spatial_model.position, 1.7 * u.deg)],
        sources=true_source(),
    )
    assert model.source_table["FLAG"].tolist() == ["no counts outside of the exclusion"]


def test_a_trace_of_a_source_outside_of_the_exclusion_is_no_count():
    """As of its point spread, far out."""
    edges, bands = np.geomspace(1, 10, 5), SourceBands(np.array([[0] * 4, [1] * 4]))
    whole = CountsPatch.of(np.full((4, 3), 10.0))
    for share, flag in ((1e-5, "no counts outside of the exclusion"), (0.1, "")):
        seen = whole.scaled(np.full(4, share))
        run = SimpleNamespace(
            slices=[SimpleNamespace(sources=(seen, seen))], sky=SimpleNamespace(sources=(whole, whole))
        )
        fit = AmplitudeFit.of(bands, np.ones(2), np.eye(2), np.eye(2), True)
        table = make_source_table(SourceList.of(true_source()), fit, [run], edges)
        assert table["FLAG"][0] == flag


def test_frozen_sources_are_taken_as_given():
    model = fit_acceptance(runs(), options("radial"), sources=true_source(frozen=True))
    table = model.source_table
    assert table["FREE"].tolist() == [False] and table["AMPLITUDE"].tolist() == [1.0]
    assert "as given" in str(model)
    excess = counts_in_source() - background_in_source(fitted("radial", "excluded"))
    assert abs(background_in_source(model) - background_in_source(fitted("radial", "excluded"))) < 0.1 * excess


@pytest.mark.slow
def test_sources_by_the_configuration(tmp_path):
    Models([true_source(0.5), FoVBackgroundModel(spectral_model=PowerLawNormSpectralModel(), dataset_name="d")]).write(
        tmp_path / "sources.yaml", write_covariance=False
    )
    given = {"type": "models", "models": str(tmp_path / "sources.yaml"), "bands": 1}
    model = fit_acceptance(runs(), options("radial", sources=given))
    table = above_thresholds(model)
    assert len(table) == 1 and model.sources.names == ["the source"]
    assert table["AMPLITUDE"][0] == pytest.approx(2, abs=3.5 * table["AMPLITUDE_ERR"][0])
    assert model.config.sources.models is None  # the model holds what was in the file
    maker = AcceptanceBackgroundMaker(options("radial", sources=given)).fit(runs())
    assert maker.model.source_table["AMPLITUDE"][0] == model.source_table["AMPLITUDE"][0]
    # fitted again from the same maker the sources are free again
    assert maker.fit(runs()).model.source_table["FREE"].all()


@pytest.mark.parametrize("kind", [SOME_SLOW[0], SOME_SLOW[2]])
def test_the_answer_does_not_depend_on_processes_nor_the_cache(kind, tmp_path):
    one = fitted(kind, "known").source_table
    for _ in range(2):
        two = fit_acceptance(runs(), options(kind), sources=true_source(0.5), n_jobs=2, cache=tmp_path).source_table
        np.testing.assert_array_equal(two["AMPLITUDE"], one["AMPLITUDE"])


@pytest.mark.parametrize("kind", [SOME_SLOW[0], SOME_SLOW[2]])
def test_on_runs_tell_the_amplitudes_beside_a_model_of_off_runs(kind):
    """Of all ON runs in the fit, and of each alone where the model is only applied."""
    off = observations(store(), store().off_obs_ids)
    maker = AcceptanceBackgroundMaker(options(kind), sources=true_source(0.5)).fit(runs(), off_observations=off)
    assert (maker.run_table["ROLE"] == "apply").sum() == len(runs())
    together = above_thresholds(maker.model)
    assert together["FREE"].all() and np.all(np.abs(together["AMPLITUDE"] - 2) < 4 * together["AMPLITUDE_ERR"])
    assert together["AMPLITUDE_ERR"].max() < 0.4
    assert maker.known_sources.sources[0].amplitudes == tuple(together["AMPLITUDE"])
    without = replace(maker.model, known_sources=SourceList())
    alone = AcceptanceBackgroundMaker(model=without, sources=true_source(0.5))
    found = [np.mean(alone.sources_in(run).sources[0].amplitudes) for run in runs()]
    assert len(set(found)) == len(runs()) and np.mean(found) == pytest.approx(together["AMPLITUDE"].mean(), rel=0.1)
    if kind == "grid":  # a model for each run, of the OFF runs that are like it
        matching = {"limits": {"zenith": "60 deg"}}
        one = AcceptanceBackgroundMaker(options(kind, matching=matching), sources=true_source(0.5))
        table = above_thresholds(one.fit(runs(), off_observations=off).model)
        np.testing.assert_allclose(table["AMPLITUDE"], together["AMPLITUDE"], rtol=0.02)
        assert one.known_sources.sources[0].amplitudes == tuple(table["AMPLITUDE"])
    as_given = AcceptanceBackgroundMaker(model=without, sources=true_source(2, frozen=True))
    assert as_given.sources_in(runs()[0]).sources[0].amplitudes == ()


def test_a_source_that_on_and_off_runs_see_is_fitted_to_the_on_runs():
    config, (faint, nowhere) = options("radial"), (true_source(0.5), WRONG["far away"][0]())
    off = [*observations(store(), store().off_obs_ids), *runs()[3:]]
    with pytest.raises(InputError, match=WRONG["far away"][1]):
        AcceptanceBackgroundMaker(config, sources=[faint, nowhere]).fit(runs()[:3], off_observations=off)
    maker = AcceptanceBackgroundMaker(config, sources=faint).fit(runs()[:3], off_observations=off)
    table = above_thresholds(maker.model)
    counts = counts_in_source(of=runs()[:3])
    assert counts < table["COUNTS"].sum() < 3 * counts  # of the three ON runs, at more energies
    assert maker.known_sources.sources[0].amplitudes == tuple(table["AMPLITUDE"])
    # also where nothing else is fitted to a run
    without, bare = replace(maker.model, known_sources=SourceList()), {"run_effects": {"type": "none"}}
    alone = AcceptanceBackgroundMaker(bare, model=without, sources=faint).sources_in(runs()[0]).sources[0]
    np.testing.assert_allclose(alone.amplitudes, table["AMPLITUDE"], rtol=0.5)


@pytest.mark.slow
def test_held_out_scores_see_the_source():
    given = {"plain": options("radial")}
    with_source = cross_validate(runs(), given, sources=true_source(0.5), n_folds=3, n_jobs=1, sky=True)
    without = cross_validate(runs(), given, n_folds=3, n_jobs=1, sky=True)
    assert with_source.table["SCORE"][0] > without.table["SCORE"][0] + 20
    # discs on the source are among those of the sky: they are tested against background and source
    widths = [one.significance["WIDTH"][one.significance["FRAME"] == "sky"][:2] for one in (with_source, without)]
    assert np.all(widths[0] < 1.1) and np.all(widths[1] > 1.13)


WRONG = {
    "far away": (
        lambda: SkyModel(
            PowerLawSpectralModel(), PointSpatialModel(lon_0="200 deg", lat_0="60 deg", frame="icrs"), name="far"
        ),
        "'far' lies outside of the fields of all runs.*leave it out",
    ),
    "negative": (lambda: true_source(-1), "amplitude = -5e-12.*> 0 is needed"),
    "infinite": (lambda: true_source(np.inf), "amplitude = inf.*finite"),
    "temporal": (
        lambda: SkyModel(
            PowerLawSpectralModel(), true_source().spatial_model, temporal_model=ConstantTemporalModel(), name="flare"
        ),
        "'flare' has a temporal model.*mean flux",
    ),
    "no place": (lambda: SkyModel(PowerLawSpectralModel(), name="nowhere"), "'nowhere' has no spatial model"),
    "a number": (lambda: 3, "got int"),
    "no file": (lambda: "no such file.yaml", "there is no file"),
    "twice": (lambda: [true_source(), true_source()], "more than once"),
    "a name": (lambda: {"a": 1}, "got dict"),
}


@pytest.mark.parametrize("name", list(WRONG))
def test_wrong_sources_are_named_before_the_fit(name):
    make, message = WRONG[name]
    with pytest.raises(InputError, match=message):
        fit_acceptance(runs()[:1], options("radial"), sources=make())


@pytest.mark.slow
def test_two_sources_that_look_alike_are_flagged(caplog):
    twins = [true_source(0.5, name="one"), true_source(0.5, name="two")]
    model = fit_acceptance(runs(), options("grid"), sources=twins)
    table = above_thresholds(model)
    assert all("not known from the runs" in flag for flag in table["FLAG"])
    assert any("look like each other" in message for message in caplog.messages)
    total = table["AMPLITUDE"][:3] + table["AMPLITUDE"][3:]
    assert np.all(np.abs(total - 2) < 1.2)


def test_a_disc_on_axis_of_all_runs_is_told(caplog):
    """What stands in one place of the camera in all runs cannot be told from the acceptance."""
    one = runs()[0]
    axis = DiskSpatialModel(
        lon_0=one.get_pointing_icrs(one.tmid).ra, lat_0=one.get_pointing_icrs(one.tmid).dec, r_0="0.5 deg", frame="icrs"
    )
    model = SkyModel(PowerLawSpectralModel(amplitude="1e-11 cm-2 s-1 TeV-1"), axis, name="disc")
    fitted_model = fit_acceptance([one], options("radial"), sources=[model, true_source(frozen=True)])
    rows = above_thresholds(fitted_model)
    rows = rows[rows["SOURCE"] == "disc"]
    assert np.all(rows["INFORMATION"] < 0.2)
    assert any("cannot be told apart" in message and "OFF runs" in message for message in caplog.messages)


def test_runs_without_the_responses_that_sources_need():
    bare = [altered(observation, aeff=None) for observation in runs()[:2]]
    with pytest.raises(InputError, match="no effective area.*exclude the sources in place of `sources`"):
        fit_acceptance(bare, options("radial"), sources=true_source(), n_jobs=1)
    # one such run costs itself alone
    model = fit_acceptance([*runs()[:2], bare[0]], options("radial"), sources=true_source(), n_jobs=1)
    assert model.run_table["USED"].tolist() == [True, True, False]


@pytest.mark.gammapy_data
def test_responses_for_a_region_are_refused():
    """MAGIC, with RAD_MAX: they do not tell what a source adds outside of its region."""
    path = Path(os.environ["GAMMAPY_DATA"]) / "magic/rad_max/data"
    magic = DataStore.from_dir(path).get_observations(required_irf="point-like")
    crab = SkyModel(PowerLawSpectralModel(), PointSpatialModel(lon_0="83.63 deg", lat_0="22.01 deg", frame="icrs"))
    with pytest.raises(InputError, match="RAD_MAX.*full-enclosure"):
        fit_acceptance(magic, {"model": {"type": "radial"}, "offset_max": "1.2 deg"}, sources=crab, n_jobs=1)
