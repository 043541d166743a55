"""What holds whatever the runs are: counts, exposure, order, splitting and frames (hypothesis draws the runs)."""

import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path

import astropy.units as u
import numpy as np
import pytest
from helpers import make_observation, simulate, tracking
from hypothesis import given, settings
from hypothesis import strategies as st
from regions import CircleSkyRegion, PolygonSkyRegion
from scipy.sparse import csr_array
from simulated_runs import EDGES as SPLINE_EDGES
from simulated_runs import LAT, LON, SOLID_ANGLE, simulate_runs
from stores import EDGES, fitted, options

from gammapy_accmaker import AcceptanceConfig, AcceptanceModel, fit_acceptance
from gammapy_accmaker.acceptance.fit import fit_runs
from gammapy_accmaker.acceptance.reduction import Reduction
from gammapy_accmaker.camera.bins import CountsBins, FovBins
from gammapy_accmaker.data.counts import reduce_observation
from gammapy_accmaker.data.exclusion import Exclusion
from gammapy_accmaker.models.binned import fit_binned
from gammapy_accmaker.models.spline.fit import fit_spline
from gammapy_accmaker.models.spline.rate import SplineRate

few = settings(max_examples=8, deadline=None, derandomize=True)
CONFIG = AcceptanceConfig.coerce(options("grid", model={"type": "grid", "offset_bins": 4}))
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)


@cache
def observation(seed=0, size=800, obs_id=7):
    return simulate(tracking(120, 62), size, seed=seed, obs_id=obs_id, intervals=((0, 700), (900, 1700)))


def reduced(config, observations, exclusion=None):
    reduction = Reduction.of(config, exclusion)
    return reduction.bins, reduction.reduce_all(observations)[0]


@few
@given(
    change=st.floats(0.001, 0.2),
    nbin=st.integers(1, 40),
    width=st.floats(0.5, 4),
    radial=st.booleans(),
    alignment=st.sampled_from(["altaz", "radec"]),
)
def test_counts_are_conserved_by_every_regrouping(change, nbin, width, radial, alignment):
    fov = FovBins.rings(width, nbin) if radial else FovBins.grid(width, nbin)
    bins = CountsBins(np.geomspace(0.1, 100, nbin + 1), fov, alignment)
    run = reduce_observation(observation(), bins, max_zenith_change=change)
    slices, dropped = run.slices, sum(run.dropped.values())
    assert sum(part.counts.sum() for part in slices) + dropped == 800
    assert sum(part.ontime for part in slices) == pytest.approx(1500)
    assert sum(part.exposure for part in slices) == pytest.approx(np.full(fov.size, 1500))
    # two energy bins in one, or all pixels in one, hold what both held
    whole = sum(part.counts.toarray() for part in slices)
    coarse = CountsBins(bins.energy_edges[[0, -1]], fov, alignment)
    assert np.array_equal(whole.sum(0), reduce_observation(observation(), coarse).counts.toarray()[0])


@few
@given(factor=st.floats(0.1, 10), seed=st.integers(0, 100), kind=st.sampled_from(["radial", "grid"]))
def test_doubled_exposure_halves_the_rate(factor, seed, kind):
    model = fitted(kind, seed=seed % 3)
    longer = fit_binned(model.counts, factor * model.exposure, model.bin_edges, model.fov)
    lon, lat = np.random.default_rng(seed).uniform(-1.5, 1.5, (2, 20))
    here, there = (m.rate_grid(np.geomspace(0.3, 10, 9), lon, lat) for m in (model, longer))
    assert there * factor == pytest.approx(here, rel=1e-9)


@few
@given(order=st.permutations(range(4)))
def test_the_order_of_the_runs_does_not_matter(order):
    runs = [observation(seed, 600 + 50 * seed, seed + 1) for seed in range(4)]
    here, there = (fit_acceptance(r, CONFIG).rate_model for r in (runs, [runs[k] for k in order]))
    assert np.array_equal(here.exposure, there.exposure) and np.array_equal(here.profile, there.profile)


ENERGIES = SPLINE_EDGES[15:66:2]  # fewer and wider bins, and few rounds: what is tested holds in each


@cache
def spline_runs():
    pairs = np.kron(np.eye(len(ENERGIES) - 1), [1, 1])
    runs = simulate_runs(4, 3, obs_id=1)
    return [replace(run, counts=csr_array(pairs @ run.counts.toarray()[15:65])) for run in runs]


@cache
def spline(*order):
    runs = [spline_runs()[k] for k in order]
    return SplineRate(fit_spline(runs, ENERGIES, LON, LAT, SOLID_ANGLE, run_effects="norm", max_rounds=4)[0])


def test_the_order_of_the_runs_does_not_matter_to_the_spline():
    lon, lat = np.linspace(-1.5, 1.5, 9), np.linspace(1, -1, 9)
    here, there = (spline(*k).rate_grid(np.geomspace(0.5, 3, 12), lon, lat, 0.8) for k in ((0, 1, 2, 3), (3, 1, 0, 2)))
    assert there == pytest.approx(here, rel=1e-10)


@few
@given(cut=st.floats(100, 1600), change=st.booleans())
def test_splitting_a_run_in_two_does_not_matter(cut, change):
    whole = observation()
    seconds = (whole.events.time - whole.gti.time_start[0]).to_value("s")
    intervals = [
        (max(a, low), min(b, high)) for low, high in ((0, cut), (cut, 1700)) for a, b in ((0, 700), (900, 1700))
    ]
    parts = []
    for k, first in enumerate((True, False)):
        keep = (seconds < cut) == first
        here = [(a, b) for a, b in intervals[2 * k : 2 * k + 2] if b - a > 1e-3]
        if keep.any() and here:
            parts.append(make_observation(whole.pointing, here, whole.events.table[keep], obs_id=k + 1))
    config = CONFIG.update({"run_effects": {"type": "none"}})
    region = CircleSkyRegion(whole.pointing.fixed_icrs.directional_offset_by(0 * u.deg, 1 * u.deg), 0.6 * u.deg)
    bins, one = reduced(config, [whole], region if change else None)
    _, two = reduced(config, parts, region if change else None)
    here, there = (fit_runs(runs, bins, config)[0] for runs in (one, two))
    assert there.exposure == pytest.approx(here.exposure, rel=2e-3 if change else 1e-9)  # steps of the rotation
    assert np.abs(there.counts - here.counts).sum() <= (4 if change else 0)


@few
@given(bearing=st.floats(0, 360), distance=st.floats(0, 3), round_one=st.booleans())
def test_the_sky_frame_of_a_region_does_not_matter(bearing, distance, round_one):
    pointing = observation().pointing.fixed_icrs
    center = pointing.directional_offset_by(bearing * u.deg, distance * u.deg)
    corners = center.directional_offset_by([0, 120, 240] * u.deg, 1 * u.deg)
    rng = np.random.default_rng(int(bearing * 1000))
    near = center.directional_offset_by(rng.uniform(0, 360, 2000) * u.deg, rng.uniform(0, 2, 2000) * u.deg)
    masks = []
    for frame in ("icrs", "galactic", "fk5"):
        # shapes without a position angle, which is one of the frame
        circle = CircleSkyRegion(center.transform_to(frame), 0.7 * u.deg)
        region = circle if round_one else PolygonSkyRegion(corners.transform_to(frame))
        masks.append(Exclusion(region).contains(near.cartesian.xyz.value.T))
    assert 0 < masks[0].sum() < 2000
    assert all(np.array_equal(mask, masks[0]) for mask in masks[1:])


@few
@given(seed=st.integers(0, 1000), kind=st.sampled_from(["radial", "grid"]))
def test_a_model_survives_its_file_exactly(seed, kind):
    model = AcceptanceModel(
        fitted(kind, seed=seed % 5), CONFIG.to_yaml(), fit_acceptance([observation()], CONFIG).run_table
    )
    with tempfile.TemporaryDirectory() as folder:
        model.write(Path(folder) / "model.fits")
        again = AcceptanceModel.read(Path(folder) / "model.fits")
    lon, lat = np.random.default_rng(seed).uniform(-2.5, 2.5, (2, 30))
    for name in ("rate_grid", "relative_error_grid"):
        here, there = (getattr(m.rate_model, name)(np.geomspace(0.05, 200, 20), lon, lat) for m in (model, again))
        assert np.array_equal(here, there)
    assert again.config == model.config and all(again.run_table["OBS_ID"] == model.run_table["OBS_ID"])


@cache
def models():
    rng = np.random.default_rng(1)
    sparse = FovBins.grid(2.5, 12)
    counts = rng.poisson(0.02, (30, sparse.size)).astype(float)
    exposure = np.where(rng.random(sparse.size) < 0.3, 0, 1000.0)
    counts[:, exposure == 0] = 0
    return (fitted("radial"), fitted("grid"), fit_binned(counts, exposure, EDGES, sparse), spline(0, 1, 2, 3))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    which=st.integers(0, 3),
    energy=st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=5),
    lon=NUMBERS.filter(lambda x: abs(x) < 180),
    lat=NUMBERS.filter(lambda x: abs(x) <= 90),
    cos_zenith=st.floats(-1, 1),
)
def test_every_prediction_is_finite_and_not_negative(which, energy, lon, lat, cos_zenith):
    model = models()[which]
    lon, lat = np.array([lon, 0.0]), np.array([lat, 0.0])
    rate = model.rate(np.array(energy)[:, None], lon, lat, cos_zenith)
    edges = np.unique(np.append(energy, [0.5, 3]))
    integral = model.integral_grid(edges, lon, lat, cos_zenith)
    for values in (rate, integral):
        assert np.isfinite(values).all() and (values >= 0).all()
    assert integral[:, 1].sum() > 0  # at the centre of the camera, 0.5 to 3 TeV
