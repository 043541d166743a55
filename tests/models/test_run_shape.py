"""The covariance over runs of the shape that is not fitted to each of them."""

import numpy as np
import pytest
from scipy.sparse import csr_array
from simulated_runs import CENTERS, EDGES, LAT, LON, SOLID_ANGLE, simulate_runs, true_rate

from gammapy_accmaker.camera.bins import FovBins
from gammapy_accmaker.models.binned import fit_binned
from gammapy_accmaker.models.norm_energy import RunScatter
from gammapy_accmaker.models.run_shape import RunShape, ShapeGroups, find_shape, shape_of_runs
from gammapy_accmaker.models.spline.adapt import fit_run
from gammapy_accmaker.models.spline.fit import fit_spline
from gammapy_accmaker.models.spline.rate import SplineRate

BINS = (EDGES, LON, LAT, SOLID_ANGLE)


def groups_and_rate():
    rate = true_rate(CENTERS, LON, LAT, 0.85) * SOLID_ANGLE * np.diff(EDGES)[:, None] * 1e6 * 1700
    return ShapeGroups.of(rate.sum(1), EDGES, LON, LAT, False), rate


def test_covariance_of_drawn_shapes_is_found():
    """Runs whose shapes are drawn from a known covariance: the spread of sums over the field is found again."""
    groups, rate = groups_and_rate()
    rng, shape = np.random.default_rng(1), groups.shape
    root = np.linalg.cholesky(4 * shape.prior())
    drawn = [root @ rng.normal(size=len(root)) for _ in range(150)]
    values = shape.values(CENTERS, LON, LAT)
    counts = [groups.summed(rng.poisson(rate * np.exp(np.tensordot(own, values, axes=(0, 0))))) for own in drawn]
    found = find_shape(groups, counts, [groups.summed(rate)] * len(drawn))
    for low, high, part in ((0.4, 0.6, LON > 0.5), (1.0, 2.0, np.hypot(LON, LAT) < 1), (0.3, 3.0, LAT < 0)):
        weights = rate * ((CENTERS > low) & (CENTERS < high))[:, None] * part
        row = np.einsum("em,kem->k", weights, values) / weights.sum()
        true, estimated = (np.sqrt(row @ c @ row) for c in (4 * shape.prior(), found.covariance))
        assert estimated == pytest.approx(true, rel=0.2)


def test_runs_that_are_alike_leave_little():
    groups, rate = groups_and_rate()
    rng = np.random.default_rng(2)
    counts = [groups.summed(rng.poisson(rate)) for _ in range(100)]
    found = find_shape(groups, counts, [groups.summed(rate)] * 100)
    weights = rate * np.ones_like(LON)
    row = np.einsum("em,kem->k", weights, found.values(CENTERS, LON, LAT)) / weights.sum()
    assert np.sqrt(row @ found.covariance @ row) < 0.03


def test_a_shape_is_written_and_read():
    groups, _ = groups_and_rate()
    scatter = RunScatter(0.1, -np.inf, 0.2, 0.3, 1.0, shape=groups.shape)
    read = RunScatter.from_array(scatter.to_array())
    assert read.to_array().tolist() == scatter.to_array().tolist()
    assert np.array_equal(read.shape.root, groups.shape.root) and isinstance(read.shape, RunShape)
    assert RunScatter.from_array(RunScatter(0.1, 0.0, 0.2, 0.3, 1.0).to_array()).shape is None


@pytest.mark.parametrize("kind", ["norm", "tilt"])
def test_pulls_where_runs_differ_in_their_threshold(kind):
    """Norm and tilt cannot follow a threshold; the errors of the rate there know it."""
    model = fit_spline(simulate_runs(24, seed=3, zenith=(0.8, 0.9)), *BINS, run_effects=kind)[0]
    low, high = (np.searchsorted(EDGES, e) for e in (0.35, 0.55))
    pulls, plain = [], []
    for run in simulate_runs(25, seed=8, zenith=(0.82, 0.88), obs_id=500):
        adapted = SplineRate(model, fit_run(model, run), run.azimuth)
        volume = run.exposure * SOLID_ANGLE * np.diff(EDGES)[:, None] * 1e6
        mu = (adapted.rate_grid(CENTERS, LON, LAT, run.cos_zenith) * volume)[low:high]
        truth = (true_rate(CENTERS, LON, LAT, run.cos_zenith, run.norm, run.shift) * volume)[low:high].sum()
        shared, own = adapted.error_rows(CENTERS[low:high], LON, LAT, run.cos_zenith)
        along = adapted.error_factor(run.cos_zenith).T @ np.einsum("em,kem->k", mu, shared)
        of_run = np.einsum("em,kem->k", mu, own)
        n_effect = model.population.basis.n
        pulls.append((mu.sum() - truth) / np.sqrt((along**2).sum() + (of_run**2).sum()))
        plain.append((mu.sum() - truth) / np.sqrt((along**2).sum() + (of_run[:n_effect] ** 2).sum()))
    assert np.sqrt(np.mean(np.square(plain))) > 2 > 1.4 > np.sqrt(np.mean(np.square(pulls))) > 0.5


@pytest.mark.parametrize("radial", [True, False])
def test_groups_of_a_binned_model_know_what_their_counts_tell(radial):
    fov = FovBins.rings(2.0, 8) if radial else FovBins.grid(2.0, 20)
    edges = np.geomspace(0.3, 10, 9)
    rng = np.random.default_rng(0)
    expected = 3e4 * np.exp(-np.hypot(fov.fov_lon, fov.fov_lat)) / fov.size * np.geomspace(1, 0.02, 8)[:, None]
    model = fit_binned(rng.poisson(expected), np.full(fov.size, 1e4), edges, fov)
    rows, _ = model.error_rows(np.sqrt(edges[1:] * edges[:-1]), fov.fov_lon, fov.fov_lat)
    sums = model.error_factor(np.nan).T @ np.einsum("em,kem->k", model.counts, rows)
    assert np.sqrt((sums**2).sum()) == pytest.approx(np.sqrt(model.counts.sum()), rel=0.03)
    few = model.error_factor(np.nan, leading=True)
    assert few.shape[1] < 190 and len(few) == len(rows)


@pytest.mark.parametrize("radial", [True, False])
def test_leading_directions_hold_the_errors_of_sums(radial):
    """Of the field and of a ring in each band, also where counts are few, and of a disc in all of them."""
    fov, edges = FovBins.rings(2.0, 8) if radial else FovBins.grid(2.0, 20), np.geomspace(0.3, 30, 41)
    theta, everything = np.hypot(fov.fov_lon, fov.fov_lat), np.arange(40)
    expected = 1e5 / fov.size * np.exp(-theta) * np.geomspace(1, 1e-3, 40)[:, None]
    model = fit_binned(np.random.default_rng(0).poisson(expected), np.full(fov.size, 1e4), edges, fov)
    rows, _ = model.error_rows(np.sqrt(edges[1:] * edges[:-1]), fov.fov_lon, fov.fov_lat)
    full, leading = (model.error_factor(np.nan, leading=way) for way in (False, True))
    assert leading.shape[1] < 190

    def share(band, weights):
        sums = np.einsum("em,kem->k", (expected * weights)[band], rows[:, band])
        return np.sqrt(((leading.T @ sums) ** 2).sum() / ((full.T @ sums) ** 2).sum())

    for band in np.split(everything, 5):
        assert 0.85 < share(band, np.ones(fov.size)) < 1.0001
        assert 0.7 < share(band, (theta > 0.8) & (theta < 1.5)) < 1.0001
    assert 0.85 < share(everything, np.hypot(fov.fov_lon - 1, fov.fov_lat) < 0.6) < 1.0001


@pytest.mark.parametrize("radial", [True, False])
def test_errors_of_a_run_are_at_its_own_energies(radial):
    """A run whose energies are scaled knows at E what the model knows at E exp(shift)."""
    fov, edges = FovBins.rings(2.0, 8) if radial else FovBins.grid(2.0, 20), np.geomspace(0.3, 10, 9)
    expected = 3e4 / fov.size * np.geomspace(1, 0.02, 8)[:, None] * np.ones(fov.size)
    model = fit_binned(np.random.default_rng(0).poisson(expected), np.full(fov.size, 1e4), edges, fov)
    energy, at = np.sqrt(edges[2:] * edges[1:-1]), (fov.fov_lon, fov.fov_lat)
    moved = model.shifted(0.4, (0.3, 10.0))
    np.testing.assert_array_equal(moved.error_rows(energy, *at)[0], model.error_rows(energy * np.exp(0.4), *at)[0])
    assert np.any(moved.error_rows(energy, *at)[0] != model.error_rows(energy, *at)[0])


@pytest.mark.parametrize("number", [1, 2, 5])
def test_wide_and_uneven_energy_bins_are_compared_too(number):
    edges = np.concatenate([[0.3], np.geomspace(2.0, 30.0, number)]) if number > 1 else np.array([0.3, 30.0])
    rng, fov = np.random.default_rng(0), FovBins.grid(2.0, 6)
    counts = [csr_array(rng.poisson(20.0, (len(edges) - 1, fov.size))) for _ in range(4)]
    for shift in (np.zeros(4), np.array([0.1, -0.05, 0.0, 0.02])):
        shape = shape_of_runs(counts, np.ones((4, fov.size)), shift, edges, fov)
        assert np.all(np.isfinite(shape.root)) and np.linalg.eigvalsh(shape.covariance).min() > 0
