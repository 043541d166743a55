"""Counts and exposure of a run, against gammapy frames event by event and dense points in short steps of time."""

import os
import pickle
import tracemalloc
from dataclasses import replace
from functools import cache

import astropy.units as u
import numpy as np
import pytest
from astropy.coordinates import AltAz, SkyCoord
from astropy.io import fits
from astropy.table import vstack
from gammapy.data import DataStore, EventList, Observation
from gammapy.irf import FoVAlignment
from gammapy.maps import WcsGeom
from helpers import (
    HESS,
    START,
    drifting,
    event_table,
    make_observation,
    pointing_at,
    simulate,
    tracking,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from regions import CircleSkyRegion, RectangleSkyRegion

from gammapy_accmaker.camera.bins import CountsBins, FovBins
from gammapy_accmaker.data import counts
from gammapy_accmaker.data.counts import reduce_observation
from gammapy_accmaker.data.exclusion import Exclusion
from gammapy_accmaker.data.reduced_run import handed_over, in_own_order
from gammapy_accmaker.errors import InputError, ObservationError
from gammapy_accmaker.models.source_terms import CountsPatch

ENERGY = np.logspace(-0.5, 1.5, 7)
GRID, RINGS = FovBins.grid(2.0, 8), FovBins.rings(2.0, 5)
FOV = {"grid": GRID, "rings": RINGS}
ALIGNMENT = {"altaz": FoVAlignment.ALTAZ, "radec": FoVAlignment.RADEC}
HIGH = tracking(20, 80)  # the field turns by 16 deg in a run


def to_sky(observation, fov_lon, fov_lat, time, alignment):
    """ICRS positions of field-of-view positions (deg) at one time, by gammapy's frames."""
    frame = observation.get_fov_frame(time, ALIGNMENT[alignment])
    coord = SkyCoord(fov_lon=fov_lon * u.deg, fov_lat=fov_lat * u.deg, frame=frame)
    if alignment == "radec":
        return coord.icrs
    return coord.transform_to(AltAz(obstime=time, location=observation.observatory_earth_location)).icrs


def region_at(observation, fov_lon, fov_lat, radius, seconds=0.0, alignment="altaz"):
    """Circle of a radius (deg) that lies at a field-of-view position at some time."""
    center = to_sky(observation, fov_lon, fov_lat, START + seconds * u.s, alignment)
    return CircleSkyRegion(SkyCoord(center.ra, center.dec), radius * u.deg)


def brute_force_exposure(observation, fov, alignment, excluded, step=10.0, n=12):
    """Unexcluded time in s of each bin: dense points in each bin, carried to the sky by gammapy's frames every step."""
    fraction = (np.arange(n) + 0.5) / n
    if fov.is_radial:
        cos = np.cos(np.radians(fov.edges[0]))
        theta = np.arccos(cos[:-1, None] + np.diff(cos)[:, None] * fraction)[:, :, None]
        phi = 2 * np.pi * np.arange(8 * n) / (8 * n)
        lon = np.arctan2(np.sin(theta) * np.cos(phi), np.cos(theta))
        lat = np.arcsin(np.sin(theta) * np.sin(phi))
        lon, lat = (np.degrees(a).reshape(fov.size, -1) for a in (lon, lat))
    else:
        lon, lat = (e[:-1, None] + np.diff(e)[:, None] * fraction for e in fov.edges)
        shape = (*fov.shape, n, n)
        lon = np.broadcast_to(lon[:, None, :, None], shape).reshape(fov.size, -1)
        lat = np.broadcast_to(lat[None, :, None, :], shape).reshape(fov.size, -1)
    exposure = np.zeros(fov.size)
    gti = observation.gti
    for start, length in zip(gti.time_start, gti.time_delta, strict=True):
        nstep = int(np.ceil(length.to_value("s") / step))
        for time in start + length * (np.arange(nstep) + 0.5) / nstep:
            positions = to_sky(observation, lon.ravel(), lat.ravel(), time, alignment)
            unexcluded = ~excluded(SkyCoord(positions.ra, positions.dec)).reshape(lon.shape)
            exposure += unexcluded.mean(1) * length.to_value("s") / nstep
    return exposure


def in_circles(regions):
    return lambda positions: np.any([positions.separation(r.center) < r.radius for r in regions], axis=0)


def by_hand(observation, bins, excluded=None):
    """Counts, shape (energy, bin), by gammapy's frames at the time of each event and plain histograms."""
    table = observation.events.table
    good = np.isfinite(table["ENERGY"].value)
    positions, times = SkyCoord(table["RA"], table["DEC"])[good], table["TIME"][good]
    frame = observation.get_fov_frame(times, ALIGNMENT[bins.alignment])
    if bins.alignment == "altaz":
        fov = positions.transform_to(AltAz(obstime=times, location=observation.observatory_earth_location))
        fov = fov.transform_to(frame)
    else:
        fov = SkyCoord(positions.ra, positions.dec).transform_to(frame)
    lon, lat = fov.fov_lon.wrap_at("180d").deg, fov.fov_lat.deg
    keep = np.ones(len(lon), dtype=bool) if excluded is None else ~excluded(positions)
    energy = table["ENERGY"].quantity.to_value("TeV")[good]
    if bins.fov.is_radial:
        separation = positions.separation(SkyCoord(observation.get_pointing_icrs(times).data)).deg
        sample = np.stack([energy, separation], axis=1)
    else:
        sample = np.stack([energy, lon, lat], axis=1)
    histogram, _ = np.histogramdd(sample[keep], bins=[bins.energy_edges, *bins.fov.edges])
    return histogram.reshape(len(bins.energy_edges) - 1, -1)


def total(reduced):
    return reduced.counts.sum() + sum(reduced.dropped.values())


@pytest.mark.parametrize("alignment", ["altaz", "radec"])
@pytest.mark.parametrize("name", FOV)
@pytest.mark.parametrize("pointing", [HIGH, tracking(250, 40), drifting(100, 60)], ids=["high", "low", "drift"])
def test_counts_are_those_of_a_plain_histogram(pointing, name, alignment):
    observation = simulate(pointing, 1500)
    bins = CountsBins(ENERGY, FOV[name], alignment)
    reduced = reduce_observation(observation, bins)
    expected = by_hand(observation, bins)
    assert reduced.counts.shape == expected.shape
    assert expected.sum() > 200
    # an event within 5 arcsec of an edge may change its bin
    assert np.abs(reduced.counts.toarray() - expected).sum() <= 4
    assert total(reduced) == 1500


@pytest.mark.parametrize("alignment", ["altaz", "radec"])
def test_excluded_counts_are_those_of_a_plain_histogram(alignment):
    observation = simulate(HIGH, 2000)
    circles = [region_at(observation, 1.0, 0.4, 0.7), region_at(observation, -1.5, -1.0, 0.4)]
    bins = CountsBins(ENERGY, GRID, alignment)
    reduced = reduce_observation(observation, bins, Exclusion(circles))
    expected = by_hand(observation, bins, in_circles(circles))
    expected[:, reduced.exposure == 0] = 0
    assert np.abs(reduced.counts.toarray() - expected).sum() <= 4
    positions = SkyCoord(observation.events.table["RA"], observation.events.table["DEC"])
    assert reduced.dropped["excluded"] == in_circles(circles)(positions).sum() > 50
    assert total(reduced) == 2000


@pytest.mark.parametrize("name", FOV)
def test_exposure_is_the_ontime_and_not_the_livetime(name):
    reduced = reduce_observation(simulate(HIGH, 10), CountsBins(ENERGY, FOV[name]))
    assert_allclose(reduced.exposure, 1700, rtol=1e-9)
    assert reduced.ontime == pytest.approx(1700)
    assert reduced.livetime == pytest.approx(1700 * 0.94)


@pytest.mark.parametrize("alignment", ["altaz", "radec"])
@pytest.mark.parametrize("name", FOV)
@pytest.mark.parametrize("case", ["high", "gap", "drift"])
def test_exposure_of_a_turning_exclusion(case, name, alignment):
    pointing, intervals = {
        "high": (tracking(20, 86), [(0, 400)]),
        "gap": (HIGH, [(0, 100), (1500, 1700)]),
        "drift": (drifting(100, 60), [(0, 300)]),
    }[case]
    observation = make_observation(pointing, intervals)
    # one well inside, one that crosses the rim, one outside that may come in
    circles = [
        region_at(observation, 0.8, 0.3, 0.55),
        region_at(observation, -1.7, 1.6, 0.4),
        region_at(observation, 0.0, -2.4, 0.5),
    ]
    reduced = reduce_observation(observation, CountsBins(ENERGY, FOV[name], alignment), Exclusion(circles))
    expected = brute_force_exposure(observation, FOV[name], alignment, in_circles(circles))
    fraction, expected = reduced.exposure / reduced.ontime, expected / reduced.ontime
    assert expected.min() < 0.9
    clear = expected > 0.05  # what is seen less is left out
    # 5 x 5 points stand for a bin
    assert_allclose(fraction[clear], expected[clear], atol=0.05)
    assert np.abs(fraction - expected)[clear].mean() < 0.005
    assert (fraction - expected)[clear].mean() == pytest.approx(0, abs=0.002)


def test_exclusion_that_turns_from_outside_into_a_corner_of_the_grid():
    observation = make_observation(tracking(0, 88, after=450), [(0, 900)])
    # outside of the square, but inside of the circle through its corners
    circles = [region_at(observation, 2.55, 0.0, 0.4)]
    expected = brute_force_exposure(observation, GRID, "altaz", in_circles(circles), step=15, n=8)
    assert expected.min() < 850
    reduced = reduce_observation(observation, CountsBins(ENERGY, GRID), Exclusion(circles), time_step=20)
    assert_allclose(reduced.exposure, expected, atol=0.03 * 900)


@pytest.mark.parametrize("alignment", ["altaz", "radec"])
@pytest.mark.parametrize("name", FOV)
def test_drift_run_meets_an_exclusion_late(name, alignment):
    observation = simulate(drifting(180, 70), 1500, radius=2.5)
    circles = [region_at(observation, 0.5, 0.3, 0.6, seconds=1500)]
    assert circles[0].center.separation(pointing_at(observation.pointing, np.zeros(1)))[0].deg > 5
    bins = CountsBins(ENERGY, FOV[name], alignment)
    reduced = reduce_observation(observation, bins, Exclusion(circles), time_step=20)
    expected = brute_force_exposure(observation, FOV[name], alignment, in_circles(circles), step=40, n=6)
    assert expected.min() < 1600
    assert_allclose(reduced.exposure, expected, atol=0.02 * 1700)
    assert np.abs(reduced.counts.toarray() - by_hand(observation, bins, in_circles(circles))).sum() <= 4


def test_bins_left_alone_are_not_touched(monkeypatch):
    """Only bins that an exclusion can enter are looked at in every step: the same as looking at all."""
    rng = np.random.default_rng(8)
    observation = make_observation(tracking(0, 87, after=450), [(0, 900)])
    for radius in rng.uniform(0.1, 0.6, 12):
        exclusion = Exclusion(region_at(observation, *rng.uniform(-2.6, 2.6, 2), radius))
        fast = reduce_observation(observation, CountsBins(ENERGY, GRID), exclusion)
        with monkeypatch.context() as patch:
            patch.setattr(counts, "_touched_bins", lambda fov, *_: np.arange(fov.size))
            slow = reduce_observation(observation, CountsBins(ENERGY, GRID), exclusion)
        assert_array_equal(fast.exposure, slow.exposure)


def test_the_turn_of_a_large_exclusion_takes_little_memory():
    """Half of the 40 000 points of a field, at a hundred nodes: all at once they would take over 100 MB."""
    fov, turn = FovBins.grid(2.0, 40), np.linspace(0, np.pi / 2, 160)
    zero, one = np.zeros(160), np.ones(160)
    rows = [one, zero, zero], [zero, np.cos(turn), np.sin(turn)], [zero, -np.sin(turn), np.cos(turn)]
    matrices = np.moveaxis(np.array(rows), 2, 0)
    half = Exclusion(RectangleSkyRegion(SkyCoord(5, 0, unit="deg"), 10 * u.deg, 10 * u.deg))
    camera = fov.subpoint_vectors(5)
    tracemalloc.start()
    touched = counts._touched_bins(fov, camera, matrices, half)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(touched) > 0.7 * fov.size and peak < 60e6


def test_small_exclusion_takes_its_area_on_average():
    observation = make_observation(HIGH)
    radius, lost = 0.12, []
    for i, lon in enumerate(np.linspace(0.2, 0.7, 25)):
        exclusion = Exclusion(region_at(observation, lon, 0.013 * i, radius, alignment="radec"))
        exposure = reduce_observation(observation, CountsBins(ENERGY, GRID, "radec"), exclusion).exposure
        lost.append(((1 - exposure / 1700) * GRID.solid_angle).sum())
    area = 2 * np.pi * (1 - np.cos(np.radians(radius)))
    assert np.mean(lost) == pytest.approx(area, rel=0.05)


@pytest.mark.parametrize("alignment", ["altaz", "radec"])
@pytest.mark.parametrize("name", FOV)
def test_fully_excluded_bin_has_no_exposure_and_no_counts(name, alignment):
    observation = simulate(HIGH, 3000, radius=2)
    exclusion = Exclusion(CircleSkyRegion(HIGH.fixed_icrs, 0.75 * u.deg))
    reduced = reduce_observation(observation, CountsBins(ENERGY, FOV[name], alignment), exclusion)
    if name == "grid":
        centre = np.hypot(GRID.fov_lon, GRID.fov_lat) < 0.5
    else:
        centre = RINGS.fov_lon < 0.4
    assert centre.sum() in (1, 4)
    assert (reduced.exposure[centre] == 0).all()
    assert (reduced.exposure[~centre] > 0).all()
    assert reduced.counts[:, centre].sum() == 0
    assert reduced.counts.sum() > 500
    assert total(reduced) == 3000


def test_bin_that_is_hardly_seen_is_left_out_and_its_events_are_counted_as_dropped():
    observation = simulate(HIGH, 20_000, radius=1.0)
    # all of the two inner rings but 1 % of the second
    exclusion = Exclusion(CircleSkyRegion(HIGH.fixed_icrs, 0.797 * u.deg))
    reduced = reduce_observation(observation, CountsBins([0.01, 1000], RINGS), exclusion)
    assert (reduced.exposure[:2] == 0).all()
    assert reduced.counts[:, :2].sum() == 0
    assert reduced.dropped["unexposed bin"] > 0
    assert total(reduced) == 20_000


def test_exclusion_of_everything():
    observation = simulate(HIGH, 100)
    exclusion = Exclusion(CircleSkyRegion(HIGH.fixed_icrs, 10 * u.deg))
    reduced = reduce_observation(observation, CountsBins(ENERGY, GRID), exclusion)
    assert (reduced.exposure == 0).all()
    assert reduced.counts.nnz == 0
    assert reduced.dropped["excluded"] == 100


def test_far_exclusion_changes_nothing():
    observation = simulate(HIGH, 500)
    bins = CountsBins(ENERGY, GRID)
    far = Exclusion(CircleSkyRegion(HIGH.fixed_icrs.directional_offset_by(50 * u.deg, 8 * u.deg), 1 * u.deg))
    with_far, without = reduce_observation(observation, bins, far), reduce_observation(observation, bins)
    assert_array_equal(with_far.exposure, without.exposure)
    assert_array_equal(with_far.counts.toarray(), without.counts.toarray())
    assert total(with_far) == total(without) == 500


def test_mask_map_and_region_give_the_same():
    observation = simulate(HIGH, 2000)
    region = RectangleSkyRegion(HIGH.fixed_icrs.directional_offset_by(50 * u.deg, 1 * u.deg), 1 * u.deg, 2 * u.deg)
    geom = WcsGeom.create(skydir=HIGH.fixed_icrs, binsz=0.01, width=8, proj="TAN", frame="icrs")
    bins = CountsBins(ENERGY, GRID)
    by_region = reduce_observation(observation, bins, Exclusion(region))
    by_mask = reduce_observation(observation, bins, Exclusion(~geom.region_mask([region])))
    assert_allclose(by_mask.exposure, by_region.exposure, atol=0.02 * 1700)
    assert abs(by_mask.dropped["excluded"] - by_region.dropped["excluded"]) < 5


def test_time_step_none_is_the_state_at_half_of_the_ontime():
    observation = make_observation(HIGH, [(0, 200), (1500, 1900)])
    exclusion = Exclusion(region_at(observation, 1.2, 0.3, 0.5, seconds=1600))
    bins = CountsBins(ENERGY, GRID)
    reduced = reduce_observation(observation, bins, exclusion, time_step=None)
    snapshot = reduce_observation(make_observation(HIGH, [(1599.9, 1600.1)]), bins, exclusion)
    assert_allclose(reduced.exposure / 600, snapshot.exposure / 0.2, atol=0.021)


def test_events_in_a_gap_are_dropped_and_counted():
    seconds = np.array([5.0, 195.0, 200.5, 202.0, 700.0, 1200.0, 1898.0, 1900.8, 1905.0])
    table = event_table(seconds, pointing_at(HIGH, seconds), np.ones(len(seconds)))
    observation = make_observation(HIGH, [(1500, 1900), (0, 200)], table)
    reduced = reduce_observation(observation, CountsBins(ENERGY, GRID))
    assert reduced.ontime == pytest.approx(600)
    # also those less than 1 s outside, as H.E.S.S. DR1 has them, which rounds its intervals: no exposure, no events
    assert reduced.counts.sum() == 3
    assert reduced.dropped["outside GTI"] == 6
    assert total(reduced) == len(seconds)


def test_mean_pointing_is_over_the_good_time():
    observation = make_observation(tracking(0, 70, after=900), [(0, 300), (1200, 1800)])
    reduced = reduce_observation(observation, CountsBins(ENERGY, GRID))
    seconds = np.concatenate([np.arange(0.5, 300), np.arange(1200.5, 1800)])
    altaz = observation.get_pointing_altaz(START + seconds * u.s)
    assert reduced.cos_zenith == pytest.approx(np.sin(altaz.alt.rad).mean(), abs=1e-5)
    azimuth = altaz.az.wrap_at("180d").deg
    assert azimuth.min() < -1
    assert azimuth.max() > 1
    assert (reduced.azimuth + 180) % 360 - 180 == pytest.approx(azimuth.mean(), abs=0.02)
    assert 0 <= reduced.azimuth < 360
    assert reduced.mjd == pytest.approx((START + seconds.mean() * u.s).mjd, abs=1e-6)
    # the same where exclusions take one step
    one_step = reduce_observation(observation, CountsBins(ENERGY, GRID), time_step=None)
    assert one_step.cos_zenith == reduced.cos_zenith
    assert one_step.mjd == reduced.mjd


def test_without_location_radec_works_and_altaz_says_what_to_set():
    observation = simulate(HIGH, 500, location=None, obs_id=12)
    reduced = reduce_observation(observation, CountsBins(ENERGY, GRID, "radec"))
    expected = reduce_observation(simulate(HIGH, 500), CountsBins(ENERGY, GRID, "radec"))
    assert_array_equal(reduced.counts.toarray(), expected.counts.toarray())
    assert np.isnan(reduced.cos_zenith)
    assert np.isnan(reduced.azimuth)
    with pytest.raises(ObservationError, match=r"12.*observatory_location"):
        reduce_observation(observation, CountsBins(ENERGY, GRID))
    reduced = reduce_observation(observation, CountsBins(ENERGY, GRID), location=HESS)
    assert reduced.cos_zenith == pytest.approx(np.sin(np.radians(80)), abs=0.02)


def test_what_is_not_finite_is_dropped_and_counted():
    table = simulate(HIGH, 500).events.table
    table["ENERGY"][:7] = np.nan
    table["RA"][5:12] = np.nan
    table["DEC"][20] = np.inf
    table["ENERGY"][30:32] = [0.0, -1.0]
    reduced = reduce_observation(make_observation(HIGH, table=table), CountsBins(ENERGY, GRID))
    table = table[[*range(12, 20), *range(21, 30), *range(32, 500)]]
    kept = reduce_observation(make_observation(HIGH, table=table), CountsBins(ENERGY, GRID))
    assert reduced.dropped["not finite"] == 15
    assert_array_equal(reduced.counts.toarray(), kept.counts.toarray())
    assert total(reduced) == 500


def write_dl3(path, observation):
    """A DL3 file of the events and good time intervals."""
    reference = {"MJDREFI": 51544, "MJDREFF": 0.5, "TIMEUNIT": "s", "TIMESYS": "tt", "TIMEREF": "local"}
    pointing = observation.pointing.fixed_icrs
    table = observation.events.table
    table.meta.update(reference, OBS_ID=observation.obs_id, RA_PNT=pointing.ra.deg, DEC_PNT=pointing.dec.deg)
    table.meta.update(GEOLON=HESS.lon.deg, GEOLAT=HESS.lat.deg, ALTITUDE=HESS.height.to_value("m"), DEADC=0.94)
    table.meta.update(TSTART=0.0, TSTOP=1.0)
    hdu = EventList(table).to_table_hdu()
    fits.HDUList([fits.PrimaryHDU(), hdu, observation.gti.to_table_hdu()]).writeto(path, overwrite=True)


def test_file_with_nan_energies_positions_and_times(tmp_path):
    observation = simulate(HIGH, 300)
    bins = CountsBins(ENERGY, GRID)
    path = tmp_path / "run.fits"
    write_dl3(path, observation)
    expected = reduce_observation(observation, bins)
    reduced = reduce_observation(Observation.read(path), bins)
    assert_array_equal(reduced.counts.toarray(), expected.counts.toarray())
    assert reduced.livetime == pytest.approx(expected.livetime)
    assert reduced.covariates == expected.covariates == {"MUONEFF": 0.8}
    with fits.open(path, mode="update") as hdus:
        hdus["EVENTS"].data["ENERGY"][:5] = np.nan
        hdus["EVENTS"].data["RA"][3:8] = np.nan
        hdus["EVENTS"].data["TIME"][10:12] = np.nan
    table = observation.events.table[[8, 9, *range(12, 300)]]
    reduced = reduce_observation(Observation.read(path), bins)
    expected = reduce_observation(make_observation(HIGH, table=table), bins)
    assert reduced.dropped["not finite"] == 10
    assert_array_equal(reduced.counts.toarray(), expected.counts.toarray())


@pytest.mark.parametrize(("column", "unit"), [("ENERGY", "s"), ("RA", "TeV"), ("DEC", "m"), ("ENERGY", None)])
def test_wrong_unit_of_a_column_names_the_run(tmp_path, column, unit):
    observation = simulate(HIGH, 20, obs_id=31)
    observation.events.table[column].unit = unit
    with pytest.raises(ObservationError, match=r"31.*events cannot be used.*ENERGY"):
        reduce_observation(observation, CountsBins(ENERGY, GRID))


def test_lazily_read_file_with_a_wrong_unit_names_the_run(tmp_path):
    observation = make_observation(HIGH, obs_id=31)

    class Lazy(Observation):
        @property
        def events(self):
            table = event_table([1.0], pointing_at(HIGH, np.ones(1)), [1.0])
            table["ENERGY"].unit = "s"
            return EventList(table)

    lazy = Lazy(obs_id=31, gti=observation.gti, pointing=HIGH, location=HESS, meta=observation.meta)
    with pytest.raises(ObservationError, match=r"31.*ENERGY"):
        reduce_observation(lazy, CountsBins(ENERGY, GRID))


def test_other_units_are_converted():
    observation = simulate(HIGH, 500)
    table = observation.events.table.copy()
    for name, unit in (("ENERGY", "GeV"), ("RA", "rad"), ("DEC", "arcmin")):
        table[name] = table[name].quantity.to(unit)
    converted = reduce_observation(make_observation(HIGH, table=table), CountsBins(ENERGY, GRID))
    expected = reduce_observation(observation, CountsBins(ENERGY, GRID))
    assert_array_equal(converted.counts.toarray(), expected.counts.toarray())


def test_no_event_list_or_none_that_can_be_used():
    observation = make_observation(HIGH, obs_id=17)
    without = Observation(obs_id=17, gti=observation.gti, pointing=HIGH, location=HESS, meta=observation.meta)
    with pytest.raises(ObservationError, match=r"17.*no event list"):
        reduce_observation(without, CountsBins(ENERGY, GRID))
    table = observation.events.table
    for bad in (table[:0], event_table([5000.0], pointing_at(HIGH, np.zeros(1)), [1.0])):
        with pytest.raises(ObservationError, match=f"17.*none of its {len(bad)} events"):
            reduce_observation(make_observation(HIGH, table=bad, obs_id=17), CountsBins(ENERGY, GRID))


def test_empty_good_time_names_the_run():
    table = make_observation(HIGH).events.table
    with pytest.raises(ObservationError, match=r"99.*good time"):
        reduce_observation(make_observation(HIGH, [], table, obs_id=99), CountsBins(ENERGY, GRID))


def test_events_of_no_energy_bin_leave_empty_counts_with_exposure():
    reduced = reduce_observation(simulate(HIGH, 50), CountsBins([500.0, 900.0], GRID))
    assert reduced.counts.nnz == 0
    assert reduced.dropped["out of range"] == 50
    assert (reduced.exposure > 0).all()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (([1.0], GRID), "energy edges"),
        (([2.0, 1.0], GRID), "energy edges"),
        ((ENERGY, GRID, "galactic"), "fov_alignment"),
    ],
)
def test_bad_bins_name_the_argument(arguments, text):
    with pytest.raises(InputError, match=text):
        CountsBins(*arguments)


def test_inputs_are_not_changed():
    observation = simulate(HIGH, 300)
    table, gti = observation.events.table.copy(), observation.gti.table.copy()
    exclusion = Exclusion([region_at(observation, 1, 0, 0.5), CircleSkyRegion(SkyCoord(0, 0, unit="deg"), 1 * u.deg)])
    reduce_observation(observation, CountsBins(ENERGY, GRID), exclusion)
    assert len(exclusion) == 2
    for before, after in ((table, observation.events.table), (gti, observation.gti.table)):
        assert before.colnames == after.colnames
        assert before.meta == after.meta
        for name in before.colnames:
            assert (before[name] == after[name]).all()


def test_run_counts_pickle():
    reduced = reduce_observation(simulate(HIGH, 300), CountsBins(ENERGY, GRID))
    restored = pickle.loads(pickle.dumps(reduced))
    assert_array_equal(restored.counts.toarray(), reduced.counts.toarray())
    assert restored.dropped == reduced.dropped


def test_what_is_left_of_runs_that_are_handed_over():
    bins, rng = CountsBins(ENERGY, GRID), np.random.default_rng(2)
    before = []
    for k, seed in enumerate((5, 3, 4)):
        run = reduce_observation(simulate(tracking(250, 40), 300 + k, seed=seed), bins, max_zenith_change=0.02)
        patches = [CountsPatch.of(rng.exponential(1, run.counts.shape)) for _ in range(2)]
        slices = tuple(replace(part, signal=patches[0], sources=(patches[1],)) for part in run.slices)
        before.append(replace(run, slices=slices))
    runs = list(before)
    for k, run in enumerate(handed_over(runs)):
        assert run is before[k] and runs[k + 1 :] == before[k + 1 :]
    for run, own in zip(runs, before, strict=True):
        assert len(run.slices) == len(own.slices) > 1 and run.sky is own.sky
        assert_array_equal(run.counts.sum(axis=1), own.counts.sum(axis=1))
        for part, whole in zip(run.slices, own.slices, strict=True):
            assert part.exposure.tolist() == [whole.exposure.sum()] and part.counts.shape[1] == 1
            for patch, at_all in ((part.signal, whole.signal), (part.sources[0], whole.sources[0])):
                assert patch.size == 1
                assert_array_equal(patch.by_energy(), at_all.by_energy())
    assert [run.key for run in in_own_order(runs)] == [run.key for run in in_own_order(before)]


@cache
def long_run():
    return simulate(HIGH, 1500, seed=11, radius=2.5)


def circles():
    return [region_at(long_run(), 1.0, 0.5, 0.6), region_at(long_run(), -1.4, -0.9, 0.4)]


def test_each_slice_has_the_events_of_its_time():
    run = simulate(tracking(250, 40), 4000, seed=3)
    bins = CountsBins(ENERGY, FOV["grid"])
    slices = reduce_observation(run, bins, max_zenith_change=0.02).slices
    assert len(slices) > 3 and sum(s.ontime for s in slices) == pytest.approx(1700)
    cos_zenith = np.array([s.cos_zenith for s in slices])
    assert np.abs(np.diff(cos_zenith)).max() <= 0.02 and np.ptp(cos_zenith) > 0.05
    edges = START + np.cumsum([0, *(s.ontime for s in slices)]) * u.s
    for part, start, stop in zip(slices, edges[:-1], edges[1:], strict=True):
        alone = reduce_observation(run.select_time(type(START)([start, stop])), bins)
        assert abs(part.counts.sum() - alone.counts.sum()) <= 1  # an event at a cut
        assert part.cos_zenith == pytest.approx(alone.cos_zenith, abs=1e-4) and part.counts.sum() > 100


@given(st.floats(0.05, 0.95), st.sampled_from(["altaz", "radec"]), st.sampled_from(sorted(FOV)), st.booleans())
@settings(deadline=None, max_examples=15)
def test_two_parts_of_a_run_add_up(fraction, alignment, name, excluded):
    bins = CountsBins(ENERGY, FOV[name], alignment)
    exclusion = Exclusion(circles()) if excluded else None
    stop = START + 1700 * u.s
    split = START + fraction * 1700 * u.s
    # a time interval is [start, stop)
    parts = [long_run().select_time(type(START)([a, b])) for a, b in ((START, split), (split, stop + 1 * u.s))]
    first, second = (reduce_observation(part, bins, exclusion, time_step=30) for part in parts)
    whole = reduce_observation(long_run(), bins, exclusion, time_step=30)
    # a bin that is seen for less than 2 % of a part is left out of that part
    seen = np.array([reduced.exposure > 0 for reduced in (first, second, whole)])
    same = seen.all(0) | ~seen.any(0)
    assert same.mean() > 0.8
    assert_array_equal((first.counts + second.counts).toarray()[:, same], whole.counts.toarray()[:, same])
    assert first.ontime + second.ontime == pytest.approx(whole.ontime)
    assert first.livetime + second.livetime == pytest.approx(whole.livetime)
    tolerance = np.where(same, 0.01, 0.03) * 1700 if excluded and alignment == "altaz" else 1e-6  # by other nodes
    assert (np.abs(first.exposure + second.exposure - whole.exposure) <= tolerance).all()
    mean = (first.cos_zenith * first.ontime + second.cos_zenith * second.ontime) / whole.ontime
    assert mean == pytest.approx(whole.cos_zenith, abs=1e-5)


@given(st.integers(1, 4), st.integers(0, 1000))
@settings(deadline=None, max_examples=10)
def test_repeated_and_shuffled_events_multiply_the_counts(times, seed):
    bins = CountsBins(ENERGY, GRID)
    table = vstack([long_run().events.table] * times)[np.random.default_rng(seed).permutation(1500 * times)]
    once = reduce_observation(long_run(), bins)
    more = reduce_observation(make_observation(HIGH, table=table), bins)
    assert_array_equal(more.counts.toarray(), times * once.counts.toarray())
    assert_array_equal(more.exposure, once.exposure)


def test_rings_and_grid_see_the_same_events():
    fine = FovBins.grid(2.0, 200)
    rings = reduce_observation(long_run(), CountsBins(ENERGY, RINGS))
    grid = reduce_observation(long_run(), CountsBins(ENERGY, fine))
    ring_of_cell = RINGS.index(fine.fov_lon, fine.fov_lat)
    summed = np.bincount(ring_of_cell + 1, weights=grid.counts.toarray().sum(0), minlength=6)[1:]
    assert_allclose(summed, rings.counts.toarray().sum(0), atol=12)


def test_uniform_events_give_flat_rates():
    """Counts / exposure / solid angle come back to the rate put in, also where an exclusion turns through the bins."""
    size, radius = 200_000, 3.5
    observation = simulate(HIGH, size, radius=radius, seed=2)
    rate = size / 1700 / (2 * np.pi * (1 - np.cos(np.radians(radius))))
    reduced = reduce_observation(observation, CountsBins([0.01, 1000], GRID), Exclusion(circles()))
    expected = rate * reduced.exposure * GRID.solid_angle
    seen = reduced.exposure > 0
    observed = reduced.counts.toarray()[0]
    touched = reduced.exposure < 1699
    assert touched.sum() > 10
    assert (observed[~seen] == 0).all()
    pulls = (observed - expected)[seen] / np.sqrt(expected[seen])
    assert abs(pulls.mean()) < 4 / np.sqrt(len(pulls))
    assert np.std(pulls) == pytest.approx(1, abs=0.35)
    assert observed[touched].sum() == pytest.approx(expected[touched].sum(), abs=4 * np.sqrt(expected[touched].sum()))


@pytest.mark.gammapy_data
@pytest.mark.parametrize("alignment", ["altaz", "radec"])
def test_hess_dr1_run_against_a_plain_histogram(alignment):
    store = DataStore.from_dir(os.path.join(os.environ["GAMMAPY_DATA"], "hess-dl3-dr1"))
    observation = store.get_observations([20136], required_irf=[])[0]
    bins = CountsBins(ENERGY, GRID, alignment)
    center = observation.pointing.fixed_icrs.directional_offset_by(90 * u.deg, 0.5 * u.deg)
    circle = CircleSkyRegion(center, 0.4 * u.deg)
    reduced = reduce_observation(observation, bins, Exclusion(circle))
    expected = by_hand(observation, bins, in_circles([circle]))
    expected[:, reduced.exposure == 0] = 0
    assert expected.sum() > 1000
    # 3 events lie after the stop of the good time, which DR1 rounds down to a second; others lie on edges of the bins
    assert np.abs(reduced.counts.toarray() - expected).sum() <= 3 + 6
    assert total(reduced) == len(observation.events.table)
    assert reduced.dropped["outside GTI"] == 3
    assert reduced.ontime == pytest.approx(observation.observation_time_duration.to_value("s"))
    assert 0.8 < reduced.livetime / reduced.ontime < 0.98
    assert reduced.exposure.max() == pytest.approx(reduced.ontime)
    exposure = brute_force_exposure(observation, GRID, alignment, in_circles([circle]), step=300, n=8)
    assert_allclose(reduced.exposure, exposure, atol=0.04 * reduced.ontime)


@pytest.mark.parametrize("stop", [86401.0, 1e12])
def test_times_beyond_a_day_are_refused(stop):
    """Damaged times would make a track of as many nodes as memory holds."""
    with pytest.raises(ObservationError, match="observation 7.*days.*at most 1 day"):
        reduce_observation(make_observation(HIGH, [(0, stop)]), CountsBins(ENERGY, GRID))
