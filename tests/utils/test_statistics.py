import numpy as np
import pytest
from scipy.stats import kstest, norm, poisson

from gammapy_accmaker.utils.statistics import (
    deviance_moments,
    free_norm_log_likelihood,
    poisson_deviance,
    poisson_pulls,
)


def test_deviance_closed_forms():
    assert poisson_deviance(5.0, 5.0) == 0
    assert poisson_deviance(0, 3.0) == pytest.approx(6.0)
    assert poisson_deviance(4, 2.0) == pytest.approx(2 * (4 * np.log(2) - 2))
    assert np.isinf(poisson_deviance(1, 0.0))
    assert poisson_deviance(0, 0.0) == 0


def test_deviance_is_twice_the_log_likelihood_ratio():
    n, mu = np.arange(1, 20), 7.3
    ratio = poisson.logpmf(n, n) - poisson.logpmf(n, mu)
    assert np.allclose(poisson_deviance(n, mu), 2 * ratio)


@pytest.mark.parametrize("mu", [0.05, 0.7, 4.0, 300.0])
def test_randomised_scores_are_standard_normal_at_any_number_of_counts(mu):
    rng = np.random.default_rng(1)
    counts = rng.poisson(mu, 4000)
    pulls = poisson_pulls(counts, mu, rng)
    assert kstest(pulls, "norm").pvalue > 1e-3
    assert abs(pulls.mean()) < 0.06
    assert abs(pulls.std() - 1) < 0.05


def test_pulls_sign_tails_and_gaussian_limit():
    assert np.allclose(poisson_pulls([10100, 9900], 10000.0), [1.0, -1.0], atol=0.02)
    assert poisson_pulls(500, 100.0) == pytest.approx(28.45, abs=0.1)
    assert np.isfinite(poisson_pulls(100000, 1.0))
    one = poisson_pulls(3, 1.2)
    tail = poisson.sf(3, 1.2) + 0.5 * poisson.pmf(3, 1.2)
    assert one == pytest.approx(norm.isf(tail))


def test_deviance_moments_hold_at_few_counts():
    rng = np.random.default_rng(2)
    mu = np.array([0.1, 1.0, 5.0, 40.0])
    deviance = poisson_deviance(rng.poisson(mu, (200_000, 4)), mu)
    mean, variance = deviance_moments(mu)
    assert np.allclose(mean, deviance.mean(0), rtol=0.02)
    assert np.allclose(variance, deviance.var(0), rtol=0.06)


def test_free_norm_score_does_not_depend_on_the_norm_and_is_largest_for_the_truth():
    rng = np.random.default_rng(3)
    mu = rng.gamma(2.0, 5.0, (6, 30))
    mu[:, 4] = 0
    counts = rng.poisson(mu)
    score = free_norm_log_likelihood(counts, mu)
    assert score == pytest.approx(free_norm_log_likelihood(counts, 7 * mu))
    assert score > free_norm_log_likelihood(counts, mu**1.3)
    with_floor = free_norm_log_likelihood([[1, 1]], [[1.0, 1e-12]], floor=1e-5)
    assert with_floor == pytest.approx(np.log(1 / (1 + 1e-5)) + np.log(1e-5 / (1 + 1e-5)))
