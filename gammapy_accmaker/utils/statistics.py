"""Poisson statistics on arrays: deviance, scores that hold where counts are few, and the held-out score.

Counts are numbers of events, ``mu`` the expected numbers; nothing here knows of energies or positions.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from scipy.special import gammainc, gammaincc, gammaln, ndtri, xlogy

# A normal score is cut where the probability is no longer a number that 1 can be told from.
_SMALLEST_PROBABILITY = 1e-300
# Expected counts between which the moments of the deviance are tabulated; above them a series holds.
_FEWEST, _FEW = 1e-12, 20.0


def poisson_deviance(counts, mu) -> np.ndarray:
    """Twice the log-likelihood ratio of the saturated model and ``mu``, bin by bin.

    Parameters
    ----------
    counts, mu : array_like
        Observed and expected counts; they broadcast. Where ``mu`` is 0 and counts are not, the deviance is infinite.

    Returns
    -------
    deviance : `~numpy.ndarray`
        ``2 (n log(n / mu) - n + mu)``, >= 0.
    """
    counts, mu = np.asarray(counts, dtype=float), np.asarray(mu, dtype=float)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(counts > 0, counts / mu, 1.0)
    return np.maximum(2 * (xlogy(counts, ratio) - counts + mu), 0.0)


def poisson_pulls(counts, mu, rng: np.random.Generator | None = None) -> np.ndarray:
    """Signed normal scores of Poisson counts, standard normal at few counts too if ``rng`` is given.

    Parameters
    ----------
    counts, mu : array_like
        Observed and expected counts; they broadcast. Both tails are kept, so that large excesses keep their
        significance.
    rng : `~numpy.random.Generator`, optional
        With it the score is drawn inside the step of the observed count, and is exactly normal if ``mu`` is true, at
        any number of counts. Without it the middle of the step is taken (mid-P).

    Returns
    -------
    pulls : `~numpy.ndarray`
        In standard deviations, positive where more events came than expected.
    """
    below, above = _tails(counts, mu, rng)
    score = ndtri(np.maximum(np.minimum(below, above), _SMALLEST_PROBABILITY))
    return np.where(below < above, score, -score)


def _tails(counts, mu, rng):
    """Probabilities of fewer and of more events, the step of the observed count shared between them."""
    counts, mu = np.broadcast_arrays(np.asarray(counts, dtype=float), np.asarray(mu, dtype=float))
    share = 0.5 if rng is None else rng.random(counts.shape)
    # gammaincc(n, mu) = P(N < n); its complement is taken from gammainc to keep digits in the far tail
    less = np.where(counts > 0, gammaincc(np.maximum(counts, 1), mu), 0.0)
    log_step = xlogy(counts, mu) - mu - gammaln(counts + 1)
    step = np.exp(log_step)
    more = np.where(mu > 0, gammainc(counts + 1, mu), 0.0)
    return less + share * step, more + (1 - share) * step


def deviance_moments(mu) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of the Poisson deviance at expected counts ``mu``, to 1e-4, shapes (n,)."""
    mu = np.maximum(np.asarray(mu, dtype=float), _FEWEST)
    mean, variance = 1 + 1 / (6 * np.maximum(mu, 1)), 2 + 2 / (3 * np.maximum(mu, 1))
    few = mu < _FEW
    nodes, means, variances = _moments_at_nodes()
    x = np.log(mu[few])
    mean[few], variance[few] = np.exp(np.interp(x, nodes, means)), np.exp(np.interp(x, nodes, variances))
    return mean, variance


@cache
def _moments_at_nodes():
    """Log of expected counts, and the logs of mean and variance of the deviance there, by its definition."""
    nodes = np.linspace(np.log(_FEWEST), np.log(_FEW), 1000)
    mu, n = np.exp(nodes), np.arange(80.0)[:, None]
    probability = np.exp(xlogy(n, mu) - mu - gammaln(n + 1))
    deviance = poisson_deviance(n, mu)
    mean = (probability * deviance).sum(0)
    return nodes, np.log(mean), np.log((probability * (deviance - mean) ** 2).sum(0))


def free_norm_log_likelihood(counts, mu, floor: float = 1e-5) -> float:
    """Log-likelihood of the counts of one run with a free norm: the held-out score.

    Parameters
    ----------
    counts, mu : array_like, shape (n_energy, n_fov)
        Observed and expected counts, the latter up to a factor. Field-of-view bins without any expected counts are
        taken to have no exposure.
    floor : float
        ``mu`` is not let below this share of its largest value, so that a single event where next to none is
        expected does not decide.

    Returns
    -------
    score : float
        Sum of ``n log(mu / sum(mu))``.
    """
    counts, mu = np.asarray(counts, dtype=float), np.asarray(mu, dtype=float)
    mu = np.maximum(mu, floor * mu.max()) * (mu.sum(axis=0) > 0)
    seen = counts > 0
    return float((counts[seen] * np.log(mu[seen] / mu.sum())).sum())
