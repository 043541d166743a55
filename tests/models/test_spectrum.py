"""A smooth spectrum through binned counts."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad

from gammapy_accmaker.models.spectrum import SmoothSpectrum, fit_spectrum, linear_weights
from gammapy_accmaker.simulation.store import BackgroundTruth

EDGES = np.geomspace(0.1, 100, 31)


def power_law_counts(edges, index=2.7, total=1e6):
    counts = -np.diff(edges ** (1 - index))
    return total * counts / counts.sum()


def bin_counts(spectrum, edges):
    return spectrum.bin_weights(edges, np.ones(1)).sum(1)


def with_threshold(edges, total=1e5):
    truth = BackgroundTruth()
    counts = np.array(
        [quad(lambda e: truth.spectrum(e, 1.0), a, b)[0] for a, b in zip(edges[:-1], edges[1:], strict=True)]
    )
    return total * counts / counts.sum()


def test_trap_centre_of_bin_evaluation_biases():
    """Wide bins (0.5 dex, index 2.7), where the value at the centre is 10 % off: the integral is what is fitted."""
    edges = np.geomspace(0.1, 100, 7)
    spectrum = fit_spectrum(power_law_counts(edges), edges)
    fine = np.geomspace(0.1, 100, 301)
    assert np.allclose(bin_counts(spectrum, fine), power_law_counts(fine), rtol=2e-3)
    centre = np.sqrt(edges[1:] * edges[:-1])
    naive = power_law_counts(edges) / np.diff(edges) / spectrum(centre)
    assert np.all(naive > 1.08)


@pytest.mark.parametrize("counts", [power_law_counts(EDGES), with_threshold(EDGES)], ids=["power law", "threshold"])
def test_bins_are_given_back(counts):
    spectrum = fit_spectrum(counts, EDGES)
    pulls = (bin_counts(spectrum, EDGES) - counts) / np.sqrt(counts)
    assert np.abs(pulls).max() < 1  # the sharp threshold is smoothed, by less than the noise
    assert bin_counts(spectrum, EDGES).sum() == pytest.approx(counts.sum(), rel=1e-7)


def test_poisson_counts_follow_the_truth():
    truth = with_threshold(EDGES, 3e4)
    chi2 = []
    for seed in range(10):
        counts = np.random.default_rng(seed).poisson(truth).astype(float)
        last = np.flatnonzero(counts)[-1] + 1
        spectrum = fit_spectrum(counts[:last], EDGES[: last + 1])
        chi2.append(np.sum((bin_counts(spectrum, EDGES)[:last] - truth[:last]) ** 2 / truth[:last]))
    # smoothing takes at least half of the noise away
    assert np.mean(chi2) < 0.5 * 30


def test_the_weights_are_the_integral():
    spectrum = fit_spectrum(with_threshold(EDGES), EDGES)
    edges = np.array([0.1, 0.17, 0.5, 3.3, 100])
    integral = [
        quad(lambda e: spectrum([e])[0], a, b, limit=500)[0] for a, b in zip(edges[:-1], edges[1:], strict=True)
    ]
    assert np.allclose(bin_counts(spectrum, edges), integral, rtol=2e-4)
    nodes = np.array([0.2, 1.0, 7.0])
    weights = spectrum.bin_weights(edges, nodes)
    assert weights.shape == (4, 3) and np.all(weights >= 0)
    assert np.allclose(weights.sum(1), integral, rtol=2e-4)


def test_bins_outside_of_the_range_are_empty():
    spectrum = fit_spectrum(power_law_counts(EDGES), EDGES)
    weights = bin_counts(spectrum, np.array([0.001, 0.05, 0.1, 100, 200, 1000]))
    assert np.array_equal(weights > 0, [False, False, True, False, False])
    assert np.array_equal(spectrum(np.array([0.09, 0.1, 100, 101])) > 0, [False, True, True, False])
    # a bin that sticks out holds what is inside
    assert bin_counts(spectrum, np.array([0.01, 100])).sum() == pytest.approx(1e6, rel=1e-6)


@pytest.mark.parametrize("counts", [[7.0], [10.0, 3.0], [5.0, 0, 0, 1.0], [1.0, 0, 1.0], [1e7, 1.0], [1.0, 1e7]])
def test_few_bins(counts):
    edges = np.geomspace(1, 10, len(counts) + 1)
    spectrum = fit_spectrum(np.array(counts), edges)
    energy = np.geomspace(1, 10, 200)
    assert np.all(np.isfinite(spectrum(energy))) and np.all(spectrum(energy) > 0)
    assert bin_counts(spectrum, edges).sum() == pytest.approx(sum(counts), rel=1e-6)


def test_trap_an_empty_penultimate_bin_does_not_explode():
    """Seen elsewhere: one empty penultimate energy bin gave 1e46 to 1e156."""
    counts = np.round(power_law_counts(EDGES, total=2e5))
    counts = counts[: np.flatnonzero(counts >= 1)[-1] + 1]
    counts[-2] = 0
    edges = EDGES[: len(counts) + 1]
    spectrum = fit_spectrum(counts, edges)
    got = bin_counts(spectrum, edges)
    assert np.all(np.isfinite(got))
    assert np.all(np.abs(got[-4:] - counts[-4:]) < 4 * np.sqrt(counts[-4:] + 1))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 300), min_size=1, max_size=30), st.integers(1, 50), st.integers(1, 50))
def test_any_counts_are_conserved(middle, first, last):
    counts = np.array([first, *middle, last], dtype=float)
    edges = np.geomspace(0.1, 100, len(counts) + 1)
    spectrum = fit_spectrum(counts, edges)
    got = bin_counts(spectrum, edges)
    assert np.all(np.isfinite(got))
    assert got.sum() == pytest.approx(counts.sum(), rel=1e-6)


def test_linear_weights_are_flat_beyond_the_ends():
    weights = linear_weights(np.array([0.0, 1.0, 3.0]), np.array([-1, 0, 0.25, 2, 5]))
    assert np.allclose(weights, [[1, 0, 0], [1, 0, 0], [0.75, 0.25, 0], [0, 0.5, 0.5], [0, 0, 1]])


def test_infinite_smoothing_is_a_power_law():
    flat = SmoothSpectrum(0.1, 10.0, np.linspace(1, -2, 8))
    energy = np.geomspace(0.1, 10, 50)
    slope = np.diff(np.log(flat(energy))) / np.diff(np.log(energy))
    assert np.ptp(slope) < 1e-9
    assert np.array_equal(flat(np.array([0.0999, 10.01])), [0, 0])
