"""The simulated data store: real DL3 files whose events obey the truth that comes with them.

Positions are taken back to the camera with gammapy's own frames, and expectations come from `expected_counts`, whose
integrals are held against scipy. Seeds are fixed: a probability below 0.1 % of a chi2 here is a defect, not bad luck.
"""

import socket

import astropy.units as u
import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from gammapy.data import DataStore, EventList
from gammapy.datasets import MapDataset
from gammapy.irf import FoVAlignment
from gammapy.makers import MapDatasetMaker
from gammapy.maps import MapAxis, WcsGeom
from scipy.integrate import dblquad, quad, trapezoid
from scipy.stats import chi2, kstest

from gammapy_accmaker.errors import InputError
from gammapy_accmaker.simulation.store import BackgroundTruth, simulate_data_store

IRFS = ["aeff", "edisp", "psf"]
ENERGY = np.geomspace(0.05, 100, 34)
# The whole camera, so that nothing is missing in a total, in pixels fine enough for its edge.
WHOLE = np.linspace(-3, 3, 61)
P_MIN = 1e-3


def poisson_probability(counts, expected, least=5.0):
    """Probability of a Poisson deviance as large as this one, over bins of at least a few expected counts."""
    counts, expected = np.ravel(counts), np.ravel(expected)
    many = expected >= least
    counts, expected = np.append(counts[many], counts[~many].sum()), np.append(expected[many], expected[~many].sum())
    pulls = (counts - expected) ** 2 / np.maximum(expected, 1e-9)
    return chi2.sf(pulls.sum(), len(pulls))


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    def refuse(*args, **kwargs):
        raise AssertionError("the simulation reached for the network")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        return simulate_data_store(tmp_path_factory.mktemp("demo") / "store", n_wobble=3, n_off=3)


@pytest.fixture(scope="module")
def camera_events(store):
    """FOV_LON and FOV_LAT in deg and energy in TeV of each OFF run's events, by gammapy's own frame, exact in time."""
    events = {}
    for obs_id in store.off_obs_ids:
        observation = store.data_store.obs(obs_id, required_irf=IRFS)
        frame = observation.get_fov_frame(observation.events.time, FoVAlignment.ALTAZ)
        position = observation.events.radec.transform_to(frame)
        lon, lat = position.fov_lon.wrap_at("180d").deg, position.fov_lat.deg
        events[obs_id] = lon, lat, observation.events.energy.to_value("TeV")
    return events


@pytest.fixture(scope="module")
def expected_events(store):
    """Expected background of each OFF run, shape (energy, fov_lon, fov_lat), over the whole camera."""
    return {obs_id: store.expected_counts(obs_id, ENERGY, WHOLE, WHOLE) for obs_id in store.off_obs_ids}


# The truth


@pytest.mark.parametrize("cos_zenith", [1.0, 0.5])
def test_truth_integral_is_converged(cos_zenith):
    truth = BackgroundTruth()
    edges = [0.05, 0.2, 1.0, 100.0]
    integral = truth.integral(edges, 1.0, -0.5, cos_zenith, shift=0.1)
    for value, low, high in zip(integral, edges[:-1], edges[1:], strict=True):
        expected = quad(
            lambda x: np.exp(x) * 1e6 * truth.rate(np.exp(x), 1.0, -0.5, cos_zenith, shift=0.1),
            np.log(low),
            np.log(high),
            epsabs=0,
            epsrel=1e-9,
            limit=200,
        )[0]
        np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_truth_arrays_broadcast():
    truth = BackgroundTruth()
    lon, lat = np.linspace(-2, 2, 5)[:, None], np.linspace(-1, 1, 3)
    assert truth.integral(ENERGY, lon, lat, 0.8).shape == (len(ENERGY) - 1, 5, 3)
    assert truth.rate([[[0.5]], [[2.0]]], lon, lat).shape == (2, 5, 3)
    assert np.all(truth.rate(ENERGY, 0.0, 0.0, 0.01) >= 0)


def test_truth_profile_integral():
    truth = BackgroundTruth()
    expected = quad(lambda x: 2 * np.pi * x * truth.profile(1.3, np.rad2deg(x)), 0, np.deg2rad(3.0), epsrel=1e-10)[0]
    np.testing.assert_allclose(truth.profile_integral(1.3), expected, rtol=1e-8)


def test_truth_asymmetry_has_mean_one_on_every_ring_and_can_be_switched_off():
    angle = np.linspace(0, 2 * np.pi, 400, endpoint=False)
    offset = np.deg2rad(2.0)
    lon = np.rad2deg(np.arctan2(np.sin(offset) * np.cos(angle), np.cos(offset)))
    lat = np.rad2deg(np.arcsin(np.sin(offset) * np.sin(angle)))
    for energy in (0.1, 1.0, 30.0):
        rate = BackgroundTruth().rate(energy, lon, lat)
        symmetric = BackgroundTruth(asymmetric=False).rate(energy, lon, lat)
        np.testing.assert_allclose(rate.mean(), symmetric.mean(), rtol=1e-12)
        np.testing.assert_allclose(symmetric, symmetric[0], rtol=1e-12)
        assert 0.02 < np.ptp(rate) / rate.mean() / 4 < 0.1
        assert np.all(rate > 0)


def test_truth_zenith_dependence_and_scale():
    truth, flat = BackgroundTruth(), BackgroundTruth(zenith_dependent=False)
    assert truth.threshold(0.5) == pytest.approx(4 * truth.threshold(1.0))
    assert truth.rate(0.15, 0, 0, 0.5) < 0.1 * truth.rate(0.15, 0, 0, 1.0)
    assert truth.rate(10.0, 0, 0, 0.5) > 3 * truth.rate(10.0, 0, 0, 1.0)
    np.testing.assert_array_equal(flat.rate(ENERGY, 0, 0, 0.5), truth.rate(ENERGY, 0, 0, 1.0))
    np.testing.assert_allclose(BackgroundTruth(scale=3.0).rate(ENERGY, 1, 0), 3 * truth.rate(ENERGY, 1, 0))


def test_truth_shift_moves_the_symmetric_part_alone():
    truth, shift = BackgroundTruth(), 0.2
    moved = truth.rate(ENERGY, 1.0, 0.5, 0.8, shift=shift) / truth.asymmetry(ENERGY, 1.0, 0.5)
    at_shifted = truth.rate(ENERGY * np.exp(shift), 1.0, 0.5, 0.8)
    np.testing.assert_allclose(moved, at_shifted / truth.asymmetry(ENERGY * np.exp(shift), 1.0, 0.5))


def test_expected_counts_integrate_pixels_on_the_sphere(store):
    obs_id = store.off_obs_ids[1]
    edges, lon, lat = [1.0, 1.05], [0.4, 0.9], [-1.5, -1.0]
    observation = store.data_store.obs(obs_id, required_irf=[])
    seconds = np.linspace(0, 1680, 281)
    cos_zenith = np.sin(observation.get_pointing_altaz(observation.tstart + seconds * u.s).alt.rad)
    node, weight = np.polynomial.legendre.leggauss(8)
    energies, shift = 1.025 + 0.025 * node, store.run_shift[obs_id]
    field = [
        dblquad(
            lambda y, x, e=e: np.cos(np.deg2rad(y)) * store.truth.rate(e, x, y, cos_zenith.mean(), shift=shift),
            *lon,
            *lat,
        )[0]
        / store.truth.spectrum(e * np.exp(shift), cos_zenith.mean())
        for e in energies
    ]
    in_time = [trapezoid(store.truth.spectrum(e * np.exp(shift), cos_zenith), seconds) for e in energies]
    expected = np.sum(weight * 0.025e6 * np.multiply(field, in_time)) * np.deg2rad(1) ** 2 * store.run_norm[obs_id]
    np.testing.assert_allclose(store.expected_counts(obs_id, edges, lon, lat), [[[expected]]], rtol=1e-3)


# The files


def test_store_is_real_dl3(store):
    data_store = DataStore.from_dir(store.path)
    observations = data_store.get_observations(required_irf=IRFS)
    assert [obs.obs_id for obs in observations] == [*store.on_obs_ids, *store.off_obs_ids]
    for obs in observations:
        assert obs.available_irfs == ["aeff", "edisp", "psf"]
        assert obs.bkg is None
        location = obs.observatory_earth_location
        assert (location.lon.deg, location.lat.deg) == pytest.approx((16.5002, -23.2718))
        assert np.all(obs.gti.time_start[0] <= obs.events.time) and np.all(obs.events.time <= obs.gti.time_stop[-1])
        assert np.all(np.diff(obs.events.time.mjd) >= 0)
        assert obs.events.offset.max() < 3.001 * u.deg
        assert 0.049 < obs.events.energy.min().to_value("TeV") and obs.events.energy.max().to_value("TeV") <= 100.001
    table = data_store.obs_table
    wanted = {"ZEN_PNT", "AZ_PNT", "ONTIME", "LIVETIME", "DEADC", "MUONEFF", "OBJECT", "N_TELS", "QUALITY"}
    assert wanted <= set(table.colnames)
    assert all(4000 < n < 12000 for n in table["EVENT_COUNT"])
    assert table["ZEN_PNT"].quantity.unit == "deg"
    assert {"GEOLON", "GEOLAT", "ALTITUDE", "MJDREFI"} <= set(table.meta)


def test_zenith_angles_and_sides_of_the_meridian(store):
    observations = store.data_store.get_observations(required_irf=IRFS)
    start = [obs.get_pointing_altaz(obs.gti.time_start[0]) for obs in observations]
    stop = [obs.get_pointing_altaz(obs.gti.time_stop[-1]) for obs in observations]
    sides = [(a.az.wrap_at("180d").deg > 0, b.az.wrap_at("180d").deg > 0) for a, b in zip(start, stop, strict=True)]
    assert {(True, False), (True, True), (False, False)} == set(sides)
    assert sides[0] == (True, False)
    zenith = store.data_store.obs_table["ZEN_PNT"].quantity.to_value("deg")
    assert zenith.min() < 4 and 54 < zenith.max() < 60
    middle = observations[1].get_pointing_altaz(observations[1].tstart + 14 * u.min)
    assert 90 - middle.alt.deg == pytest.approx(zenith[1], abs=0.01)


def test_map_dataset_maker_runs_on_it(store):
    axis = MapAxis.from_energy_bounds("0.1 TeV", "100 TeV", nbin=6)
    true_axis = MapAxis.from_energy_bounds("0.05 TeV", "150 TeV", nbin=12, name="energy_true")
    geom = WcsGeom.create(skydir=store.source.position, width=3, binsz=0.1, axes=[axis])
    maker = MapDatasetMaker(selection=["counts", "exposure", "psf", "edisp"])
    observation = store.data_store.obs(store.on_obs_ids[1], required_irf=IRFS)
    dataset = maker.run(MapDataset.create(geom, energy_axis_true=true_axis), observation)
    events = observation.events
    inside = geom.contains({"skycoord": events.radec, "energy": events.energy})
    assert dataset.counts.data.sum() == inside.sum() > 1000
    offset = store.source.position.separation(observation.pointing.fixed_icrs)
    area = observation.aeff.evaluate(energy_true=true_axis.center, offset=offset)
    exposure = dataset.exposure.interp_by_coord({"skycoord": store.source.position, "energy_true": true_axis.center})
    expected = area * observation.observation_live_time_duration
    np.testing.assert_allclose(exposure, expected.to_value(dataset.exposure.unit), rtol=0.02)


def test_gap_holds_no_events(store):
    first, second = (store.data_store.obs(i, required_irf=IRFS) for i in store.on_obs_ids[:2])
    assert len(first.gti.table) == 2 and len(second.gti.table) == 1
    pause, resume = first.gti.time_stop[0], first.gti.time_start[1]
    assert (resume - pause).to_value("s") == pytest.approx(360)
    assert not np.any((first.events.time > pause) & (first.events.time < resume))
    for obs in (first, second):
        assert obs.observation_time_duration.to_value("s") == pytest.approx(1680)


# Events against the truth


def test_events_follow_energy_and_field_of_view(camera_events, expected_events):
    for obs_id, (lon, lat, energy) in camera_events.items():
        counts = np.histogramdd((energy, lon, lat), bins=(ENERGY, WHOLE, WHOLE))[0]
        expected = expected_events[obs_id]
        assert poisson_probability(counts.sum(axis=(1, 2)), expected.sum(axis=(1, 2))) > P_MIN
        coarse = np.add.reduceat(np.add.reduceat(np.stack([counts, expected]), range(0, 60, 5), 2), range(0, 60, 5), 3)
        assert poisson_probability(*coarse.sum(axis=1)) > P_MIN
        low = (ENERGY[:-1] > 0.2) & (ENERGY[:-1] < 0.5)
        assert poisson_probability(*coarse[:, low].sum(axis=1)) > P_MIN
        assert abs(counts.sum() - expected.sum()) < 3 * np.sqrt(expected.sum())


def test_offsets_follow_the_profile_unbinned(store, camera_events):
    obs_id = store.off_obs_ids[0]
    lon, lat, energy = camera_events[obs_id]
    offset = np.rad2deg(np.arccos(np.cos(np.deg2rad(lon)) * np.cos(np.deg2rad(lat))))
    width = store.truth.width(energy * np.exp(store.run_shift[obs_id]))
    grid = np.linspace(0, 3, 601)
    density = np.sin(np.deg2rad(grid)) * store.truth.profile(energy[:, None] * np.exp(store.run_shift[obs_id]), grid)
    cumulative = np.cumsum(density, axis=1) / density.sum(axis=1, keepdims=True)
    level = [np.interp(x, grid + 0.5 * grid[1], row) for x, row in zip(offset, cumulative, strict=True)]
    assert np.ptp(width) > 0.3
    assert kstest(level, "uniform").pvalue > P_MIN


def test_asymmetry_has_the_signs_of_gammapy(store, camera_events, expected_events):
    lon, lat, _ = (np.concatenate(column) for column in zip(*camera_events.values(), strict=True))
    expected = sum(counts.sum(axis=0) for counts in expected_events.values())
    centre = 0.5 * (WHOLE[1:] + WHOLE[:-1])
    for x, axis, sign in ((lon, 1, 1), (lat, 0, -1)):
        mean = np.average(centre, weights=expected.sum(axis=axis))
        error = x.std() / np.sqrt(len(x))
        assert x.mean() == pytest.approx(mean, abs=3 * error)
        assert sign * x.mean() > 2.5 * error
    # What the signs mean, without a field-of-view frame: FOV_LON grows with decreasing azimuth.
    observation = store.data_store.obs(store.off_obs_ids[1], required_irf=IRFS)
    pointing = observation.get_pointing_altaz(observation.events.time)
    altaz = observation.events.radec.transform_to(pointing.frame)
    lon, lat, _ = camera_events[observation.obs_id]
    clear = (np.abs(lon) > 0.05) & (np.abs(lat) > 0.15)
    assert np.all((altaz.az - pointing.az).wrap_at("180d").deg[clear] * lon[clear] < 0)
    assert np.all((altaz.alt - pointing.alt).deg[clear] * lat[clear] > 0)


def test_rate_changes_with_zenith_during_a_run(store):
    observation = store.data_store.obs(store.off_obs_ids[1], required_irf=IRFS)
    edges = np.linspace(0, 1680, 9)
    counts = np.histogram((observation.events.time - observation.tstart).to_value("s"), bins=edges)[0]
    middle = observation.tstart + 0.5 * (edges[1:] + edges[:-1]) * u.s
    cos_zenith = np.sin(observation.get_pointing_altaz(middle).alt.rad)
    offset = np.linspace(0, 3, 301)[:-1] + 0.005
    rings = 2 * np.pi * np.sin(np.deg2rad(offset)) * np.deg2rad(0.01)
    symmetric = BackgroundTruth(asymmetric=False)
    shift, norm = store.run_shift[observation.obs_id], store.run_norm[observation.obs_id]
    expected = [
        (symmetric.integral(ENERGY, offset, 0.0, z, shift=shift) @ rings).sum() * 210 * norm for z in cos_zenith
    ]
    assert poisson_probability(counts, expected) > P_MIN
    assert counts[4:].sum() - counts[:4].sum() > 2.5 * np.sqrt(counts.sum())


def test_background_rate_is_per_ontime_and_header_has_dead_time(store, camera_events, expected_events):
    for obs_id in store.off_obs_ids:
        observation = store.data_store.obs(obs_id, required_irf=IRFS)
        assert observation.observation_dead_time_fraction == pytest.approx(0.06)
        assert observation.observation_live_time_duration.to_value("s") == pytest.approx(1680 * 0.94)
    total = sum(len(events[0]) for events in camera_events.values())
    expected = sum(counts.sum() for counts in expected_events.values())
    # 6 % would be nearly 9 standard deviations.
    assert abs(total / expected - 1) < 3 / np.sqrt(expected) < 0.025


def test_run_effects_scatter_and_muon_efficiency_tells_of_the_shift(tmp_path, store):
    tiny = {"ontime": 1 * u.min, "n_wobble": 0, "truth": BackgroundTruth(scale=0.01), "source": False}
    scattered = simulate_data_store(tmp_path / "a", n_off=25, **tiny)
    norm, shift = np.log(list(scattered.run_norm.values())), np.array(list(scattered.run_shift.values()))
    for values in (norm, shift):
        assert 0.03 < values.std() < 0.07 and abs(values.mean()) < 0.03
    efficiency = scattered.data_store.obs_table["MUONEFF"]
    assert np.corrcoef(np.log(efficiency), shift)[0, 1] < -0.9
    plain = simulate_data_store(tmp_path / "b", n_off=3, norm_scatter=0, shift_scatter=0, **tiny)
    assert set(plain.run_norm.values()) == {1.0} and set(plain.run_shift.values()) == {0.0}
    assert len(set(store.run_norm.values())) == len(set(store.run_shift.values())) == 6


def test_source_events_follow_spectrum_and_response(tmp_path):
    # Next to no background, so that counts are the source alone.
    store = simulate_data_store(tmp_path / "store", n_wobble=4, n_off=0, truth=BackgroundTruth(scale=1e-6))
    axis = MapAxis.from_energy_bounds("0.3 TeV", "30 TeV", nbin=8)
    true_axis = MapAxis.from_energy_bounds("0.03 TeV", "150 TeV", nbin=30, name="energy_true")
    geom = WcsGeom.create(skydir=store.source.position, width=2, binsz=0.02, axes=[axis])
    maker = MapDatasetMaker(selection=["counts", "exposure", "psf", "edisp"])
    counts, predicted = 0, 0
    for observation in store.data_store.get_observations(required_irf=IRFS):
        dataset = maker.run(MapDataset.create(geom, energy_axis_true=true_axis), observation)
        dataset.models = [store.source]
        counts, predicted = counts + dataset.counts.data, predicted + dataset.npred_signal().data
    assert predicted.sum() > 100
    assert poisson_probability(counts.sum(axis=(1, 2)), predicted.sum(axis=(1, 2))) > P_MIN
    assert abs(counts.sum() / predicted.sum() - 1) < 3 / np.sqrt(predicted.sum())
    radius = geom.to_image().separation(store.source.position).deg
    rings = [(radius >= low) & (radius < high) for low, high in [(0, 0.05), (0.05, 0.1), (0.1, 0.2), (0.2, 0.5)]]
    assert poisson_probability(*([m.sum(axis=0)[ring].sum() for ring in rings] for m in (counts, predicted))) > P_MIN


# Making it


def event_tables(store):
    return {i: EventList.read(store.path / f"data/simulated_{i}.fits").table for i in store.data_store.obs_ids}


def test_same_seed_same_events_and_more_runs_change_nothing(tmp_path):
    few = {"ontime": 3 * u.min, "seed": 3}
    first = event_tables(simulate_data_store(tmp_path / "a", n_wobble=2, n_off=1, **few))
    more = event_tables(simulate_data_store(tmp_path / "b", n_wobble=3, n_off=2, **few))
    other = event_tables(simulate_data_store(tmp_path / "c", n_wobble=2, n_off=1, **few | {"seed": 4}))
    assert set(first) < set(more) and len(more) == 5
    for obs_id, table in first.items():
        for name in ("EVENT_ID", "TIME", "RA", "DEC", "ENERGY"):
            np.testing.assert_array_equal(table[name], more[obs_id][name])
        assert len(table) != len(other[obs_id]) or np.any(table["RA"] != other[obs_id]["RA"])


def test_existing_path_is_safe(tmp_path):
    tiny = {"ontime": 1 * u.min, "n_wobble": 1, "n_off": 0}
    path = tmp_path / "store"
    simulate_data_store(path, **tiny)
    with pytest.raises(InputError, match="overwrite=True"):
        simulate_data_store(path, **tiny)
    replaced = simulate_data_store(path, seed=1, overwrite=True, **tiny)
    assert len(replaced.data_store.obs_ids) == 1
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work")
    with pytest.raises(InputError, match="no earlier output"):
        simulate_data_store(tmp_path / "thesis", overwrite=True, **tiny)
    assert (tmp_path / "thesis" / "chapter.tex").read_text() == "years of work"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["store", "thesis"]


def test_no_source_no_gap_only_off(tmp_path):
    store = simulate_data_store(
        tmp_path / "deep" / "store",
        n_wobble=0,
        n_off=2,
        source=False,
        gap=False,
        ontime=2 * u.min,
        zenith_range=[20, 40] * u.deg,
    )
    assert store.source is None and store.on_obs_ids == ()
    zenith = store.data_store.obs_table["ZEN_PNT"]
    assert np.all((zenith > 19.4) & (zenith < 40.6))
    observation = store.data_store.obs(store.off_obs_ids[0], required_irf=IRFS)
    assert len(observation.gti.table) == 1
    assert isinstance(observation.pointing.fixed_icrs, SkyCoord)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"n_wobble": 0, "n_off": 0}, "n_wobble"),
        ({"n_off": -1}, "n_off"),
        ({"ontime": 0 * u.min}, "ontime"),
        ({"zenith_range": [40, 20] * u.deg}, "zenith_range"),
        ({"zenith_range": 20 * u.deg}, "zenith_range"),
        ({"dead_time": 1.0}, "dead_time"),
        ({"norm_scatter": -0.1}, "norm_scatter"),
    ],
)
def test_wrong_values_are_named_and_nothing_is_written(tmp_path, wrong, message):
    with pytest.raises(InputError, match=message):
        simulate_data_store(tmp_path / "store", **wrong)
    assert not list(tmp_path.iterdir())
