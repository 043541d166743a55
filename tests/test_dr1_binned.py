"""Binned models on H.E.S.S. DL3 DR1: against plain histograms, gammapy's tutorials and gammapy's evaluation.

This work made use of data from the H.E.S.S. DL3 public test data release 1 (HESS DL3 DR1, H.E.S.S. collaboration,
2018).
"""

from functools import cache

import astropy.units as u
import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.coordinates.erfa_astrom import ErfaAstromInterpolator, erfa_astrom
from gammapy.data import DataStore
from gammapy.datasets import Datasets, MapDataset, MapDatasetOnOff
from gammapy.estimators import ExcessMapEstimator
from gammapy.irf import FoVAlignment
from gammapy.makers import FoVBackgroundMaker, MapDatasetMaker, RingBackgroundMaker, SafeMaskMaker
from gammapy.makers.utils import make_map_background_irf
from gammapy.maps import Map, MapAxis, WcsGeom
from gammapy.utils.coordinates import FoVAltAzFrame
from regions import CircleSkyRegion
from stores import IRFS, options

from gammapy_accmaker import AcceptanceBackgroundMaker, fit_acceptance

pytestmark = pytest.mark.gammapy_data

KINDS = ["radial", "grid"]
PKS, MSH, CRAB = (SkyCoord(*p, unit="deg") for p in ((329.717, -30.226), (228.32, -59.08), (83.633, 22.014)))
ENERGY = {"min": "0.2 TeV", "max": "20 TeV", "nbins_per_decade": 12}


@cache
def data_store():
    return DataStore.from_dir("$GAMMAPY_DATA/hess-dl3-dr1")


def runs_near(position):
    near = data_store().obs_table.pointing_radec.separation(position) < 2.5 * u.deg
    return list(data_store().get_observations(data_store().obs_table["OBS_ID"][near], required_irf=IRFS))


@cache
def pks_runs():
    runs = runs_near(PKS)
    assert len(runs) == 21
    return runs


def config(kind, effects="norm", **more):
    return options(kind, effects, energy=ENERGY, **more)


@cache
def pks_maker(kind, effects="norm"):
    return AcceptanceBackgroundMaker(config(kind, effects), exclusion=CircleSkyRegion(PKS, 0.4 * u.deg)).fit(pks_runs())


@cache
def plain_histogram():
    """Counts in (energy, offset in 0.25 deg, half of the camera), and the ontime not excluded, from gammapy's frames
    alone.

    The halves are FOV_LON < 0 and > 0, in ALTAZ.
    """
    energy, rings = np.geomspace(0.2, 20, 9), np.linspace(0, 2.5, 6)
    rng = np.random.default_rng(0)
    # positions of the camera, even in solid angle, that show how much of it is excluded
    theta = np.degrees(np.arccos(1 - rng.random(4000) * (1 - np.cos(np.radians(2.5)))))
    phi = rng.random(4000) * 360
    counts, exposure = np.zeros((8, 5, 2)), np.zeros((5, 2))
    with erfa_astrom.set(ErfaAstromInterpolator(300 * u.s)):
        fill_histogram(energy, rings, theta, phi, counts, exposure)
    solid_angle = np.pi * -np.diff(np.cos(np.radians(rings)))  # of half a ring
    return energy, rings, counts, exposure * solid_angle[:, None]


def fill_histogram(energy, rings, theta, phi, counts, exposure):
    """Add the runs to the counts and the exposure of `plain_histogram`, in place."""
    for run in pks_runs():
        events = run.events
        frame = run.get_fov_frame(events.time, FoVAlignment.ALTAZ)
        outside = events.radec.separation(PKS).deg > 0.4
        camera = events.radec.transform_to(frame)
        lon = camera.fov_lon.wrap_at("180d").deg
        sample = (events.energy.to_value("TeV")[outside], events.offset.deg[outside], (lon > 0)[outside])
        counts += np.histogramdd(np.stack(sample, axis=1).astype(float), (energy, rings, [-0.5, 0.5, 1.5]))[0]

        start, stop = run.gti.time_start[0], run.gti.time_stop[-1]
        for part in (1 / 6, 0.5, 5 / 6):
            when = start + part * (stop - start)
            origin = run.get_pointing_altaz(when)
            fov = FoVAltAzFrame(
                fov_lon=theta * np.cos(np.radians(phi)) * u.deg, fov_lat=theta * np.sin(np.radians(phi)) * u.deg,
                origin=origin, location=origin.location, obstime=when,
            )  # fmt: skip
            seen = SkyCoord(fov).icrs.separation(PKS).deg > 0.4
            offset = SkyCoord(fov).icrs.separation(run.pointing.fixed_icrs).deg
            place = np.stack([offset, (np.cos(np.radians(phi)) > 0).astype(float)], axis=1)
            bins = (rings, [-0.5, 0.5, 1.5])
            exposure += (
                run.gti.time_sum.to_value("s")
                / 3
                * np.histogramdd(place[seen], bins)[0]
                / np.histogramdd(place, bins)[0]
            )


@pytest.mark.parametrize("kind", KINDS)
def test_pks_2155_agrees_with_a_plain_histogram(kind):
    energy, rings, counts, volume = plain_histogram()
    model = pks_maker(kind, "none").model.rate_model
    middle = (np.arange(50) + 0.5) / 50 * 2.5
    angle = (np.arange(72) + 0.5) * 5
    theta, phi = np.meshgrid(middle, np.radians(angle), indexing="ij")
    rate = model.integral_grid(energy, (theta * np.cos(phi)).ravel(), (theta * np.sin(phi)).ravel()).reshape(
        8, 5, 10, 72
    )
    weight = np.sin(np.radians(middle)).reshape(5, 10)
    rate = (rate * weight[:, :, None]).sum(2) / weight.sum(1)[:, None]
    right = np.cos(np.radians(angle)) > 0
    expected = np.stack([rate[..., ~right].mean(2), rate[..., right].mean(2)], axis=2) * volume
    if kind == "radial":
        counts, expected = counts.sum(2, keepdims=True), expected.sum(2, keepdims=True)
    # the plain exposure is a sample: 1 % a bin
    error = np.sqrt(np.maximum(expected, 1) + (0.01 * expected) ** 2)
    pulls = (counts - expected) / error
    assert counts.sum() > 100_000
    assert np.abs(pulls).max() < 5 and np.sqrt(np.mean(pulls**2)) < 1.3
    in_energy = counts.sum((1, 2)), expected.sum((1, 2))
    assert np.all(np.abs(in_energy[0] - in_energy[1]) < 3 * np.sqrt(in_energy[0] + (0.003 * in_energy[0]) ** 2))
    assert expected.sum() == pytest.approx(counts.sum(), rel=5e-3)


def test_trap_reverse_lon_the_shipped_background_is_neither_used_nor_touched():
    """gammapy rewrites the alignment of whatever background is assigned to a DR1 observation, in place."""
    maker = pks_maker("grid")
    observation = data_store().obs(33795)
    shipped = observation._bkg if hasattr(observation, "_bkg") else None
    before = None if shipped is None else (shipped.data.copy(), shipped.unit)
    without = data_store().obs(33795, required_irf=IRFS)
    without._bkg = None if hasattr(without, "_bkg") else None
    geom = WcsGeom.create(
        skydir=observation.pointing.fixed_icrs,
        width=5,
        binsz=0.1,
        axes=[MapAxis.from_energy_bounds(0.5, 10, 3, unit="TeV")],
    )
    here, there = (maker.make_background(geom, o).data for o in (observation, without))
    assert np.array_equal(here, there)
    irf = maker.make_irf(observation)
    assert irf.fov_alignment == FoVAlignment.ALTAZ
    if before is not None:
        assert np.array_equal(observation._bkg.data, before[0]) and observation._bkg.unit == before[1]
    dataset = MapDatasetMaker(selection=["counts", "background", "exposure"]).run(
        MapDataset.create(geom, name="shipped"), observation
    )
    filled = maker.run(dataset, observation)
    assert not np.allclose(dataset.background.data, filled.background.data)
    assert np.array_equal(filled.background.data, here)


@pytest.mark.parametrize("kind", KINDS)
def test_run_33795_is_what_gammapy_evaluates(kind):
    maker, observation = pks_maker(kind), data_store().obs(33795, required_irf=IRFS)
    axis = MapAxis.from_energy_bounds(0.5, 10, 10, unit="TeV")
    geom = WcsGeom.create(skydir=observation.pointing.fixed_icrs, width=5, binsz=0.1, axes=[axis])
    irf = maker.make_irf(observation)
    # an offset axis ends at the last ring; our map goes on for another, as far as gammapy pads a coarse one
    near = geom.to_image().separation(observation.pointing.fixed_icrs).deg < (2.4 if kind == "radial" else 5)
    ours = (maker.make_background(geom, observation).data * near).sum((1, 2))
    theirs = make_map_background_irf(
        observation.pointing, observation.observation_time_duration, irf, geom, observation.tstart,
        oversampling=4, location=observation.observatory_earth_location,
    )  # fmt: skip
    assert np.all(np.abs((theirs.data * near).sum((1, 2)) / ours - 1) < 3e-3)


def reduced(reference, observation, methods, offset_max="2.5 deg", width="5 deg"):
    dataset = reference.cutout(
        observation.get_pointing_icrs(observation.tmid), width=width, name=f"run-{observation.obs_id}"
    )
    dataset = MapDatasetMaker(selection=["counts", "exposure"]).run(dataset, observation)
    return SafeMaskMaker(methods=methods, offset_max=offset_max).run(dataset, observation)


@pytest.fixture(scope="module")
def msh():
    """Reduced datasets without a background of the runs near MSH 15-52, as in gammapy's ring background tutorial."""
    runs = runs_near(MSH)
    energy = MapAxis.from_energy_bounds(0.5, 10, 1, unit="TeV")
    true = MapAxis.from_energy_bounds(0.1, 20, 20, unit="TeV", name="energy_true")
    geom = WcsGeom.create(skydir=MSH, binsz=0.02, width=3, axes=[energy])
    reference = MapDataset.create(geom, energy_axis_true=true, name="reference")
    return runs, geom, true, [reduced(reference, run, ["aeff-default"]) for run in runs]


@pytest.mark.parametrize("kind", KINDS)
def test_msh_15_52_ring_chain(kind, msh):
    runs, geom, true, datasets = msh
    region = CircleSkyRegion(MSH, 0.4 * u.deg)
    ring = {"type": "ring", "r_in": "0.5 deg", "width": "0.3 deg"}
    maker = AcceptanceBackgroundMaker(config(kind, offset_max="2.5 deg", renormalization=ring), exclusion=region).fit(
        runs
    )
    stacked = MapDatasetOnOff.create(geom, energy_axis_true=true, name="stacked")
    for dataset, run in zip(datasets, runs, strict=True):
        stacked.stack(maker.run(dataset, run))
    # a corner of one cutout, with one event, lies beyond the square that a grid is trained in; a ring goes on there
    assert stacked.counts.data.sum() == 41_803
    estimator = ExcessMapEstimator(0.1 * u.deg, selection_optional=[])
    significance = estimator.run(stacked)["sqrt_ts"].data[0]
    assert significance[geom.to_image().separation(MSH).deg < 0.2].max() > 10
    off = ~geom.to_image().region_mask([region]).data & np.isfinite(significance)
    assert abs(significance[off].mean()) < 0.3 and significance[off].std() < 1.3
    if kind == "grid":
        without = config(kind, offset_max="2.5 deg", renormalization={"type": "none"})
        plain = AcceptanceBackgroundMaker(without, model=maker.model, exclusion=region)
        mask = Map.from_geom(datasets[0].counts.geom, data=~datasets[0].counts.geom.region_mask([region]).data)
        appended = RingBackgroundMaker("0.5 deg", "0.3 deg", mask).run(plain.run(datasets[0], runs[0]))
        inside = maker.run(datasets[0], runs[0])
        assert np.allclose(appended.background.data, inside.background.data, equal_nan=True)


@pytest.mark.parametrize("appended", [False, True])
def test_crab_fov_chain(appended):
    runs = list(data_store().get_observations([23592, 23559], required_irf=IRFS))
    region = CircleSkyRegion(CRAB, 0.4 * u.deg)
    geom = WcsGeom.create(skydir=CRAB, binsz=0.05, width=4, axes=[MapAxis.from_energy_bounds(0.7, 10, 6, unit="TeV")])
    true = MapAxis.from_energy_bounds(0.5, 20, 6, unit="TeV", name="energy_true")
    reference = MapDataset.create(geom, energy_axis_true=true, name="reference")
    norm = {"type": "pl-norm", "parameters": [{"name": "tilt", "frozen": False}]}
    fov = {"type": "fov", "method": "fit", "spectral_model": norm}
    maker = AcceptanceBackgroundMaker(config("radial", renormalization=fov), exclusion=region).fit(runs)
    if appended:
        mask = Map.from_geom(geom.to_image(), data=~geom.to_image().region_mask([region]).data)
        after = FoVBackgroundMaker("fit", mask, maker.config.renormalization.spectral_model)
        plain = AcceptanceBackgroundMaker(config("radial"), model=maker.model, exclusion=region)
    done = Datasets()
    for run in runs:
        dataset = reduced(reference, run, ["offset-max"], "2 deg", "6 deg")
        done.append(after.run(plain.run(dataset, run)) if appended else maker.run(dataset, run))
    for dataset in done:
        norm = dataset.background_model.parameters["norm"]
        assert norm.value == pytest.approx(1, abs=0.3) and 0 < norm.error < 0.1
        tilt = dataset.background_model.parameters["tilt"]
        assert not tilt.frozen and tilt.error > 0 and abs(tilt.value) < 0.5
        outside = ~dataset.counts.geom.region_mask([region]).data & dataset.mask_safe.data
        counts, background = (m.data[outside].sum() for m in (dataset.counts, dataset.npred_background()))
        assert abs(counts - background) < 2 * np.sqrt(counts)
        inside = ~outside & dataset.mask_safe.data
        assert dataset.counts.data[inside].sum() > 1.5 * dataset.npred_background().data[inside].sum()


def test_all_shipped_backgrounds_are_left_alone():
    """Fits of observations with and without the shipped background are the same."""
    ids = [33787, 33788]
    here, there = (
        fit_acceptance(data_store().get_observations(ids, required_irf=irfs), config("radial"))
        for irfs in (IRFS, "full-enclosure")
    )
    assert np.array_equal(here.rate_model.profile, there.rate_model.profile)
