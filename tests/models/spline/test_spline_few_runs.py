"""The spline model where runs are few: sharp thresholds, and fits that converge."""

import numpy as np
import pytest
from scipy.sparse import csr_array
from simulated_runs import CENTERS, EDGES, LAT, LON, SOLID_ANGLE, SimulatedRun, simulate_runs

from gammapy_accmaker.camera.bins import FovBins
from gammapy_accmaker.models.spline.cells import FovCells, gather_counts
from gammapy_accmaker.models.spline.fit import fit_spline
from gammapy_accmaker.models.spline.penalty import RatePenalty

BINS = (EDGES, LON, LAT, SOLID_ANGLE)
VOLUME = SOLID_ANGLE * np.diff(EDGES)[:, None] * 1e6


def log_threshold(cos_zenith):
    return np.log(0.35) - 2.3 * np.log(cos_zenith)


def sharp_rate(energy, lon, lat, cos_zenith, norm=0.0, shift=0.0):
    """A rate that falls by a factor of 30 within 0.05 dex below its threshold."""
    log_energy = np.log(energy)[:, None] + shift
    shape = -2.7 * log_energy - np.logaddexp(0, -(log_energy - log_threshold(cos_zenith)) / 0.03)
    return 5e-4 * np.exp(shape - (lon**2 + lat**2) / (2 * (0.9 + 0.12 * log_energy) ** 2) + norm)


@pytest.mark.parametrize("n_run", [1, 2, 4])
def test_a_sharp_threshold_stays_sharp(n_run):
    """Below the threshold, where the true counts are a few per cent of those above it."""
    expected = true = 0.0
    for seed in range(4):
        runs = simulate_runs(n_run, seed=100 + seed, zenith=(0.84, 0.87), rate=sharp_rate)
        model = fit_spline(runs, *BINS)[0]
        for run, effect in zip(runs, model.effects, strict=True):
            below = np.log(CENTERS) + run.shift - log_threshold(run.cos_zenith) < -0.05
            fitted = model.rate_grid(CENTERS, LON, LAT, run.cos_zenith, azimuth=run.azimuth, effect=effect)
            truth = sharp_rate(CENTERS, LON, LAT, run.cos_zenith, run.norm, run.shift)
            expected += (fitted * VOLUME * run.exposure)[below].sum()
            true += (truth * VOLUME * run.exposure)[below].sum()
    assert true > 20
    # one run has a handful of counts there
    assert expected / true == pytest.approx(1, abs=2.5 / np.sqrt(true) + 0.1)


@pytest.mark.parametrize("n_run", [1, 2, 4])
@pytest.mark.parametrize("ontime", [60.0, 300.0, 1700.0])
def test_fits_of_few_runs_converge(n_run, ontime):
    for seed in (1, 2):
        runs = simulate_runs(n_run, seed=seed, zenith=(0.85, 0.86), ontime=ontime)
        model = fit_spline(runs, *BINS)[0]
        assert model.converged and all(effect.converged for effect in model.effects)


def test_one_run_whose_slices_reach_far_in_zenith():
    """It tells of its mean zenith angle alone: there is no rate between angles to be fitted."""
    parts = simulate_runs(2, seed=3, zenith=(0.7, 0.9), sd_norm=0.0, sd_shift=0.0)
    assert abs(parts[0].cos_zenith - parts[1].cos_zenith) > 0.02
    slices = [SimulatedRun(7, r.counts, r.exposure, r.cos_zenith, r.azimuth) for r in parts]
    model = fit_spline([slices], *BINS)[0]
    assert model.converged and model.zenith_axis.n == 1 and len(model.effects) == 1
    assert model.effects[0].expected.sum() == pytest.approx(sum(r.counts.sum() for r in parts), rel=0.01)


def test_runs_without_any_threshold_at_far_zenith_angles():
    """A power law from the lowest energy on: shift and norm of the farthest run cannot be told apart."""

    def power_law(energy, lon, lat, cos_zenith, norm=0.0, shift=0.0):
        log_energy = np.log(energy)[:, None] + shift - 0.8 * np.log(cos_zenith)
        return 5e-4 * np.exp(-2.7 * log_energy - (lon**2 + lat**2) / 3 + norm)

    runs = [
        simulate_runs(1, seed=k, zenith=(z, z + 1e-6), rate=power_law, obs_id=k)[0]
        for k, z in enumerate((0.47, 0.85, 0.985, 0.99))
    ]
    model = fit_spline(runs, *BINS)[0]
    assert model.converged
    for run, effect in zip(runs, model.effects, strict=True):
        assert effect.expected.sum() == pytest.approx(run.counts.sum(), rel=0.01)


def dense_parts(penalty):
    """The parts of the penalty as plain matrices, from their definition."""
    n_energy, n_offset, n_zenith = penalty.sizes
    others = n_offset * n_zenith
    mean = np.kron(np.full((n_offset, n_offset), 1 / n_offset), np.eye(n_zenith))
    rows = np.array_split(np.diff(np.eye(n_energy), 2, axis=0), max((n_energy - 2) // 5, 1))
    groups = [part.T @ part for part in rows]

    def second(n):
        d = np.diff(np.eye(n), 2, axis=0)
        return d.T @ d

    parts = [np.kron(p, mean) for p in groups] + [np.kron(sum(groups), np.eye(others) - mean)]
    parts.append(np.kron(np.eye(n_energy), np.kron(second(n_offset), np.eye(n_zenith))))
    parts.append(np.kron(np.eye(n_energy), np.kron(np.eye(n_offset), second(n_zenith))))
    return parts


@pytest.mark.parametrize("sizes", [(13, 4, 5), (13, 4, 1), (8, 3, 4)])
def test_smoothing_parameters_follow_the_generalised_fellner_schall_update(sizes):
    rng = np.random.default_rng(0)
    penalty = RatePenalty(np.zeros(sizes))
    penalty.smoothing = 10 ** rng.uniform(-1, 1, len(penalty.smoothing))
    before, parts = penalty.smoothing.copy(), dense_parts(penalty)
    whole = sum(s * p for s, p in zip(before, parts, strict=True))
    values, rows = rng.normal(size=np.prod(sizes)), rng.normal(size=(500, np.prod(sizes)))
    covariance = np.linalg.inv(rows.T @ rows + whole)
    inverse = np.linalg.pinv(whole, rcond=1e-10, hermitian=True)
    fixed = penalty.matrix().toarray() - whole
    assert np.linalg.eigvalsh(fixed).min() > 0 and np.abs(fixed).max() < 0.01
    penalty.update(values, covariance)
    for after, s, part in zip(penalty.smoothing, before, parts, strict=True):
        if not part.any():
            assert after == s
            continue
        want = s * np.sum((inverse - covariance) * part) / (values @ part @ values)
        assert after == pytest.approx(np.clip(want, s / 30, s * 30), rel=1e-6)


def test_smoothing_of_the_common_spectrum_is_its_own():
    """Counts of a sharp spectrum that all offsets share: rough in common, smooth in its differences."""
    runs = simulate_runs(4, seed=9, zenith=(0.85, 0.855), rate=sharp_rate)
    smoothing = fit_spline(runs, *BINS)[0].smoothing
    common, apart = smoothing[:-3], smoothing[-3]
    assert common.min() < 0.1 * min(common.max(), apart)


def test_a_run_without_counts_beside_others_does_no_harm():
    runs = simulate_runs(2, seed=5, zenith=(0.85, 0.86))
    empty = SimulatedRun(99, csr_array(runs[0].counts.shape), runs[0].exposure * 1e-6, 0.85, 10.0)
    model = fit_spline([*runs, empty], *BINS)[0]
    assert model.converged and len(model.effects) == 3
    assert "few counts" in model.effects[-1].flags


def test_a_slice_without_counts_in_a_wide_field():
    """It has more cells than a byte counts."""
    fov = FovBins.grid(2.5, 50)
    cells = FovCells(fov.fov_lon, fov.fov_lat, fov.solid_angle)
    empty = SimulatedRun(99, csr_array((5, fov.size), dtype=int), np.ones(fov.size), 0.85, 10.0)
    assert cells.n_cell > 256
    np.testing.assert_array_equal(gather_counts(cells, 5, empty).spectrum(5), 0)
