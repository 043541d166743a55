"""What stands for a function that a user gave in a model file: numbers in place of code."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.interpolate import BSpline, make_interp_spline
from scipy.sparse import csr_array

_FLOOR = 1e-30  # of the largest value: what stands for 0


def table_nodes(low: float, high: float, step: float) -> np.ndarray:
    """Evenly spaced nodes from low to high, at most a step apart and at least 5."""
    return np.linspace(low, high, max(int(np.ceil((high - low) / step - 1e-9)) + 1, 5))


@dataclass(frozen=True, eq=False)
class LogTable:
    """A positive function as cubic splines of its logarithm through the values at nodes; lines where some value is 0.

    Attributes
    ----------
    nodes : tuple of `~numpy.ndarray`
        Of log energy, of (fov_lon, fov_lat), or of all three.
    log_values : `~numpy.ndarray`
        At the nodes.
    """

    nodes: tuple[np.ndarray, ...]
    log_values: np.ndarray

    @classmethod
    def of_values(cls, nodes, values: np.ndarray) -> LogTable:
        """Table of values that are not negative; what is 0 is cut off within one step."""
        return cls(tuple(nodes), np.log(np.maximum(values, _FLOOR * np.max(values))))

    @cached_property
    def _degree(self):
        return 3 if np.ptp(self.log_values) < -0.9 * np.log(_FLOOR) else 1

    @cached_property
    def _splines(self):
        """Knots of each axis, and the coefficients."""
        coefficients, knots = self.log_values, []
        for axis, x in enumerate(self.nodes):
            spline = make_interp_spline(x, np.moveaxis(coefficients, axis, 0), k=self._degree)
            knots.append(spline.t)
            coefficients = np.moveaxis(spline.c, 0, axis)
        return knots, coefficients

    def _design(self, axis, x):
        x = np.clip(x, *self.nodes[axis][[0, -1]])
        return BSpline.design_matrix(x, self._splines[0][axis], self._degree)

    def grid(self, log_energy: np.ndarray, fov_lon: np.ndarray, fov_lat: np.ndarray) -> np.ndarray:
        """Values at n energies and m positions, shape (n, 1), (1, m) or (n, m), clamped to the nodes."""
        coefficients = self._splines[1]
        if len(self.nodes) == 1:
            return np.exp(self._design(0, log_energy) @ coefficients)[:, None]
        lon, lat = (self._design(len(self.nodes) - 2 + k, x) for k, x in enumerate((fov_lon, fov_lat)))
        weights = _outer_rows(lon, lat, self._degree + 1)
        flat = coefficients.reshape(-1, weights.shape[1])
        if len(self.nodes) == 3:
            flat = self._design(0, log_energy) @ flat
        return np.exp((weights @ flat.T).T)


def _outer_rows(first, second, n):
    """Product of each row of one sparse matrix with the same row of another; each has n entries a row."""
    rows = first.shape[0]
    i, j = (np.asarray(m.indices).reshape(rows, n) for m in (first, second))
    a, b = (m.data.reshape(rows, n) for m in (first, second))
    columns = (i[:, :, None].astype(np.int64) * second.shape[1] + j[:, None, :]).reshape(rows, -1)
    values = (a[:, :, None] * b[:, None, :]).ravel()
    shape = (rows, first.shape[1] * second.shape[1])
    return csr_array((values, columns.ravel(), np.arange(rows + 1) * n * n), shape=shape)
