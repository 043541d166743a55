"""The energy axis of the spline model: log energy in units of the run's threshold, with knots dense around it.

The trigger threshold of a run is sharp, rising by orders of magnitude within 0.1 dex, and it moves with zenith angle
and throughput. The rate is a smooth function of the *scaled* log energy, ``u = log(E / TeV) + scaling``, where the
scaling moves the thresholds of all runs onto each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.special import expit

from gammapy_accmaker.models.bsplines import BSplineAxis

_GRID_STEP = 0.02  # in u; between its nodes the log rate is linear
_SOFTNESS = 0.1  # in u; over which the density of knots changes
_MARGIN = 0.5  # in u; of the grid beyond the trained range, so that a clamped shift stays differentiable


@dataclass(frozen=True)
class ScaledEnergyAxis:
    """Cubic B-splines in scaled log energy u, dense in one interval and coarse outside of it.

    Parameters
    ----------
    lo, hi : float
        Range of u; beyond it values are clamped.
    dense_lo, dense_hi : float
        Interval of dense knots.
    dense_step, coarse_step : float
        Distances of the knots in u.
    """

    lo: float
    hi: float
    dense_lo: float
    dense_hi: float
    dense_step: float = 0.1
    coarse_step: float = 0.4

    def _warp(self, u):
        """Number of knots up to u: the axis along which the knots are uniform."""
        extra = 1 / self.dense_step - 1 / self.coarse_step
        low, high = (u - self.dense_lo) / _SOFTNESS, (u - self.dense_hi) / _SOFTNESS
        return u / self.coarse_step + extra * _SOFTNESS * (np.logaddexp(0, low) - np.logaddexp(0, high))

    def _density(self, u):
        """Knots per unit of u, the derivative of `_warp`."""
        extra = 1 / self.dense_step - 1 / self.coarse_step
        rise, fall = expit((u - self.dense_lo) / _SOFTNESS), expit((u - self.dense_hi) / _SOFTNESS)
        return 1 / self.coarse_step + extra * (rise - fall)

    @cached_property
    def splines(self) -> BSplineAxis:
        """The B-splines along the warped axis, where their knots are uniform."""
        lo, hi = self._warp(self.lo), self._warp(self.hi)
        return BSplineAxis(lo, hi, max(int(np.ceil(hi - lo)) + 3, 4))

    @property
    def n(self) -> int:
        """Number of splines."""
        return self.splines.n

    @cached_property
    def centers(self) -> np.ndarray:
        """Value of u at which each spline is largest, shape (n,)."""
        u = np.linspace(self.lo - 10 * self.coarse_step, self.hi + 10 * self.coarse_step, 2000)
        return np.interp(self.splines.centers, self._warp(u), u)

    def basis(self, u) -> np.ndarray:
        """Values of the splines, shape (len(u), n); u is clamped to the range."""
        return self.splines.basis(self._warp(np.clip(u, self.lo, self.hi)))

    def derivative(self, u) -> np.ndarray:
        """Derivatives of the splines by u, 0 outside the range, shape (len(u), n)."""
        u = np.asarray(u, dtype=float)
        inside = (u >= self.lo) & (u <= self.hi)
        return self.splines.derivative(self._warp(np.clip(u, self.lo, self.hi))) * (self._density(u) * inside)[:, None]

    @cached_property
    def grid(self) -> np.ndarray:
        """Uniform nodes in u between which the log rate is linear, shape (m,)."""
        return np.arange(self.lo - _MARGIN, self.hi + _MARGIN + _GRID_STEP, _GRID_STEP)

    @cached_property
    def grid_basis(self) -> np.ndarray:
        """`basis` at the nodes, shape (m, n)."""
        return self.basis(self.grid)

    @cached_property
    def grid_derivative(self) -> np.ndarray:
        """`derivative` at the nodes, shape (m, n)."""
        return self.derivative(self.grid)

    @cached_property
    def differentiate(self) -> np.ndarray:
        """Matrix from coefficients to those of the spline nearest to the derivative, shape (n, n)."""
        inside = (self.grid >= self.lo) & (self.grid <= self.hi)
        basis = self.grid_basis[inside]
        return np.linalg.solve(basis.T @ basis + 1e-9 * np.eye(self.n), basis.T @ self.grid_derivative[inside])

    def interpolate(self, u) -> np.ndarray:
        """`grid_basis` between its nodes, as the log rate is, shape (len(u), n)."""
        node, fraction = self.locate(np.asarray(u, dtype=float))
        low, fraction = self.grid_basis[node], fraction[:, None]
        return low + (self.grid_basis[node + 1] - low) * fraction

    def locate(self, u, shift=0.0) -> tuple[np.ndarray, np.ndarray]:
        """Node below each u + shift, of shapes that broadcast, and the fraction of the way to the next."""
        position, moved = (u - self.grid[0]) / _GRID_STEP, np.asarray(shift) / _GRID_STEP
        last = len(self.grid) - 1 - 1e-9  # the last node is the start of no interval
        inside = 0 <= position.min() + moved.min() and position.max() + moved.max() <= last
        position = position + moved
        if not inside:
            np.clip(position, 0, last, out=position)
        node = np.floor(position)
        position -= node
        return node.astype(np.int64), position
