"""A smooth spectrum through binned counts."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad

from gammapy_accmaker.models.spectrum import MixedSpectrum, SmoothSpectrum, fit_spectrum, linear_weights
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


@pytest.mark.parametrize("n", [1, 2, 9])
def test_linear_weights_are_those_that_interpolate_unit_vectors(n):
    rng = np.random.default_rng(n)
    nodes = np.sort(rng.normal(size=n))
    x = np.concatenate([rng.normal(size=200), nodes, [-9, 9]])
    of_units = np.stack([np.interp(x, nodes, one) for one in np.eye(n)], axis=1)
    assert np.array_equal(linear_weights(nodes, x), of_units)


def test_infinite_smoothing_is_a_power_law():
    flat = SmoothSpectrum(0.1, 10.0, np.linspace(1, -2, 8))
    energy = np.geomspace(0.1, 10, 50)
    slope = np.diff(np.log(flat(energy))) / np.diff(np.log(energy))
    assert np.ptp(slope) < 1e-9
    assert np.array_equal(flat(np.array([0.0999, 10.01])), [0, 0])


# counts of runs of one zenith angle at a sharp threshold, by their shifts, in bins from 0.15 to 25 TeV
SHIFTS = [-0.07, -0.06, -0.05, -0.04, -0.03, -0.0, 0.01, 0.02, 0.03, 0.04, 0.05, 0.07]
WEIGHTS = [0.0438, 0.14645, 0.0454, 0.08842, 0.05583, 0.05679, 0.0566, 0.05789, 0.11628, 0.11543, 0.05751, 0.1596]
SHIFTED_COUNTS = [
    [136, 2698, 2323, 1281, 754, 449, 323, 198, 181, 153, 112, 83, 79, 92, 64, 36, 35, 34, 20, 18, 9, 4, 3],
    [
        434,
        7049,
        7905,
        4467,
        2587,
        1670,
        1065,
        819,
        590,
        443,
        391,
        318,
        248,
        236,
        169,
        157,
        118,
        104,
        72,
        59,
        37,
        31,
        20,
    ],
    [730, 3950, 2696, 1427, 831, 561, 384, 298, 203, 177, 153, 118, 99, 79, 54, 57, 53, 26, 29, 15, 26, 9, 3],
    [937, 6840, 4803, 2575, 1589, 961, 721, 540, 415, 293, 240, 185, 171, 142, 151, 112, 54, 47, 43, 34, 30, 20, 14],
    [0, 788, 2526, 1463, 867, 511, 363, 246, 176, 148, 109, 89, 76, 57, 45, 47, 33, 23, 29, 20, 8, 8, 3],
    [0, 669, 1455, 817, 495, 331, 229, 154, 111, 81, 55, 74, 58, 37, 42, 44, 25, 15, 17, 13, 9, 6, 4],
    [0, 1372, 2479, 1365, 827, 484, 355, 205, 155, 129, 114, 87, 73, 49, 50, 40, 34, 29, 17, 22, 15, 7, 5],
    [71, 2403, 2339, 1297, 742, 470, 319, 198, 179, 133, 89, 91, 66, 54, 50, 32, 44, 21, 19, 20, 10, 3, 5],
    [1723, 6287, 4412, 2413, 1450, 907, 620, 445, 311, 270, 214, 145, 147, 136, 93, 83, 72, 46, 36, 35, 24, 7, 10],
    [914, 4793, 4268, 2367, 1432, 895, 591, 452, 324, 232, 185, 148, 119, 106, 111, 104, 59, 46, 41, 33, 13, 14, 13],
    [5, 1793, 2262, 1306, 692, 498, 329, 222, 168, 131, 94, 83, 66, 65, 47, 49, 37, 34, 19, 17, 5, 10, 6],
    [812, 6961, 5129, 2981, 1773, 1063, 741, 574, 382, 345, 249, 225, 172, 146, 142, 122, 91, 82, 48, 26, 26, 17, 10],
]


def test_a_spectrum_below_all_thresholds_converges():
    """The splines reach below the first bin of most runs, where hardly a count tells of them."""
    edges = np.geomspace(0.15, 25, 24)
    spectrum = fit_spectrum(np.array(SHIFTED_COUNTS), edges, np.array(SHIFTS), np.array(WEIGHTS) / np.sum(WEIGHTS))
    assert np.all(np.isfinite(spectrum(np.sqrt(edges[1:] * edges[:-1]))))


# steps at the first of their bins would swing by 0.13 in log-likelihood for ever
SWINGING_COUNTS = [
    [1, 109, 1653, 1769, 994, 554, 352, 260, 204, 159, 152, 106, 85, 75, 64, 43, 39, 26, 25, 13, 20, 13],
    [614, 2877, 1980, 1024, 625, 429, 300, 219, 166, 150, 107, 94, 82, 65, 54, 39, 32, 29, 18, 16, 9, 12],
    [393, 2988, 2361, 1152, 726, 455, 347, 222, 204, 170, 123, 79, 104, 76, 68, 48, 34, 24, 23, 17, 8, 7],
    [3, 725, 2233, 1316, 695, 459, 313, 242, 184, 129, 100, 84, 70, 61, 45, 48, 33, 30, 32, 17, 7, 7],
    [118, 3639, 4394, 2246, 1279, 809, 592, 458, 351, 263, 243, 181, 149, 137, 115, 75, 84, 76, 50, 28, 21, 18],
    [390, 2908, 2014, 1078, 646, 444, 313, 223, 172, 108, 137, 97, 100, 63, 56, 41, 27, 17, 10, 14, 15, 6],
]


def test_steps_that_swing_are_shortened():
    edges, weight = np.geomspace(0.18736712, 25, 23), np.array([0.13956, 0.14258, 0.1468, 0.14515, 0.29814, 0.12776])
    shift = np.array([-0.08, -0.04, 0.0, 0.01, 0.03, 0.04])
    spectrum = fit_spectrum(np.array(SWINGING_COUNTS), edges, shift, weight / weight.sum())
    mixed = MixedSpectrum(spectrum, shift, weight)
    expected = mixed.bin_weights(edges, np.ones(1)).ravel()
    counts = np.sum(SWINGING_COUNTS, axis=0)
    assert np.all(np.abs(counts - expected)[2:] < 4 * np.sqrt(counts)[2:])


def test_spectra_of_runs_with_shifts_converge():
    """Also where weights and shifts are not quite those of the counts, and steps would swing for ever."""
    rng, edges = np.random.default_rng(3), np.geomspace(0.1, 100, 31)
    energy = np.sqrt(edges[1:] * edges[:-1])
    for _ in range(60):
        n = int(rng.integers(2, 8))
        shift = 0.25 * rng.normal(size=n)
        log_scaled = np.log(energy) + (shift + 0.1 * rng.normal(size=n))[:, None]
        mu = 3e3 * np.exp(-1.7 * log_scaled - np.logaddexp(0, -(log_scaled - np.log(0.3)) / 0.07))
        counts = rng.poisson(np.exp(0.5 * rng.normal(size=n))[:, None] * mu)
        used = np.flatnonzero(counts.sum(0))[[0, -1]] + [0, 1]
        inside = slice(*used)
        spectrum = fit_spectrum(counts[:, inside], edges[inside.start : inside.stop + 1], shift, np.full(n, 1 / n))
        assert np.all(np.isfinite(spectrum.coefficients))
