"""A smooth spectrum through binned counts: penalised B-splines in log energy, compared with the counts bin by bin.

The expected counts of a bin are the integral of the spectrum over it, not its value at the centre (a bin of 0.5 dex and
index 2.7 would be 10 % off). A trigger threshold is sharp and the spectrum above it is not, so each half decade has a
smoothing parameter of its own, estimated from the counts (generalised Fellner-Schall update of Wood & Fasiolo 2017,
Biometrics 73, 1071). Infinite smoothing is a power law.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy.linalg import cho_solve
from scipy.sparse import csr_array

from gammapy_accmaker.errors import FitError
from gammapy_accmaker.models.bsplines import BSplineAxis, NewtonSteps, fit_penalised, update_smoothing

_KEEPING_ROUNDS = 30  # of factors that are near 1
_FINE_STEP = 0.01  # in log10 energy, of the midpoint rule
_SMOOTHING_WIDTH = 0.5  # in log10 energy, of one smoothing parameter
_SMOOTHING_RANGE = (1e-3, 1e8)
# of log-likelihood: a fit that would gain less by going on is good enough; a coefficient where nothing is expected
# falls, or swings, from step to step for ever
_STILL_GOOD = 0.1
# smoothing parameters that still creep after 80 rounds are left as they are
# steps of 1e-7 are rounding where a smoothing parameter is large
# many rounds: below the thresholds of all runs a coefficient falls by the same small share from step to step
_STEPS = NewtonSteps(600, max_step=1.0, tolerance=1e-6, learn_below=0.3, learn_rounds=80, learned=(1e-4, 0.01))


@dataclass(frozen=True)
class SmoothSpectrum:
    """Counts per TeV between two energies.

    Attributes
    ----------
    energy_min, energy_max : float
        Range in TeV of the splines.
    coefficients : `~numpy.ndarray`
        Of the B-splines of log(E dN/dE) in log E.
    reach : tuple of float, optional
        Range in TeV outside of which there is nothing, that of the splines by default; beyond the splines the spectrum
        goes on as a power law.
    """

    energy_min: float
    energy_max: float
    coefficients: np.ndarray
    reach: tuple[float, float] | None = None

    @property
    def _axis(self):
        return BSplineAxis(np.log(self.energy_min), np.log(self.energy_max), len(self.coefficients))

    @property
    def _reach(self):
        return (self.energy_min, self.energy_max) if self.reach is None else self.reach

    @cached_property
    def _end_slopes(self):
        """Slopes of the log at both ends."""
        return self._axis.derivative(np.array([self._axis.lo, self._axis.hi])) @ self.coefficients

    def _log_density(self, log_energy):
        """log(E dN/dE), a line beyond the ends of the splines."""
        beyond = log_energy - np.clip(log_energy, self._axis.lo, self._axis.hi)
        log_density = self._axis.basis(log_energy) @ self.coefficients
        if np.any(beyond != 0):
            low, high = self._end_slopes
            log_density = log_density + np.where(beyond < 0, low, high) * beyond
        return log_density

    def all_of_it(self) -> SmoothSpectrum:
        """The spectrum as far as its splines reach."""
        return replace(self, reach=None)

    def shifted(self, shift: float, reach: tuple[float, float]) -> SmoothSpectrum:
        """The spectrum whose counts at E are those of this one at E exp(shift), within a range in TeV."""
        scale = np.exp(-shift)
        return replace(self, energy_min=self.energy_min * scale, energy_max=self.energy_max * scale, reach=reach)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Serial form, beside the ``energy_edges`` of a model, whose ends are those of the spectrum."""
        return {"spectrum": self.coefficients, "spectrum_range": np.array([self.energy_min, self.energy_max])}

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> SmoothSpectrum:
        """The inverse of `to_arrays`; the splines of older files end with the energies of the model."""
        low, high = arrays["energy_edges"][[0, -1]].tolist()
        first, last = arrays.get("spectrum_range", np.array([low, high])).tolist()
        return cls(first, last, arrays["spectrum"], (low, high))

    def __call__(self, energy: np.ndarray) -> np.ndarray:
        """Counts per TeV at energies in TeV, shape (n,)."""
        energy = np.asarray(energy, dtype=float)
        # one part in 1e9 beyond an end is rounding
        low, high = self._reach
        inside = (energy > low * (1 - 1e-9)) & (energy < high * (1 + 1e-9))
        return inside * np.exp(self._log_density(np.log(energy))) / energy

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
        edges = np.log(np.clip(energy_edges, *self._reach))
        log_energy, width, bins = _midpoints(edges)
        counts = width * np.exp(self._log_density(log_energy))
        in_bin = np.where(bins == np.arange(len(energy_edges) - 1)[:, None], counts, 0)
        return in_bin @ linear_weights(np.log(node_energy), log_energy)


@dataclass(frozen=True)
class MixedSpectrum:
    """Sum of the spectra of runs whose energies are shifted.

    Attributes
    ----------
    spectrum : `SmoothSpectrum`
        Counts per TeV of all of them, without shifts.
    shift, weight : `~numpy.ndarray`
        Of each run, shape (n,): it has at E the counts of the spectrum at E exp(shift), times its weight.
    """

    spectrum: SmoothSpectrum
    shift: np.ndarray
    weight: np.ndarray

    def bin_weights(self, energy_edges: np.ndarray, node_energy: np.ndarray) -> np.ndarray:
        """As that of `SmoothSpectrum`; the nodes are shifted with the energies."""
        spectrum = self.spectrum.all_of_it()
        of_runs = [spectrum.bin_weights(energy_edges * np.exp(shift), node_energy) for shift in self.shift]
        return np.tensordot(self.weight, np.array(of_runs), 1)


def linear_weights(nodes: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Weights of linear interpolation between nodes, flat beyond the ends, shape (len(x), len(nodes))."""
    weights = np.zeros((len(x), len(nodes)))
    if len(nodes) == 1:
        return weights + 1
    left = np.clip(np.searchsorted(nodes, x, side="right") - 1, 0, len(nodes) - 2)
    share = np.where(x < nodes[left + 1], np.maximum(1 / np.diff(nodes)[left] * (x - nodes[left]), 0), 1)
    at = np.arange(len(x))
    weights[at, left], weights[at, left + 1] = 1 - share, share
    return weights


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
    for _ in range(_KEEPING_ROUNDS):
        factors *= ratio * total / (weights @ factors)
    return factors


def _midpoints(log_edges):
    """Midpoints in log energy that fill each bin, their width, and the number of their bin."""
    n = np.maximum(np.ceil(np.diff(log_edges) / (_FINE_STEP * np.log(10)) - 1e-9).astype(int), 1)
    bins = np.repeat(np.arange(len(n)), n)
    within = np.arange(len(bins)) - np.repeat(np.cumsum(n) - n, n)
    width = (np.diff(log_edges) / n)[bins]
    return log_edges[bins] + width * (within + 0.5), width, bins


def fit_spectrum(counts: np.ndarray, energy_edges: np.ndarray, shift=None, weight=None) -> SmoothSpectrum:
    """Penalised maximum likelihood spectrum.

    Parameters
    ----------
    counts : `~numpy.ndarray`
        Counts in each bin, shape (nbin,); the first and the last are > 0. Of runs with shifts (n_run, nbin).
    energy_edges : `~numpy.ndarray`
        In TeV, shape (nbin + 1,).
    shift, weight : `~numpy.ndarray`, optional
        Of each run, shape (n_run,), see `MixedSpectrum`; the sum of the weights is 1. With shifts the bins of the runs
        lie between each other, and the splines reach as far as any of them, though the spectrum ends where the bins do.
    """
    log_edges = np.log(energy_edges)
    low, high = log_edges[[0, -1]]
    reach = float(energy_edges[0]), float(energy_edges[-1])
    if shift is not None:
        low, high = low + min(np.min(shift), 0), high + max(np.max(shift), 0)
    # a knot a bin: the penalty, not the knots, decides how smooth the spectrum is
    n_bins = len(log_edges) - 1
    n_knots = int(np.ceil((high - low) / (log_edges[-1] - log_edges[0]) * n_bins - 1e-6))
    axis = BSplineAxis(low, high, max(n_knots + 3, 4))
    log_energy, width, sums = _fine_sums(log_edges, low, high, shift, weight)
    counts, in_bins = np.ravel(counts), np.reshape(counts, (-1, n_bins)).sum(0)
    # a bin in which a run has no part is none of its bins
    seen = sums.sum(1) > 0
    counts, sums = counts[seen], sums[seen]
    basis = axis.basis(log_energy)
    difference = np.diff(np.eye(axis.n), 2, axis=0)
    group = (np.arange(axis.n - 2) * axis.step / (_SMOOTHING_WIDTH * np.log(10)) + 1e-9).astype(int)
    rank = np.bincount(group)
    ridge = 1e-9 * np.eye(axis.n)
    # start from a power law through the first and the last bin
    ends = np.log(np.maximum(in_bins[[0, -1]], 0.5) / np.diff(log_edges)[[0, -1]])
    c = (
        np.interp(axis.centers, 0.5 * (log_edges[:-1] + log_edges[1:])[[0, -1]], ends)
        if n_bins > 1
        else np.full(axis.n, ends[0])
    )
    c += np.log(counts.sum() / (sums @ (width * np.exp(basis @ c))).sum())

    def equations(c):
        fine = width * np.exp(basis @ c)
        mu, slope = sums @ fine, sums @ (fine[:, None] * basis)
        return slope.T @ ((counts - mu) / mu), slope.T @ (slope / mu[:, None]) + ridge

    def penalty(smoothing):
        return difference.T @ (smoothing[group, None] * difference)

    def update(smoothing, c, factor):
        # the rows of the differences are independent, so each group's part of the penalty has full rank
        decided = rank - smoothing * np.bincount(group, np.sum(difference * cho_solve(factor, difference.T).T, axis=1))
        return update_smoothing(smoothing, decided, np.bincount(group, (difference @ c) ** 2), _SMOOTHING_RANGE)

    fit = fit_penalised(c, np.ones(len(rank)), equations, penalty, update, _STEPS)
    if not fit.converged and _gain_left(fit, equations, penalty) > _STILL_GOOD:
        raise FitError(f"spectrum: the fit did not converge in {_STEPS.max_rounds} rounds; merge energy bins")
    first, last = energy_edges[[0, -1]] * np.exp([low - log_edges[0], high - log_edges[-1]])
    return SmoothSpectrum(float(first), float(last), fit.coefficients, reach)


def _gain_left(fit, equations, penalty):
    """What a further step would add to the penalised log-likelihood."""
    gradient, information = equations(fit.coefficients)
    matrix = penalty(fit.smoothing)
    slope = gradient - matrix @ fit.coefficients
    return 0.5 * slope @ np.linalg.solve(information + matrix, slope)


def _fine_sums(log_edges, low, high, shift, weight):
    """Midpoints in log energy, their width, and what each bin (of each run) takes of each of them, a sparse matrix."""
    if shift is None:
        log_energy, width, bins = _midpoints(log_edges)
        return log_energy, width, csr_array((np.ones(len(bins)), (bins, np.arange(len(bins)))))
    log_energy, width, _ = _midpoints(np.array([low, high]))
    # a bin takes of a cell the part that lies inside of it
    edge = ((log_edges + np.reshape(shift, (-1, 1)) - low) / width[0])[..., None]
    first, cell = edge[:, :-1], np.arange(len(width))
    inside = np.clip(np.minimum(edge[:, 1:], cell + 1) - np.maximum(first, cell), 0, 1)
    return log_energy, width, csr_array((np.reshape(weight, (-1, 1, 1)) * inside).reshape(-1, len(width)))
