"""The background of gammapy's analysis of point-like IRFs: within a radius that follows the energy of the event."""

import astropy.units as u
import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from gammapy.data import DataStore
from gammapy.datasets import SpectrumDataset
from gammapy.irf import RadMax2D
from gammapy.makers import (
    ReflectedRegionsBackgroundMaker,
    SpectrumDatasetMaker,
    WobbleRegionsFinder,
)
from gammapy.maps import MapAxis, RegionGeom
from helpers import simulate, tracking
from regions import CircleSkyRegion, PointSkyRegion

from gammapy_accmaker import AcceptanceBackgroundMaker
from gammapy_accmaker.errors import ObservationError
from gammapy_accmaker.products.rad_max import rad_max_radii

OPTIONS = {
    "model": {"type": "radial"},
    "energy": {"min": "0.2 TeV", "max": "20 TeV", "nbins_per_decade": 5},
    "offset_max": "2 deg",
    "zenith": {"type": "none"},
}
AXIS = MapAxis.from_energy_bounds("0.3 TeV", "10 TeV", 7)


def table(radii, edges=(0.1, 0.5, 2, 50), **options):
    axes = [MapAxis.from_energy_edges(edges, unit="TeV"), MapAxis.from_edges([0, 3], unit="deg", name="offset")]
    return RadMax2D(axes=axes, data=np.array(radii)[:, None], unit="deg", **options)


@pytest.fixture(scope="module")
def runs():
    observations = [simulate(tracking(20, 60 + k), 8000, seed=k, obs_id=k) for k in (1, 2, 3)]
    for one in observations:
        pointing = one.pointing.fixed_icrs
        one.events.table.meta |= {"RA_PNT": pointing.ra.deg, "DEC_PNT": pointing.dec.deg}
        one._rad_max = table([0.3, 0.2, 0.1])
    return observations


@pytest.fixture(scope="module")
def maker(runs):
    return AcceptanceBackgroundMaker(OPTIONS).fit(runs)


def center_of(observation, offset=0.6):
    return observation.pointing.fixed_icrs.directional_offset_by(70 * u.deg, offset * u.deg)


def around(region, axis=AXIS):
    return RegionGeom.create(region, axes=[axis])


def test_one_radius_is_a_circle(runs, maker):
    observation, center = runs[0], center_of(runs[0])
    observation = simulate(tracking(20, 61), 8000, seed=1, obs_id=1)
    observation.events.table.meta |= runs[0].events.table.meta
    observation._rad_max = table([0.25, 0.25, 0.25])
    point = maker.make_background(around(PointSkyRegion(center)), observation)
    circle = maker.make_background(around(CircleSkyRegion(center, 0.25 * u.deg)), observation)
    np.testing.assert_allclose(point.data, circle.data, rtol=0.01)  # gammapy's pixels of a circle


def test_each_energy_has_the_radius_of_its_events(runs, maker):
    """Against circles on the parts of the energy axis between which gammapy's radius for an event is the same."""
    observation, center = runs[0], center_of(runs[0])
    parts, radii = rad_max_radii(observation.rad_max, AXIS.edges.value, 0.6)
    energy = np.geomspace(0.31, 9.9, 300)
    theirs = observation.rad_max.evaluate(method="nearest", energy=energy * u.TeV, offset=0.6 * u.deg).to_value("deg")
    np.testing.assert_array_equal(radii[np.searchsorted(parts, energy) - 1], np.ravel(theirs))
    assert set(AXIS.edges.value) <= set(parts) and len(set(radii)) == 3
    by_part = np.array([
        maker.make_background(around(CircleSkyRegion(center, r * u.deg),
            MapAxis.from_energy_edges(parts[k : k + 2], unit="TeV")), observation).data[0, 0, 0]
        for k, r in enumerate(radii)
    ])  # fmt: skip
    number = np.searchsorted(AXIS.edges.value, np.sqrt(parts[1:] * parts[:-1])) - 1
    expected = np.bincount(number, by_part)
    found = maker.make_background(around(PointSkyRegion(center)), observation).data[:, 0, 0]
    np.testing.assert_allclose(found, expected, rtol=0.01)


def test_it_is_the_mean_of_what_gammapy_counts_there(runs, maker):
    """Events are evenly distributed: counts at many points against the background at each."""
    observation, counts, expected = runs[0], 0, 0.0
    for angle in range(0, 360, 15):
        center = observation.pointing.fixed_icrs.directional_offset_by(angle * u.deg, 1.0 * u.deg)
        dataset = SpectrumDataset.create(around(PointSkyRegion(center)), name=str(angle))
        dataset.counts, dataset.mask_safe = SpectrumDatasetMaker.make_counts(dataset.counts.geom, observation), None
        before = dataset.counts.data.copy()
        filled = maker.run(dataset, observation)
        counts, expected = counts + before, expected + filled.background.data
        assert filled.mask_safe.data.any()
    assert counts.sum() > 200
    assert expected.sum() == pytest.approx(float(counts.sum()), abs=3 * float(np.sqrt(counts.sum())))


def test_energies_beyond_the_table_have_none(runs, maker):
    observation = simulate(tracking(20, 61), 8000, seed=1, obs_id=1)
    observation.events.table.meta |= runs[0].events.table.meta
    observation._rad_max = table([0.2, 0.2], edges=(0.5, 1, 2))
    data = maker.make_background(around(PointSkyRegion(center_of(observation))), observation).data[:, 0, 0]
    inside = (AXIS.edges.value[1:] > 0.5) & (AXIS.edges.value[:-1] < 2)
    np.testing.assert_array_equal(data > 0, inside)


def test_the_error_is_that_of_the_bins(runs, maker):
    geom = around(PointSkyRegion(center_of(runs[0])))
    background, error = maker.make_background(geom, runs[0]), maker.make_background_error(geom, runs[0])
    assert np.all((error.data > 0) & (error.data < background.data))


def test_without_rad_max_it_is_said(runs, maker, caplog):
    observation = simulate(tracking(20, 61), 8000, seed=1, obs_id=1)
    geom = around(PointSkyRegion(center_of(observation)))
    with pytest.raises(ObservationError, match="observation 1.*RAD_MAX.*circle"):
        maker.make_background(geom, observation)
    dataset = maker.run(SpectrumDataset.create(geom, name="a"), observation)
    assert not dataset.mask_safe.data.any() and "RAD_MAX" in caplog.text


@pytest.mark.gammapy_data("magic/rad_max/data")
def test_magic_crab_against_reflected_regions():
    """The chain of gammapy's tutorial with our background, beside its own OFF counts."""
    runs = DataStore.from_dir("$GAMMAPY_DATA/magic/rad_max/data").get_observations(required_irf="point-like")
    crab = SkyCoord(83.633 * u.deg, 22.014 * u.deg)
    options = {"energy": {"min": "0.1 TeV", "max": "20 TeV"}, "offset_max": "1.5 deg"}
    maker = AcceptanceBackgroundMaker(options, exclusion=CircleSkyRegion(crab, 0.3 * u.deg)).fit(runs)
    axis = MapAxis.from_energy_bounds("0.15 TeV", "5 TeV", 6)
    reference = SpectrumDataset.create(
        RegionGeom.create(PointSkyRegion(crab), axes=[axis]),
        energy_axis_true=MapAxis.from_energy_bounds("50 GeV", "50 TeV", 20, name="energy_true"),
    )
    counts = SpectrumDatasetMaker(selection=["counts", "exposure", "edisp"], use_region_center=True)
    theirs = ReflectedRegionsBackgroundMaker(region_finder=WobbleRegionsFinder(n_off_regions=3))
    ours, off, errors = 0.0, 0.0, 0.0
    for run in runs:
        dataset = counts.run(reference.copy(name=str(run.obs_id)), run)
        filled, reflected = maker.run(dataset, run), theirs.run(dataset, run)
        np.testing.assert_array_equal(filled.counts.data, reflected.counts.data)
        assert filled.mask_safe.data.all()
        ours = ours + filled.background.data
        off = off + reflected.background.data
        # of the OFF counts, which are three times as many as what they stand for
        errors = errors + filled.background.data / 3
    pull = (ours - off) / np.sqrt(errors)
    assert ours.sum() > 20
    assert np.abs(pull).max() < 3 and abs(ours.sum() - off.sum()) < 3 * np.sqrt(errors.sum())
