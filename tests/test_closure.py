"""Closure: the background of the simulated store, without renormalisation, is the truth that it was drawn from."""

from functools import cache

import astropy.units as u
import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from gammapy.maps import Map
from gammapy.utils.coordinates import FoVAltAzFrame
from regions import CircleSkyRegion
from scipy.stats import chi2
from stores import altered, full_store, mean_in_bins, observations, options, plain_store, sky_geom, source_region

from gammapy_accmaker import AcceptanceBackgroundMaker

KINDS = ["radial", "grid"]
EDGES = np.geomspace(0.1, 100, 13)
RADIUS = 2.3  # deg
PIXELS = np.linspace(-2.4, 2.4, 65)


@cache
def prepared(which, kind, effects):
    """A maker fitted to all runs of a store, its runs, and the region left out."""
    store = plain_store() if which == "plain" else full_store()
    exclusion = None if store.source is None else source_region(store)
    runs = observations(store)
    return AcceptanceBackgroundMaker(options(kind, effects), exclusion=exclusion).fit(runs), runs


@cache
def truth_in_disc(which, obs_id):
    store = plain_store() if which == "plain" else full_store()
    middle = 0.5 * (PIXELS[1:] + PIXELS[:-1])
    inside = np.hypot(*np.meshgrid(middle, middle, indexing="ij")) < RADIUS
    return store.expected_counts(obs_id, EDGES, PIXELS, PIXELS)[:, inside].sum(1)


@cache
def sums(which, kind, effects):
    """Background, truth and counts, each of shape (run, energy), within RADIUS of the pointing."""
    maker, runs = prepared(which, kind, effects)
    background, truth, counts = [], [], []
    for run in runs:
        center = run.pointing.fixed_icrs
        geom = sky_geom(center, edges=EDGES, width=4.8, binsz=0.05)
        near = geom.to_image().separation(center).deg < RADIUS
        background.append(maker.make_background(geom, run).data[:, near].sum(1))
        truth.append(truth_in_disc(which, run.obs_id))
        found = Map.from_geom(geom)
        found.fill_events(run.events)
        counts.append(found.data[:, near].sum(1))
    return np.array(background), np.array(truth), np.array(counts)


def probability(got, expected):
    """Of a larger deviance, over the bins with at least a few expected counts."""
    many = expected > 5
    return chi2.sf(np.sum((got - expected)[many] ** 2 / expected[many]), many.sum())


@pytest.mark.parametrize("kind", KINDS)
def test_every_energy_bin_is_within_poisson_error(kind):
    background, truth, counts = (a.sum(0) for a in sums("plain", kind, "none"))
    assert counts.sum() > 200_000
    assert probability(background, truth) > 1e-3
    assert probability(background, counts) > 1e-3
    many = truth > 5
    assert np.abs((background - truth) / np.sqrt(truth))[many].max() < 3


@pytest.mark.parametrize("effects", ["none", "norm"])
@pytest.mark.parametrize("kind", KINDS)
def test_total_of_the_plain_store(kind, effects):
    background, truth, counts = (a.sum() for a in sums("plain", kind, effects))
    assert background == pytest.approx(counts, rel=5e-3)
    assert background == pytest.approx(truth, rel=5e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_total_with_norms_and_shifts(kind):
    """Norms, shifts and zenith differ from run to run; the source is excluded from the fit, and is in the counts.

    Norms are those above the thresholds, which a norm cannot follow.
    """
    table = prepared("full", kind, "norm")[0].run_table
    lowest = dict(zip(table["OBS_ID"].tolist(), table["NORM_EMIN"].tolist(), strict=True))
    above = np.array([EDGES[:-1] > 0.999 * lowest[run.obs_id] for run in prepared("full", kind, "norm")[1]])
    background, truth, _ = (np.where(above, part, 0) for part in sums("full", kind, "norm"))
    assert truth.sum() > 20_000 and np.all(above.sum(1) > 8)
    error = 1 / np.sqrt(truth.sum())
    assert background.sum() == pytest.approx(truth.sum(), rel=5e-3 + error)
    for k in range(len(truth)):
        assert background[k].sum() == pytest.approx(truth[k].sum(), rel=0.01 + 4 / np.sqrt(truth[k].sum()))


@pytest.mark.parametrize("kind", KINDS)
def test_trap_livetime(kind):
    """Dead time is 6 %: a rate per livetime, multiplied by the ontime, would be 6 % high in every run."""
    table = prepared("plain", kind, "none")[0].run_table
    assert np.allclose(table["LIVETIME"] / table["ONTIME"], 0.94)
    background, truth, _ = sums("plain", kind, "none")
    assert np.all(np.abs(background.sum(1) / truth.sum(1) - 1) < 0.01)


def test_trap_gti_gap():
    """The first run lasts 34 min, of which 6 are no good time."""
    first = prepared("plain", "grid", "none")[1][0]
    assert (first.gti.time_stop[-1] - first.gti.time_start[0]).to_value("min") == pytest.approx(34, abs=0.1)
    background, truth, counts = (a[0].sum() for a in sums("plain", "grid", "none"))
    assert background == pytest.approx(truth, rel=0.01)
    assert background == pytest.approx(counts, rel=0.03)


def test_norms_are_found():
    """To what a norm can do: the spectrum of a run with a shift differs."""
    store = plain_store()
    table = prepared("plain", "grid", "norm")[0].run_table
    assert np.all(np.abs(table["NORM"] - 1) < 4 * table["NORM_ERR"])
    assert set(table["OBS_ID"]) == {*store.on_obs_ids, *store.off_obs_ids}


@pytest.mark.parametrize("energy", [(0.2, 0.5), (1, 4)])
def test_trap_the_sign_of_the_camera_frame(energy):
    """ALTAZ truth is asymmetric: halves of the camera in counts, truth and background agree, in and across."""
    maker, runs = prepared("plain", "grid", "none")
    got, drawn = np.zeros(4), np.zeros(4)
    for run in runs:
        center, obstime = run.pointing.fixed_icrs, run.tmid
        geom = sky_geom(center, edges=energy, width=4.6, binsz=0.1)
        near = geom.to_image().separation(center).deg < 2.0
        background = maker.make_background(geom, run).data[0][near]
        events = run.events.select_energy(energy * u.TeV)
        events = events.select_offset([0, 2] * u.deg)

        def halves(positions, weights, when=obstime, run=run):
            origin = run.get_pointing_altaz(when)
            frame = FoVAltAzFrame(origin=origin, location=origin.location, obstime=when)
            in_camera = positions.transform_to(frame)
            lon, lat = in_camera.fov_lon.wrap_at("180d").deg, in_camera.fov_lat.deg
            return np.array([np.sum(weights * cut) for cut in (lon > 0, lon < 0, lat > 0, lat < 0)])

        # the field turns little around the middle of a run; the zenith run is left out, where it turns a lot
        if run.get_pointing_altaz(obstime).alt.deg > 80:
            continue
        got += halves(geom.to_image().get_coord().skycoord[near], background)
        drawn += halves(events.radec, np.ones(len(events.table)))
    for a, b in ((0, 1), (2, 3)):
        asymmetry, want = (n[a] / n[b] - 1 for n in (got, drawn))
        error = 2 / np.sqrt(drawn[a])
        assert abs(asymmetry - want) < 3 * error
        assert np.sign(asymmetry) == np.sign(want)
    # right is brighter below 1 TeV, the lower half everywhere
    assert got[2] < 0.985 * got[3]
    if energy[1] < 1:
        assert got[0] > 1.02 * got[1]


@pytest.mark.parametrize("kind", KINDS)
def test_trap_a_region_excluded_in_all_runs(kind):
    """A pixel of the camera that no run sees: finite, flagged, and within 3 sigma of the truth."""
    store = plain_store()
    runs = observations(store)
    # OFF runs: a circle that stands still in RA/Dec around a fixed place of each camera
    regions = [
        CircleSkyRegion(
            run.pointing.fixed_icrs.directional_offset_by(30 * u.deg, 1.0 * u.deg),
            (0.35 if kind == "grid" else 0.5) * u.deg,
        )
        for run in runs
    ]
    config = options(kind, "none", fov_alignment="radec")
    if kind == "radial":  # a ring is never covered by a circle off its centre
        regions = [CircleSkyRegion(run.pointing.fixed_icrs, 0.5 * u.deg) for run in runs]
    maker = AcceptanceBackgroundMaker(config, exclusion=regions).fit(runs)
    filled = maker.model.rate_model.filled
    assert 1 <= filled.sum() < 10
    got = expected = 0
    for run, region in zip(runs, regions, strict=True):
        geom = sky_geom(region.center, edges=(0.2, 0.5, 1, 10), width=0.6, binsz=0.02)
        inside = geom.to_image().separation(region.center).deg < 0.25
        background = maker.make_background(geom, run).data
        assert np.all(np.isfinite(background)) and np.all(background > 0)
        got = got + background[:, inside].sum(1)
        # the truth there: of the camera at the middle of the run (ALTAZ), nearly all offset
        origin = run.get_pointing_altaz(run.tmid)
        frame = FoVAltAzFrame(origin=origin, location=origin.location, obstime=run.tmid)
        place = SkyCoord(region.center).transform_to(frame)
        lon, lat = place.fov_lon.wrap_at("180d").deg, place.fov_lat.deg
        pixels = np.linspace(-0.25, 0.25, 11)
        truth = store.expected_counts(run.obs_id, (0.2, 0.5, 1, 10), lon + pixels, lat + pixels)
        middle = 0.5 * (pixels[1:] + pixels[:-1])
        expected = expected + truth[:, np.hypot(*np.meshgrid(middle, middle)) < 0.25].sum(1)
    assert np.all(np.abs(got - expected) < 3 * np.sqrt(expected) + 0.03 * expected)


@pytest.mark.parametrize("kind", KINDS)
def test_trap_an_empty_penultimate_energy_bin(kind):
    """Bins that end at an event beyond a gap in energy: nothing explodes, and the total stays."""
    runs = observations(plain_store(), plain_store().off_obs_ids[:2])
    runs = [altered(run, keep=run.events.offset.deg < 2.4) for run in runs]
    energy = np.concatenate([run.events.energy.to_value("TeV") for run in runs])
    last = np.sort(energy)[-2:]
    assert last[0] < 0.97 * last[1]
    # the gap between the two highest events is a bin of its own
    gap = np.geomspace(last[0] * 1.005, last[1] * 0.995, 2)
    edges = [*np.geomspace(0.15, 0.9 * last[0], 12), gap[0], gap[1], last[1] * 1.01]
    config = options(kind, "none", fit_energy=[f"{e} TeV" for e in edges])
    maker = AcceptanceBackgroundMaker(config).fit(runs)
    model = maker.model.rate_model
    in_energy = model.counts.sum(1)
    assert in_energy[-2] == 0 and in_energy[-1] >= 1
    fov = model.fov
    expected = mean_in_bins(model, fov, np.array(edges), 3)
    expected = (expected * fov.solid_angle * model.exposure).sum(1)
    assert np.all(np.isfinite(expected))
    assert expected.sum() == pytest.approx(in_energy.sum(), abs=np.sqrt(in_energy.sum()))
    assert expected[-2] < 30 and expected[-1] < 30
