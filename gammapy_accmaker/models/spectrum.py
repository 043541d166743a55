"""A smooth spectrum through binned counts: penalised B-splines in log energy, compared with the counts bin by bin.

The expected counts of a bin are the integral of the spectrum over it, not its value at the centre (a bin of 0.5 dex and
index 2.7 would be 10 % off). A trigger threshold is sharp and the spectrum above it is not, so each half decade has a
smoothing parameter of its own, estimated from the counts (generalised Fellner-Schall update of Wood & Fasiolo 2017,
Biometrics 73, 1071). Infinite smoothing is a power law.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_solve

from gammapy_accmaker.errors import FitError
from gammapy_accmaker.models.bsplines import BSplineAxis, NewtonSteps, fit_penalised, update_smoothing

__all__ = ["SmoothSpectrum", "fit_spectrum", "kept_integrals", "linear_weights"]

KEEPING_ROUNDS = 30  # of factors that are near 1
FINE_STEP = 0.01  # in log10 energy, of the midpoint rule
SMOOTHING_WIDTH = 0.5  # in log10 energy, of one smoothing parameter
SMOOTHING_RANGE = (1e-3, 1e8)
# smoothing parameters that still creep after 80 rounds are left as they are
# steps of 1e-7 are rounding where a smoothing parameter is large
STEPS = NewtonSteps(200, max_step=1.0, tolerance=1e-6, learn_below=0.3, learn_rounds=80, learned=(1e-4, 0.01))


@dataclass(frozen=True)
class SmoothSpectrum:
    """Counts per TeV between two energies.

    Attributes
    ----------
    energy_min, energy_max : float
        Range in TeV; there is nothing outside.
    coefficients : `~numpy.ndarray`
        Of the B-splines of log(E dN/dE) in log E.
    """

    energy_min: float
    energy_max: float
    coefficients: np.ndarray

    @property
    def _axis(self):
        return BSplineAxis(np.log(self.energy_min), np.log(self.energy_max), len(self.coefficients))

    def __call__(self, energy: np.ndarray) -> np.ndarray:
        """Counts per TeV at energies in TeV, shape (n,)."""
        energy = np.asarray(energy, dtype=float)
        # one part in 1e9 beyond an end is rounding
        inside = (energy > self.energy_min * (1 - 1e-9)) & (energy < self.energy_max * (1 + 1e-9))
        return inside * np.exp(self._axis.basis(np.log(energy)) @ self.coefficients) / energy

    def bin_weights(self, energy_edges: np.ndarray, node_energy: np.ndarray) -> np.ndarray:
        """Counts in bins, shared between nodes by linear interpolation in log energy.

        Parameters
        ----------
        energy_edges : `~numpy.ndarray`
            In TeV, shape (nbin + 1,).
        node_energy : `~numpy.ndarray`
            Energies in TeV of the nodes, shape (m,).

        Returns
        -------
        weights : `~numpy.ndarray`
            Shape (nbin, m); the sum over nodes is the integral over each bin.
        """
        edges = np.log(np.clip(energy_edges, self.energy_min, self.energy_max))
        log_energy, width, bins = _midpoints(edges)
        counts = width * np.exp(self._axis.basis(log_energy) @ self.coefficients)
        weights = np.zeros((len(energy_edges) - 1, len(node_energy)))
        np.add.at(weights, bins, counts[:, None] * linear_weights(np.log(node_energy), log_energy))
        return weights


def linear_weights(nodes: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Weights of linear interpolation between nodes, flat beyond the ends, shape (len(x), len(nodes))."""
    return np.stack([np.interp(x, nodes, one) for one in np.eye(len(nodes))], axis=1)


def kept_integrals(counts: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Factors at nodes that make the integrals of a spectrum over bins their counts.

    A smooth spectrum is within the errors of the counts of a bin, which are to be kept all the same. One event is added
    to both, so that a bin with next to no counts keeps the spectrum.

    Parameters
    ----------
    counts : `~numpy.ndarray`
        Shape (n,).
    weights : `~numpy.ndarray`
        What each bin takes from each node, `SmoothSpectrum.bin_weights`, shape (n, n).

    Returns
    -------
    factors : `~numpy.ndarray`
        Shape (n,), > 0.
    """
    total, factors = weights.sum(1), np.ones(len(counts))
    ratio = (counts + 1) / (total + 1)
    for _ in range(KEEPING_ROUNDS):
        factors *= ratio * total / (weights @ factors)
    return factors


def _midpoints(log_edges):
    """Midpoints in log energy that fill each bin, their width, and the number of their bin."""
    n = np.maximum(np.ceil(np.diff(log_edges) / (FINE_STEP * np.log(10)) - 1e-9).astype(int), 1)
    bins = np.repeat(np.arange(len(n)), n)
    within = np.arange(len(bins)) - np.repeat(np.cumsum(n) - n, n)
    width = (np.diff(log_edges) / n)[bins]
    return log_edges[bins] + width * (within + 0.5), width, bins


def fit_spectrum(counts: np.ndarray, energy_edges: np.ndarray) -> SmoothSpectrum:
    """Penalised maximum likelihood spectrum.

    Parameters
    ----------
    counts : `~numpy.ndarray`
        Counts in each bin, shape (nbin,); the first and the last are > 0.
    energy_edges : `~numpy.ndarray`
        In TeV, shape (nbin + 1,).
    """
    log_edges = np.log(energy_edges)
    # a knot a bin: the penalty, not the knots, decides how smooth the spectrum is
    axis = BSplineAxis(log_edges[0], log_edges[-1], max(len(counts) + 3, 4))
    log_energy, width, bins = _midpoints(log_edges)
    basis = axis.basis(log_energy)
    difference = np.diff(np.eye(axis.n), 2, axis=0)
    group = (np.arange(axis.n - 2) * axis.step / (SMOOTHING_WIDTH * np.log(10)) + 1e-9).astype(int)
    rank = np.bincount(group)
    ridge = 1e-9 * np.eye(axis.n)
    # start from a power law through the first and the last bin
    ends = np.log(np.maximum(counts[[0, -1]], 0.5) / np.diff(log_edges)[[0, -1]])
    c = (
        np.interp(axis.centers, 0.5 * (log_edges[:-1] + log_edges[1:])[[0, -1]], ends)
        if len(counts) > 1
        else np.full(axis.n, ends[0])
    )
    c += np.log(counts.sum() / np.bincount(bins, width * np.exp(basis @ c)).sum())

    def equations(c):
        fine = width * np.exp(basis @ c)
        mu, slope = np.bincount(bins, fine, len(counts)), np.zeros((len(counts), axis.n))
        np.add.at(slope, bins, fine[:, None] * basis)
        return slope.T @ ((counts - mu) / mu), slope.T @ (slope / mu[:, None]) + ridge

    def penalty(smoothing):
        return difference.T @ (smoothing[group, None] * difference)

    def update(smoothing, c, factor):
        # the rows of the differences are independent, so each group's part of the penalty has full rank
        decided = rank - smoothing * np.bincount(group, np.sum(difference * cho_solve(factor, difference.T).T, axis=1))
        return update_smoothing(smoothing, decided, np.bincount(group, (difference @ c) ** 2), SMOOTHING_RANGE)

    fit = fit_penalised(c, np.ones(len(rank)), equations, penalty, update, STEPS)
    if not fit.converged:
        raise FitError(f"spectrum: the fit did not converge in {STEPS.max_rounds} rounds; merge energy bins")
    return SmoothSpectrum(float(energy_edges[0]), float(energy_edges[-1]), fit.coefficients)
