"""Sources that nobody excluded are found in the residual sky, left out, and the fit is repeated."""

import itertools
import logging
import pickle
from dataclasses import replace

import astropy.units as u
import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.table import Table
from gammapy.data import DataStore
from gammapy.maps import MapAxis
from gammapy.modeling.models import GaussianSpatialModel, PowerLawSpectralModel, SkyModel
from regions import CircleSkyRegion
from scipy.sparse import csr_array
from sources import with_source
from stores import IRFS, altered, observations, options, plain_store

from gammapy_accmaker import (
    AcceptanceBackgroundMaker,
    AcceptanceConfig,
    AcceptanceModel,
    cross_validate,
    fit_acceptance,
)
from gammapy_accmaker.acceptance.reduction import Reduction
from gammapy_accmaker.data.counts import observation_track
from gammapy_accmaker.data.exclusion import Exclusion
from gammapy_accmaker.data.sky_counts import sky_bands
from gammapy_accmaker.errors import InputError
from gammapy_accmaker.products.background import make_background_map
from gammapy_accmaker.products.excess import (
    excess_fields,
    excess_regions,
    find_excess,
    search_bands,
    significance_map,
)
from gammapy_accmaker.products.found import group_circles
from gammapy_accmaker.products.sky_stack import disc_sums

ITERATIVE = {"threshold": 5, "correlation_radius": "0.1 deg", "dilation": "0.1 deg", "max_iterations": 5}


def config(kind="grid", effects="norm", iterative=ITERATIVE, **more):
    return options(kind, effects, exclusion={"iterative": iterative}, **more)


@pytest.fixture(scope="module")
def store():
    return plain_store()


@pytest.fixture(scope="module")
def on_runs(store):
    return observations(store, store.on_obs_ids)


@pytest.fixture(scope="module")
def source(on_runs):
    return on_runs[0].meta.target.position


@pytest.fixture(scope="module")
def spoilt(on_runs, source):
    """1500 events of a source in each run, which has some 35 000 of background; and a weaker one 0.8 deg away."""
    other = source.directional_offset_by(60 * u.deg, 0.8 * u.deg)
    runs = [with_source(o, source, 1500, seed=k) for k, o in enumerate(on_runs)]
    return [with_source(o, other, 300, seed=10 + k) for k, o in enumerate(runs)], other


@pytest.fixture(scope="module")
def maker(spoilt):
    return AcceptanceBackgroundMaker(config()).fit(spoilt[0])


def test_sources_are_found(maker, source, spoilt):
    found = maker.model.found
    assert found.meta["STABLE"] and found["ITERATION"].max() < 5
    regions = maker.found_regions
    assert len(regions) == len(found) and all(isinstance(region, CircleSkyRegion) for region in regions)
    for position in (source, spoilt[1]):
        near = [r for r in regions if r.center.separation(position) < 0.1 * u.deg]
        assert near and max(r.radius.to_value("deg") for r in near) < 0.6
        assert max(r.radius.to_value("deg") - r.center.separation(position).deg for r in near) > 0.15
    # nothing else is
    assert all(min(r.center.separation(p).deg for p in (source, spoilt[1])) < 0.3 for r in regions)
    assert found["SIGNIFICANCE"].max() > 20


def test_what_was_found_is_shown(maker, source, spoilt, tmp_path, monkeypatch):
    """1500 events a run were put in, from 0.3 TeV with index 2.5, so that a part is below the energies of the fit."""
    seen, model = maker.model.seen, maker.model
    (crab,) = [s for s in seen if _position(s).separation(source) < 0.15 * u.deg]
    injected = 1500 * len(spoilt[0])
    assert abs(crab.excess.sum() - injected) < 4 * np.sqrt(injected + crab.background.sum())
    energies = np.sqrt(crab.energy_edges[1:] * crab.energy_edges[:-1])
    bright = (crab.excess > 100) & (crab.energy_edges[:-1] > 0.3)  # the band below is filled in part
    index = np.polyfit(np.log(energies[bright]), np.log((crab.excess / np.diff(crab.energy_edges))[bright]), 1)[0]
    assert index == pytest.approx(-2.5, abs=0.2)
    assert crab.significance == model.found["SIGNIFICANCE"].max()
    model.write(tmp_path / "model.fits")
    back = AcceptanceModel.read(tmp_path / "model.fits")
    assert [s.name for s in back.seen] == [s.name for s in seen]
    for one, other in zip(back.seen, seen, strict=True):
        assert np.array_equal(one.image, other.image) and np.array_equal(one.flux, other.flux, equal_nan=True)
    models = back.found_sources
    assert crab.name in models.names
    monkeypatch.chdir(tmp_path)  # where gammapy writes the templates
    models.write(tmp_path / "found.yaml", write_covariance=False)
    there = models[crab.name].spatial_model.map
    peak = there.geom.get_coord().skycoord[np.unravel_index(there.data.argmax(), there.data.shape)]
    assert peak.separation(source) < 0.15 * u.deg


def _position(source):
    return SkyCoord(source.ra, source.dec, unit="deg")


def test_circles_that_overlap_are_one_source():
    found = Table({"RA": [10, 10.5, 12.0, 11.2], "DEC": [0.0] * 4, "RADIUS": [0.3, 0.3, 0.2, 0.5]})
    found["SIGNIFICANCE"] = [5.0, 7.0, 9.0, 6.0]
    assert [rows.tolist() for rows in group_circles(found)] == [[2], [0, 1, 3]]
    found["RADIUS"][3] = 0.7
    assert [rows.tolist() for rows in group_circles(found)] == [[0, 1, 2, 3]]


def test_the_fit_then_recovers_the_truth(maker, store, on_runs, spoilt):
    edges, x = np.array([0.3, 1, 3, 10]), np.linspace(-2, 2, 41)
    expected = sum(store.expected_counts(o.obs_id, edges, x, x) for o in on_runs)
    center = 0.5 * (x[1:] + x[:-1])
    lon, lat = (a.ravel() for a in np.meshgrid(center, center, indexing="ij"))
    seconds = sum(o.observation_time_duration.to_value("s") for o in on_runs)
    spoilt_fit = fit_acceptance(spoilt[0], options("grid"))
    got, bad = (
        m.rate_model.integral_grid(edges, lon, lat).reshape(expected.shape) * np.radians(0.1) ** 2 * seconds
        for m in (maker.model, spoilt_fit)
    )
    total = expected.sum((1, 2))
    assert np.all(np.abs(got.sum((1, 2)) - total) < 4 * np.sqrt(total))
    assert np.all(np.abs(bad.sum((1, 2)) - total) > 6 * np.sqrt(total))
    # in the ring of the camera where the source was
    ring = (np.hypot(lon, lat) > 0.4).reshape(40, 40) & (np.hypot(lon, lat) < 0.8).reshape(40, 40)
    here = expected[:, ring].sum(1)
    assert np.all(np.abs(got[:, ring].sum(1) - here) < 5 * np.sqrt(here))


def test_found_regions_are_left_out_wherever_the_model_is_used(maker, spoilt, tmp_path):
    given = AcceptanceBackgroundMaker(options("grid"), exclusion=maker.found_regions).fit(spoilt[0])
    assert np.array_equal(given.model.rate_model.counts, maker.model.rate_model.counts)
    maker.model.write(tmp_path / "model.fits")
    model = AcceptanceModel.read(tmp_path / "model.fits")
    assert model.found.meta["STABLE"] and model.found.colnames == maker.model.found.colnames
    for name in model.found.colnames:
        assert np.array_equal(model.found[name], maker.model.found[name])
    again = AcceptanceBackgroundMaker(model=model)
    norms = [m.adapt(spoilt[0][0]).norm for m in (maker, given, again, pickle.loads(pickle.dumps(maker)))]
    assert np.ptp(norms) == 0
    plain = AcceptanceBackgroundMaker(
        options("grid"), model=AcceptanceModel(model.rate_model, model.config, model.run_table)
    )
    assert plain.adapt(spoilt[0][0]).norm > norms[0] + 0.02


def test_a_second_fit_starts_from_what_was_given(maker, spoilt):
    """What the first one found is looked for again, and what a model that was given leaves out stays out."""
    again = AcceptanceBackgroundMaker(config()).fit(spoilt[0][:2])
    again.fit(spoilt[0])
    for name in maker.model.found.colnames:
        assert np.array_equal(again.model.found[name], maker.model.found[name])
    assert again.exclusion.lines() == maker.exclusion.lines() and len(maker.found_regions)
    for name in ("counts", "exposure"):
        assert np.array_equal(getattr(again.model.rate_model, name), getattr(maker.model.rate_model, name))
    assert list(again.run_table["NORM"]) == list(maker.run_table["NORM"])
    given = AcceptanceBackgroundMaker(options("grid"), model=maker.model).fit(spoilt[0])
    assert np.array_equal(given.model.rate_model.counts, maker.model.rate_model.counts)


def test_sources_found_is_the_same_search(maker, spoilt):
    """In whatever order the runs come."""
    found = {"type": "found", "threshold": 5, "max_iterations": 5}
    model = fit_acceptance(spoilt[0][::-1], options("grid", sources=found))
    assert all(np.array_equal(model.found[name], maker.model.found[name]) for name in model.found.colnames)
    assert np.array_equal(model.rate_model.counts, maker.model.rate_model.counts)
    assert AcceptanceConfig.coerce(options("grid", sources={"type": "found"})).search.threshold == 4.5
    with pytest.raises(InputError, match="same search"):
        AcceptanceConfig.coerce(config(sources={"type": "found"}))
    with pytest.raises(InputError, match="found.*matching"):
        AcceptanceConfig.coerce(options("grid", sources={"type": "found"}, matching={}))


def test_a_source_that_is_known_is_not_found(spoilt, source):
    """The known one stands in the likelihood, the other one is looked for."""
    spectrum = PowerLawSpectralModel(index=2.5, amplitude="1e-11 TeV-1 cm-2 s-1", reference="1 TeV")
    shape = GaussianSpatialModel(lon_0=source.ra, lat_0=source.dec, sigma=0.05 * u.deg, frame="icrs")
    as_seen = {"exposure": True, "psf": False, "edisp": False}  # what was put in is what is seen
    known = SkyModel(spectral_model=spectrum, spatial_model=shape, name="known", apply_irf=as_seen)
    energy = {"min": "0.4 TeV", "max": "20 TeV"}
    settings = options("grid", energy=energy, sources={"type": "found"})
    model = fit_acceptance(spoilt[0], settings, sources=known)
    for region in model.found_regions:
        assert region.center.separation(spoilt[1]) < 0.2 * u.deg < region.center.separation(source)
    assert len(model.found) and model.source_table["SOURCE"][0] == "known"


def test_on_runs_are_spared_what_is_found_in_off_runs(store, spoilt):
    off = AcceptanceBackgroundMaker(config()).fit(
        observations(store, store.off_obs_ids[:2]), off_observations=spoilt[0]
    )
    assert len(off.found_regions) >= 2


@pytest.mark.parametrize("kind", ["radial", "grid"])
def test_nothing_is_found_in_pure_background(kind, on_runs, caplog):
    """Radial models do not know the asymmetry of the truth:
    the significance is wider than 1, and the threshold follows."""
    with caplog.at_level(logging.WARNING):
        model = fit_acceptance(on_runs, config(kind))
    assert len(model.found) == 0 and model.found_regions == [] and not caplog.records
    plain = fit_acceptance(on_runs, options(kind))
    assert np.array_equal(model.rate_model.counts, plain.rate_model.counts)


@pytest.fixture(scope="module")
def pure(store, on_runs):
    """Pure background, with a model of other runs."""
    truth = fit_acceptance(observations(store), options("grid"))
    reduction = Reduction.of(AcceptanceConfig.coerce(options("grid")))
    runs, _ = reduction.reduce_all(on_runs)
    settings, edges = reduction.config.run_effects.settings, reduction.bins.energy_edges
    adapted = [truth.rate_model.adapt(run, reduction.bins, settings).model for run in runs]
    return runs, adapted, edges


def test_a_spectrum_that_rises_has_bands(pure):
    """Events at the highest energies alone: the bands of the search begin below the last edge."""
    runs, _, edges = pure
    counts = runs[0].counts.toarray() * 0
    counts[-1] = 1
    part = replace(runs[0].slices[0], counts=csr_array(counts))
    for narrow in (edges, edges[-5:]):
        risen = replace(runs[0], slices=(replace(part, counts=csr_array(counts[1 - len(narrow) :])),))
        bands = search_bands([risen], narrow)
        assert len(bands) == 2 and bands[0] < bands[1] == narrow[-1]


def test_significance_of_pure_background_is_normal(pure):
    runs, adapted, edges = pure
    (field,) = excess_fields(runs, adapted, search_bands(runs, edges), edges, 2.5, Exclusion())
    assert sorted(field.places) == list(range(len(runs)))
    significance, width = significance_map(field.counts.sum(0), field.expected.sum(0), field.covered, 0.1)
    values = significance[significance != 0]
    assert len(values) > 1500 and values.max() < 5 and width < 1.1
    assert abs(values.mean()) < 0.15 and 0.85 < values.std() < 1.15
    none = Exclusion()
    # in a hundred fields, a handful of circles at 4 sigma and none at 5: here none at all
    assert len(find_excess([field], none, none, 5, 0.1, 0.1)) == 0
    low = find_excess([field], none, none, 2.5, 0.1, 0.1)
    assert len(low) > 3
    for region in excess_regions(low):
        assert region.radius.to_value("deg") >= 0.2


def test_what_is_expected_on_the_sky_is_the_map(pure, on_runs):
    """Turned through a few nodes in time and interpolated, it is what a map of the run has, minute by minute."""
    runs, adapted, edges = pure
    for run, model in list(zip(runs, adapted, strict=True))[:2]:
        bands = sky_bands(edges)[[0, 2, -1]]
        (field,) = excess_fields([run], [model], bands, edges, 2.5)
        geom = field.geom.to_cube([MapAxis.from_energy_edges(bands, unit="TeV", name="energy")])
        track = observation_track(on_runs[run.place], "altaz")
        of_map = make_background_map(model, track, geom, 60.0).data
        inner = field.geom.separation(field.geom.center_skydir).deg < 1.8
        for band, (one, other) in enumerate(zip(field.expected, of_map, strict=True)):
            assert one[inner].sum() == pytest.approx(other[inner].sum(), rel=2e-3), band
        # the pixels of the run do not fall on those of the image: discs do
        one, other = (disc_sums(a.sum(0), 0.5)[inner] for a in (field.expected, of_map))
        assert np.abs(one / other - 1).max() < 0.1


def test_every_event_is_on_the_sky(pure, on_runs):
    runs, _, edges = pure
    for run in runs[:2]:
        events = on_runs[run.place].events
        energy, there = events.energy.to_value("TeV"), events.radec
        # right ascension falls from pixel to pixel, declination grows
        lon, lat = (a.to_value("deg") for a in on_runs[run.place].pointing.fixed_icrs.spherical_offsets_to(there))
        side = np.arange(run.sky.side + 1) * 0.1 - 0.05 * run.sky.side
        for k, (low, high) in enumerate(itertools.pairwise(sky_bands(edges))):
            mine = (energy >= low) & (energy < high)
            image = run.sky.image(len(sky_bands(edges)) - 1)[k].reshape(run.sky.side, -1)
            assert np.array_equal(image, np.histogram2d(lat[mine], -lon[mine], bins=(side, side))[0])


def test_one_pointing_is_told(spoilt, caplog):
    one = [spoilt[0][0], altered(spoilt[0][0], obs_id=2)]
    for exclusion, told in ((None, True), (CircleSkyRegion(spoilt[1], 0.3 * u.deg), False)):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            fit_acceptance(one, options("grid"), exclusion=exclusion)
        assert ("all 2 runs point to one position" in caplog.text) == told
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        fit_acceptance(spoilt[0], options("grid"))
    assert "point to one position" not in caplog.text


def test_excess_that_is_left_in_the_fit_is_told(spoilt, source, caplog):
    with caplog.at_level(logging.WARNING):
        fit_acceptance(spoilt[0], options("grid"), exclusion=CircleSkyRegion(spoilt[1], 0.3 * u.deg))
    (told,) = [r.getMessage() for r in caplog.records if "significant excess" in r.getMessage()]
    assert f"RA {source.ra.deg:.2f} deg"[:-6] in told and "sources: {type: found}" in told
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        both = [CircleSkyRegion(p, 0.3 * u.deg) for p in (source, spoilt[1])]
        fit_acceptance(spoilt[0], options("grid"), exclusion=both)
    assert "significant excess" not in caplog.text


def test_a_search_that_does_not_end_is_reported(on_runs, caplog):
    with caplog.at_level(logging.WARNING):
        model = fit_acceptance(on_runs[:2], config(iterative={"threshold": 2.5, "max_iterations": 1}))
    assert not model.found.meta["STABLE"] and set(model.found["ITERATION"]) == {1}
    assert "the last of 1 searches still found" in caplog.text and "max_iterations" in caplog.text
    assert model.rate_model.counts.sum() > 0


@pytest.mark.parametrize(
    "bad",
    [
        {"threshold": 0},
        {"max_iterations": 0},
        {"correlation_radius": "0 deg"},
        {"dilation": "-1 deg"},
        {"sigma": 5},
        True,
    ],
)
def test_bad_options(bad):
    with pytest.raises(InputError, match="exclusion.iterative"):
        AcceptanceConfig.coerce(config(iterative=bad))


def test_what_it_does_not_go_with(on_runs):
    with pytest.raises(InputError, match="matching"):
        AcceptanceConfig.coerce(config(matching={}))
    with pytest.raises(InputError, match="iterative"):
        cross_validate(on_runs, {"found": config()}, n_folds=2)


def test_options_round_trip():
    settings = AcceptanceConfig.coerce(config())
    assert AcceptanceConfig.from_yaml(settings.to_yaml()).to_yaml() == settings.to_yaml()
    assert AcceptanceConfig.coerce(config(iterative={})).exclusion.iterative.threshold == 5


@pytest.mark.gammapy_data
def test_the_crab_nebula_is_found_on_dr1():
    store = DataStore.from_dir("$GAMMAPY_DATA/hess-dl3-dr1")
    runs = list(store.get_observations([23523, 23526, 23559, 23592], required_irf=IRFS))
    energy = {"min": "0.5 TeV", "max": "20 TeV"}
    model = fit_acceptance(runs, config("radial", energy=energy))
    crab = SkyCoord(83.633, 22.014, unit="deg")
    near = [r for r in model.found_regions if r.center.separation(crab) < 0.1 * u.deg]
    assert near and model.found.meta["STABLE"] and len(model.found) <= len(near) + 1
    assert max(r.radius for r in near) < 0.6 * u.deg
    known = fit_acceptance(runs, options("radial", energy=energy), exclusion=CircleSkyRegion(crab, 0.4 * u.deg))
    x = np.linspace(0.05, 1.95, 20)
    rates = [(m.rate_model.integral_grid(np.array([0.6, 20]), x, 0 * x)[0] * x).sum() for m in (model, known)]
    assert rates[0] == pytest.approx(rates[1], rel=0.03)
