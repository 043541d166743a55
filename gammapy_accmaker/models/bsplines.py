"""Cubic B-splines on uniform knots, difference penalties and array arithmetic for tensor products of them.

The array arithmetic follows Currie, Durban & Eilers 2006 (JRSS B 68, 259): a tensor-product basis is applied axis by
axis, so that no full design matrix is formed. Smoothing parameters follow the generalised Fellner-Schall update of
Wood & Fasiolo 2017 (Biometrics 73, 1071).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import reduce

import numpy as np
from scipy.interpolate import BSpline
from scipy.linalg import cho_factor, cho_solve

_LATE_ROUND, _LEAST_DAMPING = 50, 0.05  # of steps that swing
_SMOOTHING_RANGE = (1e-4, 1e8)
_SMOOTHING_STEP = 30.0  # largest factor in one update
_NEIGHBOURS = 2.0  # splines, over which coefficients go together


@dataclass(frozen=True)
class BSplineAxis:
    """Cubic B-splines on uniform knots along one axis.

    Arguments outside ``[lo, hi]`` are clamped to it: a spline is never extrapolated.

    Parameters
    ----------
    lo, hi : float
        Range of the axis.
    n : int
        Number of coefficients: at least 4 (3 where even), or 1 for an axis along which nothing changes.
    even : bool
        Whether functions are even about ``lo``, as a smooth function of the offset is at the pointing. There is one
        more spline then: the first is the mirror image of the third and has no coefficient of its own.
    """

    lo: float
    hi: float
    n: int
    even: bool = False

    def __post_init__(self):
        if self.n != 1 and (self._n_spline < 4 or not self.hi > self.lo):
            raise ValueError(f"BSplineAxis needs n = 1, or n >= 4 and hi > lo; got n={self.n}, [{self.lo}, {self.hi}].")

    @property
    def _n_spline(self):
        return self.n + (self.even and self.n > 1)

    @property
    def step(self) -> float:
        """Distance of the knots."""
        return (self.hi - self.lo) / max(self._n_spline - 3, 1)

    @property
    def centers(self) -> np.ndarray:
        """Position of each spline's maximum, shape (n,); coefficients linear in it make a straight line."""
        if self.n == 1:
            return np.array([0.5 * (self.lo + self.hi)])
        return self.lo + self.step * (np.arange(self._n_spline) - 1)[-self.n :]

    def basis(self, x) -> np.ndarray:
        """Values of all splines.

        Parameters
        ----------
        x : array_like, shape (m,)

        Returns
        -------
        basis : `numpy.ndarray`, shape (m, n)
        """
        x = np.asarray(x, dtype=float)
        if self.n == 1:
            return np.ones((len(x), 1))
        # many times faster than scipy's at many positions
        position = (np.clip(x, self.lo, self.hi) - self.lo) / self.step
        first = np.clip(position.astype(int), 0, self._n_spline - 4)
        u = position - first
        v = 1 - u
        out = np.zeros((len(x), self._n_spline))
        rows = np.arange(len(x))
        for k, weight in enumerate([v**3 / 6, 2 / 3 - u * u * (2 - u) / 2, 2 / 3 - v * v * (2 - v) / 2, u**3 / 6]):
            out[rows, first + k] = weight
        if self.even:
            out[:, 2] += out[:, 0]
        return out[:, -self.n :]

    def derivative(self, x) -> np.ndarray:
        """First derivative of all splines, zero outside the range, shape (m, n)."""
        x = np.asarray(x, dtype=float)
        if self.n == 1:
            return np.zeros((len(x), 1))
        knots = self.lo + self.step * np.arange(-3, self._n_spline + 1)
        splines = np.eye(self._n_spline)
        if self.even:
            splines[0, 2] = 1
        inside = (x >= self.lo) & (x <= self.hi)
        return inside[:, None] * BSpline(knots, splines[:, -self.n :], 3).derivative()(x)


def difference_penalty(n: int, order: int = 2) -> np.ndarray:
    """Penalty matrix D'D of the squared differences of the given order, shape (n, n); zero where n <= order."""
    if n <= order:
        return np.zeros((n, n))
    d = np.diff(np.eye(n), order, axis=0)
    return d.T @ d


def smooth_covariance(width: float, n: int) -> np.ndarray:
    """Covariance of n coefficients of one width, shape (n, n), of which neighbours go together."""
    distance = np.subtract.outer(np.arange(n), np.arange(n)) / _NEIGHBOURS
    # a little of each coefficient is its own, or the matrix could not be inverted
    return width**2 * (0.98 * np.exp(-0.5 * distance**2) + 0.02 * np.eye(n))


def contract(array: np.ndarray, matrices: list[np.ndarray]) -> np.ndarray:
    """Apply one matrix along each axis.

    Parameters
    ----------
    array : `numpy.ndarray`, shape (m_1, ..., m_d)
    matrices : list of `numpy.ndarray`, shapes (m_i, k_i)

    Returns
    -------
    result : `numpy.ndarray`, shape (k_1, ..., k_d)
        ``sum_m array[m_1, ...] * matrices[0][m_1, k_1] * ...``
    """
    for matrix in matrices:
        array = np.tensordot(array, matrix, axes=(0, 0))
    return array


def row_tensor(basis: np.ndarray, other: np.ndarray | None = None) -> np.ndarray:
    """Products of all pairs of columns, row by row: shapes (m, k), (m, l) give (m, k l)."""
    other = basis if other is None else other
    return (basis[:, :, None] * other[:, None, :]).reshape(len(basis), -1)


def tensor_information(weights: np.ndarray, rows: list[np.ndarray]) -> np.ndarray:
    """Weighted cross-product X'WX of a tensor-product basis, without X.

    Parameters
    ----------
    weights : `numpy.ndarray`, shape (m_1, ..., m_d)
    rows : list of `numpy.ndarray`, shapes (m_i, k_i ** 2)
        `row_tensor` of the basis of each axis.

    Returns
    -------
    information : `numpy.ndarray`, shape (k, k), k the product of all k_i
    """
    sizes = [round(np.sqrt(r.shape[1])) for r in rows]
    dim, p = len(sizes), int(np.prod(sizes))
    out = contract(weights, rows).reshape([k for n in sizes for k in (n, n)])
    return out.transpose([*range(0, 2 * dim, 2), *range(1, 2 * dim, 2)]).reshape(p, p)


def axis_penalties(penalties: list[np.ndarray]) -> list[np.ndarray]:
    """Each axis' penalty carried to the tensor product (Kronecker products with identities), shapes (k, k)."""
    eyes = [np.eye(len(p)) for p in penalties]
    return [reduce(np.kron, [p if i == j else eyes[j] for j in range(len(eyes))]) for i, p in enumerate(penalties)]


def _penalty_matrix(smoothing, penalties: list[np.ndarray], ridge: float) -> np.ndarray:
    """Sum of the penalties times their smoothing parameters, plus a ridge for their common null space."""
    return sum(s * p for s, p in zip(smoothing, penalties, strict=True)) + ridge * np.eye(len(penalties[0]))


def _penalty_eigenvalues(penalties: list[np.ndarray]) -> list[np.ndarray]:
    """Eigenvalues of each axis' penalty on the common eigenbasis of the tensor product, shapes (k,)."""
    dim, sizes = len(penalties), [len(p) for p in penalties]
    out = []
    for i, p in enumerate(penalties):
        e = np.linalg.eigvalsh(p)
        e[e < 1e-9 * max(e.max(), 1e-300)] = 0
        out.append(np.broadcast_to(e.reshape([-1 if j == i else 1 for j in range(dim)]), sizes).ravel())
    return out


def update_smoothing(
    smoothing: np.ndarray, decided: np.ndarray, roughness: np.ndarray, limits: tuple[float, float] = _SMOOTHING_RANGE
) -> np.ndarray:
    """One generalised Fellner-Schall update of smoothing parameters.

    At the maximum of the marginal likelihood the smoothing parameter times the roughness is the number of directions
    that the data decide.

    Parameters
    ----------
    smoothing : `numpy.ndarray`, shape (d,)
    decided : `numpy.ndarray`, shape (d,)
        Directions that the data decide: all that a penalty acts on, without those that it decides itself (smoothing
        parameter times the trace of the posterior covariance times the penalty matrix).
    roughness : `numpy.ndarray`, shape (d,)
        Of the coefficients: the quadratic form of the penalty matrix.
    limits : tuple of float
        Of a smoothing parameter.

    Returns
    -------
    smoothing : `numpy.ndarray`, shape (d,)
    """
    new = np.maximum(decided, 1e-9) / np.maximum(roughness, 1e-12)
    # far from the maximum the update would jump too far, as where a curve is all but straight
    return np.clip(np.clip(new, smoothing / _SMOOTHING_STEP, smoothing * _SMOOTHING_STEP), *limits)


def _update_axes(smoothing, eigenvalues, penalties, coefficients, covariance):
    """`update_smoothing` for the axes of a tensor product; ``eigenvalues`` are those of `_penalty_eigenvalues`."""
    total = sum(s * e for s, e in zip(smoothing, eigenvalues, strict=True))
    penalised = total > 1e-12 * total.max()
    rank = np.array([(e[penalised] / total[penalised]).sum() for e in eigenvalues])
    decided = smoothing * (rank - [np.sum(covariance * p) for p in penalties])
    roughness = np.array([coefficients @ p @ coefficients for p in penalties])
    acts = np.array([e.any() for e in eigenvalues])
    return np.where(acts, update_smoothing(smoothing, decided, roughness), smoothing)


@dataclass(frozen=True)
class _PenalisedFit:
    """Result of a penalised Poisson fit.

    Attributes
    ----------
    coefficients : `numpy.ndarray`, shape (k_1, ..., k_d)
    covariance : `numpy.ndarray`, shape (k, k)
    smoothing : `numpy.ndarray`, shape (d,)
    converged : bool
    """

    coefficients: np.ndarray
    covariance: np.ndarray
    smoothing: np.ndarray
    converged: bool


@dataclass(frozen=True)
class NewtonSteps:
    """When the steps of a penalised fit are cut, when smoothing parameters are learned, and when both are at their end.

    Attributes
    ----------
    max_rounds : int
    max_step : float
        Largest change of a coefficient in one step.
    tolerance : float
        Change of a coefficient at convergence, where the smoothing parameters are as they were.
    learn_below : float
        Change of a coefficient below which the smoothing parameters are updated,
    learn_rounds : int
        up to this round.
    learned : tuple of float
        Change of a coefficient, and of the log of a smoothing parameter, at convergence where these were updated.
    """

    max_rounds: int
    max_step: float
    tolerance: float
    learn_below: float
    learn_rounds: int
    learned: tuple[float, float]


def fit_penalised(
    start: np.ndarray,
    smoothing: np.ndarray,
    equations: Callable,
    penalty: Callable,
    update: Callable,
    steps: NewtonSteps,
) -> _PenalisedFit:
    """Penalised maximum likelihood: Newton steps, with updates of the smoothing parameters between them.

    Parameters
    ----------
    start : `numpy.ndarray`, shape (k,)
        First coefficients.
    smoothing : `numpy.ndarray`, shape (d,)
        First smoothing parameters.
    equations : callable
        Gradient, shape (k,), and information, shape (k, k), of the likelihood, from coefficients.
    penalty : callable
        Penalty matrix, shape (k, k), from smoothing parameters.
    update : callable
        New smoothing parameters, from those before, coefficients and the Cholesky factor of the penalised information.
    steps : `NewtonSteps`
    """
    c, converged, damping, last = start.copy(), False, 1.0, np.zeros(len(start))
    for k in range(steps.max_rounds):
        gradient, information = equations(c)
        matrix = penalty(smoothing)
        factor = cho_factor(information + matrix)
        step = cho_solve(factor, gradient - matrix @ c)
        size = np.abs(step).max()
        if k > max(steps.learn_rounds, _LATE_ROUND) and step @ last < 0:
            # the information is that of what is expected, not the curvature: steps may swing for ever
            damping = max(0.5 * damping, _LEAST_DAMPING)
        c, last = c + damping * step * min(1, steps.max_step / max(size, 1e-300)), step
        drift = 0.0
        if size < steps.learn_below and k < steps.learn_rounds:
            new = update(smoothing, c, factor)
            drift, smoothing = np.abs(np.log(new / smoothing)).max(), new
        if size < (steps.learned[0] if drift > 0 else steps.tolerance) and drift < steps.learned[1]:
            converged = True
            break
    return _PenalisedFit(c, cho_solve(factor, np.eye(len(c))), smoothing, converged)


def fit_tensor_spline(
    counts: np.ndarray,
    offset: np.ndarray,
    bases: list[np.ndarray],
    penalties: list[np.ndarray],
    *,
    smoothing=None,
    start: np.ndarray | None = None,
    estimate_smoothing: bool = True,
    ridge: float = 1e-6,
    max_rounds: int = 30,
    tolerance: float = 1e-6,
) -> _PenalisedFit:
    """Penalised Poisson fit ``counts ~ Poisson(offset * exp(tensor-product spline))``.

    Penalised iteratively reweighted least squares; the smoothing parameters are updated between the steps.

    Parameters
    ----------
    counts, offset : `numpy.ndarray`, shape (m_1, ..., m_d)
    bases : list of `numpy.ndarray`, shapes (m_i, k_i)
    penalties : list of `numpy.ndarray`, shapes (k_i, k_i)
    smoothing : array_like, shape (d,), optional
        First (or fixed) smoothing parameters, 10 for every axis by default.
    start : `numpy.ndarray`, shape (k_1, ..., k_d), optional
        First coefficients.
    estimate_smoothing : bool
        Whether smoothing parameters are estimated.
    ridge : float
        Small penalty on all coefficients, for directions without data.
    max_rounds : int
        Most Newton steps.
    tolerance : float
        Largest change of a coefficient at convergence.
    """
    sizes = [b.shape[1] for b in bases]
    rows, full, eigenvalues = [row_tensor(b) for b in bases], axis_penalties(penalties), _penalty_eigenvalues(penalties)
    transposed = [b.T for b in bases]

    def equations(c):
        mu = offset * np.exp(contract(c.reshape(sizes), transposed))
        return contract(counts - mu, bases).ravel(), tensor_information(mu, rows)

    def update(smoothing, c, factor):
        return _update_axes(smoothing, eigenvalues, full, c, cho_solve(factor, np.eye(len(c))))

    steps = NewtonSteps(
        max_rounds=max_rounds,
        max_step=2.0,
        tolerance=tolerance,
        learn_below=0.5,
        learn_rounds=max_rounds if estimate_smoothing else 0,
        learned=(1e3 * tolerance, 0.02),
    )
    if start is None:
        start = np.full(sizes, np.log(max(counts.sum(), 0.5) / offset.sum()))
    smoothing = np.full(len(sizes), 10.0) if smoothing is None else np.array(smoothing, dtype=float)
    fit = fit_penalised(start.ravel(), smoothing, equations, lambda s: _penalty_matrix(s, full, ridge), update, steps)
    return replace(fit, coefficients=fit.coefficients.reshape(sizes))
