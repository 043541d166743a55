"""How runs differ in more than what is fitted to each of them: the shape that a norm, or none at all, leaves.

The log of the rate of a run over that of all, less what its norm explains, is a smooth function of energy times four
simple ones of the field of view. Its coefficients are Gaussian over the runs; their covariance is estimated from the
counts of the runs of the fit by the EM algorithm, with the Poisson error of the counts taken into account.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.linalg import block_diag
from scipy.sparse import csr_array, issparse

from gammapy_accmaker.models.bsplines import BSplineAxis, smooth_covariance

_KNOT_STEPS = {"flat": 0.5, "radial": 2.0, "lon": 4.0, "lat": 4.0}  # in log energy
_WIDTHS = {"flat": 0.1, "radial": 0.1, "lon": 0.05, "lat": 0.05}  # before any run is seen
_PRIOR_RUNS = 5.0  # weight of these widths
_ENERGY_STEP, _RINGS, _SECTORS = 0.35, 6, 8  # in log energy; groups of bins in which runs are compared
_ROUNDS = 10
_LARGEST = 4.0  # of the log of a ratio
_SHARES = 1e-3, 0.999  # of the counts, between which the knots lie


def root_of(covariance: np.ndarray) -> np.ndarray:
    """L with L L' = covariance, by its eigenvectors, so that some directions may have no variance."""
    values, vectors = np.linalg.eigh(0.5 * (covariance + covariance.T))
    return vectors * np.sqrt(np.maximum(values, 0))


@dataclass(frozen=True, eq=False)
class RunShape:
    """Covariance over the runs of the shape of the rate.

    Attributes
    ----------
    log_energy : tuple of float
        Range of log(E / TeV) of the knots.
    offset_max : float
        In deg; unit of the functions of the field of view.
    is_radial : bool
        Whether they depend on the offset alone.
    covariance : `~numpy.ndarray`, shape (k, k)
    """

    log_energy: tuple[float, float]
    offset_max: float
    is_radial: bool
    covariance: np.ndarray

    def __eq__(self, other):
        return isinstance(other, RunShape) and np.array_equal(self.to_array(), other.to_array())

    def to_array(self) -> np.ndarray:
        """Serial form."""
        return np.concatenate([[*self.log_energy, self.offset_max, float(self.is_radial)], self.covariance.ravel()])

    @classmethod
    def from_array(cls, array: np.ndarray) -> RunShape:
        """The inverse of `to_array`."""
        low, high, offset_max, is_radial, *covariance = np.asarray(array, dtype=float).tolist()
        n = round(np.sqrt(len(covariance)))
        return cls((low, high), offset_max, bool(is_radial), np.reshape(covariance, (n, n)))

    @cached_property
    def _axes(self) -> dict[str, BSplineAxis]:
        span, names = self.log_energy[1] - self.log_energy[0], ("flat", "radial") if self.is_radial else _KNOT_STEPS
        return {m: BSplineAxis(*self.log_energy, max(int(np.ceil(span / _KNOT_STEPS[m])) + 3, 4)) for m in names}

    @cached_property
    def mode_of_column(self) -> np.ndarray:
        """Number of the function of the field of view of each coefficient, shape (k,)."""
        return np.repeat(np.arange(len(self._axes)), [axis.n for axis in self._axes.values()])

    def columns(self, log_energy: np.ndarray) -> np.ndarray:
        """Energy dependence of each coefficient, shape (n, k)."""
        return np.hstack([axis.basis(log_energy) for axis in self._axes.values()])

    def modes(self, fov_lon: np.ndarray, fov_lat: np.ndarray) -> np.ndarray:
        """Functions of the field of view at positions in deg, shape (m, 2 or 4)."""
        x, y = np.asarray(fov_lon) / self.offset_max, np.asarray(fov_lat) / self.offset_max
        return np.stack([np.ones_like(x), x * x + y * y - 0.4, x, y][: len(self._axes)], axis=-1)

    def values(self, energy: np.ndarray, fov_lon: np.ndarray, fov_lat: np.ndarray) -> np.ndarray:
        """Change of the log of the rate by one unit of each coefficient, shape (k, n, m)."""
        pull = np.minimum(1, self.offset_max / np.maximum(np.hypot(fov_lon, fov_lat), 1e-12))
        modes = self.modes(fov_lon * pull, fov_lat * pull)[:, self.mode_of_column]
        return self.columns(np.log(energy)).T[:, :, None] * modes.T[:, None, :]

    @cached_property
    def root(self) -> np.ndarray:
        """That of the covariance, see `root_of`."""
        return root_of(self.covariance)

    def prior(self) -> np.ndarray:
        """Covariance before any run is seen, smooth along the energy, shape (k, k)."""
        return block_diag(*(smooth_covariance(_WIDTHS[name], axis.n) for name, axis in self._axes.items()))


@dataclass(frozen=True)
class ShapeGroups:
    """Groups of energy bins and of bins of the field of view in which runs are compared.

    Attributes
    ----------
    energy : `~scipy.sparse.csr_array`, shape (group, energy bin)
    fov : `~scipy.sparse.csr_array`, shape (bin, group)
    shape : `RunShape`
        With its prior.
    basis : `~numpy.ndarray`, shape (groups, k)
        Coefficients to the log of the rate in the groups, raveled.
    """

    energy: csr_array
    fov: csr_array
    shape: RunShape
    basis: np.ndarray

    @classmethod
    def of(cls, spectrum, energy_edges, fov_lon, fov_lat, is_radial) -> ShapeGroups:
        """Of bins of the field of view at positions in deg; ``spectrum``: counts of all runs in the energy bins."""
        log_energy = 0.5 * np.log(energy_edges[1:] * energy_edges[:-1])
        total = np.cumsum(spectrum) / spectrum.sum()
        low, high = np.interp(_SHARES, total, log_energy)
        offset = np.hypot(fov_lon, fov_lat)
        empty = RunShape((float(low), float(max(high, low + 0.5))), float(offset.max()), is_radial, np.zeros((0, 0)))
        shape = RunShape(empty.log_energy, empty.offset_max, is_radial, empty.prior())
        number = np.unique(((log_energy - log_energy[0]) / _ENERGY_STEP).astype(int), return_inverse=True)[1]
        energy = csr_array((np.ones(len(number)), (number, np.arange(len(number)))))
        ring = np.minimum((offset / offset.max() * _RINGS).astype(int), _RINGS - 1)
        sector = 0 if is_radial else (np.arctan2(fov_lat, fov_lon) % (2 * np.pi) / (2 * np.pi) * _SECTORS).astype(int)
        group = np.unique(ring * _SECTORS + sector, return_inverse=True)[1]
        fov = csr_array((np.ones(len(group)), (np.arange(len(group)), group)))
        # of a group the mean over its bins, where its counts are
        weights = spectrum[:, None] + 1e-9
        columns = (energy @ (shape.columns(log_energy) * weights)) / (energy @ weights)
        modes = (fov.T @ shape.modes(fov_lon, fov_lat)) / fov.sum(axis=0)[:, None]
        basis = columns[:, None, :] * modes[:, shape.mode_of_column]
        return cls(energy, fov, shape, basis.reshape(-1, basis.shape[2]))

    def summed(self, values) -> np.ndarray:
        """Of bins, shape (energy, bin), in the groups, raveled."""
        sums = self.energy @ (values @ self.fov)
        return (sums.toarray() if issparse(sums) else sums).ravel()


def find_shape(groups: ShapeGroups, counts: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> RunShape:
    """Covariance of the shape over runs, from their counts and what was expected in the groups.

    Parameters
    ----------
    groups : `ShapeGroups`
    counts, expected : sequence of `~numpy.ndarray`
        Of each run, see `ShapeGroups.summed`.
    """
    basis, prior = groups.basis, groups.shape.prior()
    covariance, values = prior, np.zeros((len(counts), basis.shape[1]))
    for _ in range(_ROUNDS):
        # EM: a Newton step of each run under the covariance so far, then the covariance of what was found, to which the
        # uncertainty of each run belongs, and the prior as that of some more runs
        precision, moments = np.linalg.inv(covariance), _PRIOR_RUNS * prior
        for k, (n, mu) in enumerate(zip(counts, expected, strict=True)):
            mu = mu * np.exp(np.clip(basis @ values[k], -_LARGEST, _LARGEST))
            posterior = np.linalg.inv((basis.T * mu) @ basis + precision)
            step = posterior @ (basis.T @ (n - mu) - precision @ values[k])
            values[k] += step / max(np.abs(step).max(), 1.0)  # a factor e at most: counts are few, exponentials steep
            moments = moments + np.outer(values[k], values[k]) + posterior
        covariance = moments / (len(counts) + _PRIOR_RUNS)
    shape = groups.shape
    return RunShape(shape.log_energy, shape.offset_max, shape.is_radial, 0.5 * (covariance + covariance.T))


def shape_of_runs(counts: Sequence, exposure: np.ndarray, shift: np.ndarray, energy_edges: np.ndarray, fov) -> RunShape:
    """`find_shape` of runs that share one rate, from their counts alone.

    Parameters
    ----------
    counts : sequence of `~scipy.sparse.csr_array`, shape (n_energy, fov.size)
    exposure : `~numpy.ndarray`, shape (n_run, fov.size)
        Times their norms.
    shift : `~numpy.ndarray`, shape (n_run,)
        Run r has at log energy x the rate that all share at x + shift.
    energy_edges : `~numpy.ndarray`, shape (n_energy + 1,)
        In TeV.
    fov : `FovBins`
    """
    spectrum = sum(np.asarray(own.sum(axis=1)).ravel() for own in counts)
    groups = ShapeGroups.of(spectrum, energy_edges, fov.fov_lon, fov.fov_lat, fov.is_radial)
    in_fov = sum(np.asarray(own.sum(axis=0)).ravel() for own in counts)
    seen = exposure.sum(axis=0)
    weights = (exposure * np.divide(in_fov, seen, out=np.zeros_like(seen), where=seen > 0)) @ groups.fov
    on_fov = [(own @ groups.fov).toarray() for own in counts]
    moves = [_overlap(np.log(energy_edges), own) for own in shift]
    together = sum(move @ own for move, own in zip(moves, on_fov, strict=True))
    volume = sum(np.outer(move.sum(axis=1), own) for move, own in zip(moves, weights, strict=True))
    rate = np.divide(together, volume, out=np.zeros_like(together), where=volume > 0)
    expected = [groups.energy @ (move.T @ rate * own) for move, own in zip(moves, weights, strict=True)]
    in_groups = [(groups.energy @ own).ravel() for own in on_fov]
    return find_shape(groups, in_groups, [own.ravel() for own in expected])


def _overlap(log_edges, shift):
    """Share of each bin that lies in each bin once it is moved, shape (bin, moved bin)."""
    if shift == 0:
        return np.eye(len(log_edges) - 1)
    low, high = log_edges[:-1] + shift, log_edges[1:] + shift
    overlap = np.minimum(log_edges[1:, None], high) - np.maximum(log_edges[:-1, None], low)
    return np.clip(overlap, 0, None) / (high - low)
