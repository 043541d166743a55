"""Field-of-view coordinates and time nodes, against astropy frames at the time of each event."""

import threading
import time
from dataclasses import replace

import astropy.units as u
import erfa
import numpy as np
import pytest
from astropy.coordinates import AltAz, SkyCoord
from astropy.utils import iers
from gammapy.data import FixedPointingInfo
from gammapy.irf import FoVAlignment
from helpers import HESS, START, drifting, make_observation, pointing_at, random_in_cap, simulate, tracking, xyz_of
from hypothesis import given, settings
from hypothesis import strategies as st

from gammapy_accmaker.camera import track as track_module
from gammapy_accmaker.camera.track import (
    FovTrack,
    _earth_orientation,
    _orientation_table,
    fov_track,
    gti_seconds,
    time_nodes,
    unit_vectors,
    vectors_to_lonlat,
)
from gammapy_accmaker.data.counts import observation_track
from gammapy_accmaker.errors import ObservationError

ARCSEC = 1 / 3600
ALIGNMENT = {"altaz": FoVAlignment.ALTAZ, "radec": FoVAlignment.RADEC}
POINTINGS = {
    "zenith angle 10 deg": tracking(60, 80),
    "zenith angle 45 deg": tracking(250, 45),
    "zenith angle 70 deg": tracking(330, 20),
    "0.8 deg from the zenith": tracking(180, 89.2, after=800),
    "crosses the meridian in the north": tracking(0, 60, after=850),
    "crosses the meridian in the south": tracking(180, 70, after=850),
    "drift": drifting(120, 60),
    "drift in the north": drifting(0, 75),
}


def gammapy_fov(observation, positions, times, alignment):
    """FOV_LON and FOV_LAT in deg by gammapy's own frames, one for each event."""
    frame = observation.get_fov_frame(times, ALIGNMENT[alignment])
    if alignment == "altaz":
        altaz = SkyCoord(positions.ra, positions.dec).transform_to(AltAz(obstime=times, location=HESS))
        fov = SkyCoord(altaz.az, altaz.alt, frame=AltAz(obstime=times, location=HESS)).transform_to(frame)
    else:
        fov = SkyCoord(positions.ra, positions.dec, frame="icrs").transform_to(frame)
    return fov.fov_lon.wrap_at("180d").deg, fov.fov_lat.deg


@pytest.mark.parametrize("alignment", ["altaz", "radec"])
@pytest.mark.parametrize("name", POINTINGS)
def test_events_agree_with_gammapy_frames(name, alignment):
    observation = simulate(POINTINGS[name], 300, radius=2.5)
    table = observation.events.table
    positions = SkyCoord(table["RA"], table["DEC"])
    track = observation_track(observation, alignment)
    seconds = (table["TIME"] - track.start).to_value("s")

    lon, lat = track.to_fov(xyz_of(positions), seconds)

    expected_lon, expected_lat = gammapy_fov(observation, positions, table["TIME"], alignment)
    assert np.hypot(expected_lon, expected_lat).max() > 2.3
    np.testing.assert_allclose(lon, expected_lon, atol=5 * ARCSEC)
    np.testing.assert_allclose(lat, expected_lat, atol=5 * ARCSEC)


@pytest.mark.parametrize("name", ["zenith angle 45 deg", "0.8 deg from the zenith", "drift"])
def test_zenith_and_azimuth_agree_with_astropy(name):
    observation = make_observation(POINTINGS[name])
    track = observation_track(observation, "radec")
    seconds = np.linspace(0, 1700, 300)

    altaz = observation.get_pointing_altaz(START + seconds * u.s)

    np.testing.assert_allclose(track.cos_zenith_at(seconds), np.sin(altaz.alt.rad), atol=2e-5)
    if name != "0.8 deg from the zenith":
        difference = (track.azimuth_at(seconds) - altaz.az.deg + 180) % 360 - 180
        np.testing.assert_allclose(difference, 0, atol=0.01)


def test_azimuth_is_continuous_through_north():
    track = observation_track(make_observation(POINTINGS["crosses the meridian in the north"]), "altaz")
    assert np.abs(np.diff(track.azimuth)).max() < 5
    assert np.ptp(track.azimuth) > 3
    assert 0 <= (track.azimuth_at(track.seconds) % 360).min() < 10
    assert (track.azimuth_at(track.seconds) % 360).max() > 350


def test_fov_lon_grows_with_decreasing_azimuth_and_fov_lat_with_altitude():
    observation = make_observation(tracking(100, 60))
    track = observation_track(observation, "altaz")
    frame = AltAz(obstime=START, location=HESS)
    pointing = observation.get_pointing_altaz(START)
    east = SkyCoord(pointing.az + 1 * u.deg, pointing.alt, frame=frame).icrs
    up = SkyCoord(pointing.az, pointing.alt + 1 * u.deg, frame=frame).icrs
    lon, lat = track.to_fov(xyz_of(SkyCoord([east, up])), np.zeros(2))
    assert lon[0] == pytest.approx(-np.cos(pointing.alt.rad), rel=1e-3)
    np.testing.assert_allclose([lon[1], lat[1]], [0, 1], atol=2 * ARCSEC)


def test_fov_lon_grows_with_decreasing_right_ascension_and_fov_lat_with_declination():
    pointing = FixedPointingInfo(fixed_icrs=SkyCoord(83.63, 22.01, unit="deg"))
    track = observation_track(make_observation(pointing), "radec")
    around = SkyCoord([84.63, 83.63], [22.01, 23.01], unit="deg")
    lon, lat = track.to_fov(xyz_of(around), np.zeros(2))
    assert lon[0] == pytest.approx(-np.cos(np.radians(22.01)), rel=1e-3)
    np.testing.assert_allclose([lon[1], lat[1]], [0, 1], atol=1e-9)


@pytest.mark.parametrize("alignment", ["altaz", "radec"])
@pytest.mark.parametrize("name", POINTINGS)
def test_matrices_are_orthogonal_with_the_pointing_first(name, alignment):
    observation = make_observation(POINTINGS[name])
    track = observation_track(observation, alignment)
    matrices = track.matrices_at(np.linspace(0, 1700, 57))
    identity = np.broadcast_to(np.eye(3), matrices.shape)
    np.testing.assert_allclose(matrices @ matrices.swapaxes(1, 2), identity, atol=1e-12)
    # seen from inside, azimuth grows to the right and right ascension to the left: with both reversed, one is mirrored
    np.testing.assert_allclose(np.linalg.det(matrices), 1 if alignment == "altaz" else -1, atol=1e-12)
    pointing = xyz_of(pointing_at(observation.pointing, track.seconds))
    np.testing.assert_allclose(track.matrices[:, 0], pointing, atol=1e-6)


def test_tracking_in_radec_does_not_turn_and_altaz_does():
    observation = make_observation(POINTINGS["zenith angle 10 deg"])
    assert not observation_track(observation, "radec").turns
    assert observation_track(observation, "altaz").turns


def test_radec_needs_no_location():
    pointing = tracking(100, 60)
    observation = make_observation(pointing, location=None)
    track = observation_track(observation, "radec")
    np.testing.assert_array_equal(track.matrices, observation_track(make_observation(pointing), "radec").matrices)
    assert np.isnan(track.cos_zenith).all()
    assert np.isnan(track.azimuth).all()


def test_altaz_without_location_names_the_run_and_the_remedy():
    observation = make_observation(tracking(100, 60), location=None, obs_id=4711)
    with pytest.raises(ObservationError, match=r"4711.*observatory_location"):
        observation_track(observation, "altaz")


def test_drift_without_location_raises():
    observation = make_observation(drifting(100, 60), location=None)
    with pytest.raises(ObservationError, match="location"):
        observation_track(observation, "radec")


def test_given_location_serves_where_the_observation_has_none():
    pointing = tracking(100, 60)
    track = observation_track(make_observation(pointing, location=None), "altaz", HESS)
    expected = observation_track(make_observation(pointing), "altaz")
    np.testing.assert_array_equal(track.matrices, expected.matrices)


def test_the_given_location_wins_over_that_of_the_observation():
    pointing = tracking(100, 60)
    elsewhere = HESS.__class__.from_geodetic(15 * u.deg, -28.8 * u.deg, 2200 * u.m)
    track = observation_track(make_observation(pointing, location=elsewhere), "altaz", HESS)
    np.testing.assert_array_equal(track.matrices, observation_track(make_observation(pointing), "altaz").matrices)


@pytest.mark.parametrize("intervals", [[], [(100, 100)]])
def test_no_good_time_names_the_run(intervals):
    observation = make_observation(tracking(100, 60), intervals, obs_id=4711)
    with pytest.raises(ObservationError, match=r"4711.*good time interval"):
        observation_track(observation, "altaz")


def test_gap_ontime_is_the_sum_and_a_long_gap_costs_no_nodes():
    observation = make_observation(tracking(30, 85), [(7200, 7800), (0, 600)])
    track = observation_track(observation, "altaz")
    assert track.ontime == pytest.approx(1200, abs=1e-6)
    np.testing.assert_allclose(track.intervals, [[0, 600], [7200, 7800]], atol=1e-6)
    seconds = track.seconds[:, None]
    assert np.any((seconds >= track.intervals[:, 0]) & (seconds <= track.intervals[:, 1]), axis=1).all()
    # the field turns by far more than a step's limit in the gap
    assert len(track.seconds) < 60


def test_events_on_both_sides_of_a_gap_agree_with_gammapy():
    observation = simulate(tracking(30, 85), 300, intervals=[(0, 600), (5000, 5900)], radius=2.5)
    table = observation.events.table
    positions = SkyCoord(table["RA"], table["DEC"])
    track = observation_track(observation, "altaz")
    lon, lat = track.to_fov(xyz_of(positions), (table["TIME"] - track.start).to_value("s"))
    expected = gammapy_fov(observation, positions, table["TIME"], "altaz")
    np.testing.assert_allclose((lon, lat), expected, atol=5 * ARCSEC)


def test_field_turns_fast_near_the_zenith_and_steps_shrink():
    track = observation_track(make_observation(POINTINGS["0.8 deg from the zenith"]), "altaz")
    trace = np.einsum("nij,nij->n", track.matrices[1:], track.matrices[:-1])
    assert np.degrees(np.arccos(np.clip(0.5 * (trace - 1), -1, 1))).max() <= 1.5
    assert np.diff(track.seconds).max() < 30


def test_step_of_nodes_is_kept():
    pointing = tracking(60, 50)
    track = fov_track(pointing, START + [0] * u.s, START + [100] * u.s, HESS, "altaz", step=13.0)
    assert np.diff(track.seconds).max() <= 13.0
    np.testing.assert_allclose(track.seconds[[0, -1]], [0, 100], atol=1e-6)


def test_times_beyond_the_track_are_clamped():
    track = observation_track(make_observation(tracking(60, 70)), "altaz")
    np.testing.assert_allclose(track.matrices_at(np.array([-50.0, 1750.0])), track.matrices_at(np.array([0.0, 1700.0])))


def test_crossings_are_where_lines_between_the_nodes_meet_the_edges():
    seconds = np.array([0.0, 100.0, 300.0])
    track = FovTrack(
        START, np.array([[0.0, 300.0]]), seconds, np.tile(np.eye(3), (3, 1, 1)), np.array([0.9, 0.8, 0.7]),
        np.array([350.0, 358.0, 366.0]),
    )  # fmt: skip
    assert track.crossings([0.87, 0.72, 0.95]) == pytest.approx([30, 260])
    # azimuth in turns: 355 deg, and 2 deg that is 362
    assert track.crossings(azimuth_edges=[355.0, 2.0, 100.0]) == pytest.approx([62.5, 200])
    assert track.crossings([0.85], [355.0]) == pytest.approx([50, 62.5])
    assert len(track.crossings()) == len(replace(track, cos_zenith=np.full(3, np.nan)).crossings([0.8])) == 0
    assert track.part_edges(np.array([0.5, 62.5, 299.5])) == pytest.approx([0, 62.5, 300])
    half = track.during(50, 400)
    assert half.ontime == 250 and track.ontime == 300 and half.intervals.tolist() == [[50, 300]]


def test_gti_seconds_sorts_and_drops_empty_intervals():
    start, stop = START + [500, 0, 300] * u.s, START + [600, 200, 300] * u.s
    np.testing.assert_allclose(gti_seconds(start, stop), [[0, 200], [500, 600]], atol=1e-6)


intervals_strategy = st.lists(st.floats(0.5, 2000), min_size=2, max_size=12).map(
    lambda steps: np.cumsum(steps)[: len(steps) // 2 * 2].reshape(-1, 2)
)


@given(intervals_strategy, st.one_of(st.none(), st.floats(0.7, 5000)))
@settings(deadline=None, max_examples=100)
def test_time_nodes_lie_in_good_time_and_their_weights_sum_to_the_ontime(intervals, step):
    seconds, weights = time_nodes(intervals, step)
    after, before = seconds[:, None] >= intervals[:, 0] - 1e-9, seconds[:, None] <= intervals[:, 1] + 1e-9
    assert np.any(after & before, axis=1).all()
    assert (weights > 0).all()
    assert weights.sum() == pytest.approx(np.diff(intervals, axis=1).sum())
    if step is None:
        passed = np.clip(seconds - intervals[:, 0], 0, intervals[:, 1] - intervals[:, 0]).sum()
        assert passed == pytest.approx(0.5 * weights.sum())
    else:
        assert np.average(seconds, weights=weights) == pytest.approx(
            np.average(intervals.mean(1), weights=np.diff(intervals, axis=1)[:, 0])
        )
        for start, stop in intervals:
            inside = seconds[(seconds >= start) & (seconds <= stop)]
            assert np.diff(inside).max() <= step * (1 + 1e-9)


def test_trapezoid_is_exact_for_a_linear_function_of_time():
    intervals = np.array([[0.0, 100.0], [250.0, 600.0]])
    seconds, weights = time_nodes(intervals, 60.0)
    assert (weights * (3 + 2 * seconds)).sum() == pytest.approx(3 * 450 + 100**2 + 600**2 - 250**2)


def test_unit_vectors_round_trip():
    rng = np.random.default_rng(3)
    lon, lat = rng.uniform(-np.pi, np.pi, 100), rng.uniform(-1.5, 1.5, 100)
    np.testing.assert_allclose(vectors_to_lonlat(unit_vectors(lon, lat)), (lon, lat), atol=1e-12)
    positions = random_in_cap(SkyCoord(10, 20, unit="deg"), 180, 50, rng)
    np.testing.assert_allclose(unit_vectors(positions.ra.rad, positions.dec.rad), xyz_of(positions), atol=1e-12)


@pytest.mark.parametrize("pointing", [POINTINGS["zenith angle 45 deg"], POINTINGS["0.8 deg from the zenith"]])
def test_the_interpolated_orientation_of_the_earth_is_that_of_astropy(pointing):
    observation = make_observation(pointing)
    track = observation_track(observation, "radec")
    times = track.start + track.seconds * u.s
    altaz = pointing.fixed_icrs.transform_to(AltAz(obstime=times, location=HESS))
    assert len(times) > 20
    np.testing.assert_allclose(track.cos_zenith, np.sin(altaz.alt.rad), atol=1e-11)
    turns = (track.azimuth - altaz.az.deg) / 360
    np.testing.assert_allclose((turns - np.round(turns)) * 360 * np.cos(altaz.alt.rad), 0, atol=1e-8)


def test_final_values_of_the_orientation_are_those_of_astropys_table(monkeypatch):
    """Where astropy's table is not read yet, and need not be; beyond the final values it is."""
    days = np.arange(42000, iers.IERS_B.open()["MJD"].value[-1] - 60, 97) + 2400000
    table = iers.earth_orientation_table.get()
    assert _orientation_table(days[0], days[-1]) is table
    expected = [_earth_orientation.__wrapped__(day, None) for day in days]
    monkeypatch.setattr(iers.IERS_Auto, "iers_table", None)
    assert _orientation_table(days[0], days[-1]) is iers.IERS_B.open()
    np.testing.assert_array_equal([_earth_orientation.__wrapped__(day, None) for day in days], expected)
    assert iers.IERS_Auto.iers_table is None
    own = table[len(table) // 2 :]
    with iers.earth_orientation_table.set(own):
        assert _orientation_table(days[0], days[-1]) is own
    monkeypatch.setattr(iers.IERS_Auto, "read", lambda: table)
    for beyond in (days[0] - 97, days[-1] + 97):
        assert _orientation_table(beyond, days[-1] + 97) is table
        iers.IERS_Auto.iers_table = None


def test_threads_leave_the_table_of_the_user_as_it_is(monkeypatch):
    entered, both, dut1 = [], threading.Event(), track_module.get_dut1utc

    def slow(ends):
        entered.append(ends)
        if len(entered) == 1:
            both.wait(0.3)  # for the other, which ends later
        else:
            both.set()
            time.sleep(0.1)
        return dut1(ends)

    monkeypatch.setattr(track_module, "get_dut1utc", slow)
    before = iers.earth_orientation_table._value
    threads = [threading.Thread(target=_earth_orientation.__wrapped__, args=(2453000 + k, None)) for k in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(entered) == 2 and iers.earth_orientation_table._value is before


def test_what_erfa_leaves_as_the_memory_was_does_not_matter(monkeypatch):
    """It may be no number: all runs of a process were then left out."""
    observation = make_observation(POINTINGS["zenith angle 45 deg"])
    expected = observation_track(observation, "altaz")
    apco13 = erfa.apco13

    def poisoned(*arguments):
        astrom, origin = apco13(*arguments)
        blank = np.full(astrom.shape, np.nan)
        # what the function writes, it writes over anything
        filled = np.frombuffer(np.full(astrom.nbytes // 8, np.nan).tobytes(), dtype=astrom.dtype).copy()
        erfa.ufunc.apco13(*arguments, filled, blank, np.zeros(astrom.shape, dtype=np.int32))
        return filled, origin

    monkeypatch.setattr(erfa, "apco13", poisoned)
    track = observation_track(observation, "altaz")
    np.testing.assert_array_equal(track.matrices, expected.matrices)
    np.testing.assert_array_equal(track.cos_zenith, expected.cos_zenith)
