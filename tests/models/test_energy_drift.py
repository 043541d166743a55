"""A profile over the field of view that drifts with energy:
followed where many energies agree, and not made of noise."""

import numpy as np
import pytest
from stores import EDGES, expected_in_bins, fov_bins, mean_in_bins

from gammapy_accmaker.camera.bins import FovBins
from gammapy_accmaker.models.binned import fit_binned
from gammapy_accmaker.models.energy_drift import fit_drift, orthonormal_modes

LOG_ENERGY = np.log(np.geomspace(0.3, 30, 21))
STEP = 0.3 * np.log(10)
RINGS = FovBins.rings(2.5, 12)
THETA = RINGS.fov_lon
FUNCTIONS = np.stack([THETA, THETA**2, THETA**3], axis=1)


def shares(width):
    """Of a Gaussian profile in the rings, whose width in deg is one for each energy."""
    share = RINGS.solid_angle * np.exp(-0.5 * (THETA / np.reshape(width, (-1, 1))) ** 2)
    return share / share.sum(1, keepdims=True)


def drift_of(counts):
    """Shares by energy with the drift, and those of all energies."""
    common = (counts.sum(0) + 1e-3) / counts.sum()
    mu = np.tile(common, (len(counts), 1))
    factor = np.exp(fit_drift(counts, mu, orthonormal_modes(FUNCTIONS, common), LOG_ENERGY, STEP))
    return mu * factor / (mu * factor).sum(1, keepdims=True), mu / mu.sum(1, keepdims=True)


def loss(found, truth, totals):
    """Log-likelihood that shares cost against the true ones, at these totals by energy."""
    return (totals[:, None] * truth * np.log(truth / found)).sum()


def test_modes_are_orthonormal():
    weight = np.random.default_rng(0).uniform(0, 2, 12)
    modes = orthonormal_modes(FUNCTIONS, weight)
    columns = np.column_stack([np.ones(12), modes])
    assert np.allclose((columns * weight[:, None]).T @ columns / weight.sum(), np.eye(4), atol=1e-10)
    # two rings tell a slope, and nothing more; one ring nothing
    assert orthonormal_modes(FUNCTIONS, weight * (np.arange(12) < 2)).shape == (12, 1)
    assert orthonormal_modes(FUNCTIONS, weight * (np.arange(12) < 1)).shape == (12, 0)
    assert orthonormal_modes(FUNCTIONS[:1], weight[:1]).shape == (1, 0)


@pytest.mark.parametrize("total", [3, 30, 1000])
def test_what_does_not_drift_stays(total):
    """On average over seeds the drift of noise costs less than three parameters would, one for each mode."""
    truth, totals = shares(np.full(21, 1.2)), np.full(21, float(total))
    extra = []
    for seed in range(30):
        counts = np.random.default_rng(seed).poisson(totals[:, None] * truth).astype(float)
        found, common = drift_of(counts)
        extra.append(loss(found, truth, totals) - loss(common, truth, totals))
    assert np.mean(extra) < 1.5


@pytest.mark.parametrize("slope", [0.15, -0.15])
def test_a_coherent_drift_is_followed(slope):
    """No energy shows it alone: 40 events, an outer ring that is 0.5 sigma too high or low in each."""
    width, totals = 1.2 * np.exp(slope * (LOG_ENERGY - LOG_ENERGY.mean())), np.full(21, 40.0)
    truth, ratio, outer = shares(width), [], []
    high = slice(14, None)
    wanted = (totals[:, None] * truth)[high, 9:].sum()
    for seed in range(20):
        counts = np.random.default_rng(seed).poisson(totals[:, None] * truth).astype(float)
        found, common = drift_of(counts)
        ratio.append(loss(found, truth, totals) / loss(common, truth, totals))
        outer.append([((s * totals[:, None])[high, 9:].sum() - wanted) / np.sqrt(wanted) for s in (found, common)])
    assert np.mean(ratio) < 0.5
    drifted, pressed = np.abs(np.mean(outer, axis=0))
    assert drifted < 0.3 * pressed


def test_where_counts_end_the_drift_stays():
    """A few events at the highest energies take the profile of the energies before them, not one that ran on."""
    totals = np.where(np.arange(21) < 14, 2000.0, 0.5)
    truth = shares(1.2 * np.exp(0.15 * (LOG_ENERGY - LOG_ENERGY[0])))
    counts = np.random.default_rng(3).poisson(totals[:, None] * truth).astype(float)
    found, _ = drift_of(counts)
    assert np.allclose(found[-1], found[14], atol=0.03)


def test_odd_counts_are_finite():
    for counts in (np.zeros((21, 12)), np.eye(21)[:, :12], np.eye(21)[:, :12] * 1e9, np.ones((21, 12)) * 1e-3):
        mu = np.tile(shares([1.2]), (21, 1))
        modes = orthonormal_modes(FUNCTIONS, mu[0])
        assert np.all(np.isfinite(fit_drift(counts, mu, modes, LOG_ENERGY, STEP)))
    one = fit_drift(np.ones((1, 12)), np.ones((1, 12)), modes, LOG_ENERGY[:1], STEP)
    assert np.array_equal(one, np.zeros((1, 12)))
    # bins that were not seen have no say
    counts, unseen = np.random.default_rng(1).poisson(50 * mu).astype(float), np.arange(12) > 8
    here = fit_drift(counts[:, ~unseen], mu[:, ~unseen], modes[~unseen], LOG_ENERGY, STEP)
    there = fit_drift(counts * ~unseen, mu * ~unseen, modes, LOG_ENERGY, STEP)
    assert np.allclose(here, there[:, ~unseen])


@pytest.mark.parametrize("kind", ["radial", "grid"])
def test_the_shape_of_low_energies_is_not_pressed_onto_high_ones(kind):
    """Sums over many energies, that no single energy can show: rings, halves and quarters of the field above 1 TeV."""
    fov, seconds = fov_bins(kind), 6e4
    truth = expected_in_bins(EDGES, fov, seconds)
    theta = np.hypot(fov.fov_lon, fov.fov_lat)
    parts = [(theta >= a) & (theta < b) for a, b in ((0, 0.8), (0.8, 1.6), (1.6, 2.2), (2.2, 2.5))]
    if kind == "grid":
        parts += [(fov.fov_lon > 0) & (theta < 2.4), (fov.fov_lat > 0) & (theta < 2.4)]
    high = EDGES[:-1] >= 0.99
    pulls = []
    for seed in range(12):
        counts = np.random.default_rng(seed).poisson(truth).astype(float)
        model = fit_binned(counts, np.full(fov.size, seconds), EDGES, fov)
        mean = mean_in_bins(model, fov, EDGES)
        mu, above = (mean * fov.solid_angle * seconds)[high].sum(0), truth[high].sum(0)
        pulls.append([(mu[p].sum() - above[p].sum()) / np.sqrt(above[p].sum()) for p in parts])
    assert np.abs(np.mean(pulls, axis=0)).max() < 1.2
    assert np.sqrt(np.mean(np.square(pulls), axis=0)).max() < 1.5
