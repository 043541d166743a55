"""Models that are tables, numbers in place of code.

`LogTable` is a positive function on one, two or three axes as splines of its logarithm, for functions that a user gave.
`TabulatedModel` is a rate over energy and offset, or over energy, FOV_LON and FOV_LAT, such as somebody's background
IRF. It is read as gammapy reads an IRF: the logarithm is linear between the bin centres (in log energy), is continued
to the outer edges, and there is nothing beyond. A bin without a rate has no logarithm: next to one the rate itself is
linear.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy.interpolate import BSpline, make_interp_spline
from scipy.sparse import csr_array

from gammapy_accmaker.camera.bins import TEV_IN_MEV, FovBins, check_edges
from gammapy_accmaker.errors import InputError
from gammapy_accmaker.models.base import ScalableModel

_FLOOR = 1e-30  # of the largest value: what stands for 0


def table_nodes(low: float, high: float, step: float) -> np.ndarray:
    """Evenly spaced nodes from low to high, at most a step apart and at least 5."""
    return np.linspace(low, high, max(int(np.ceil((high - low) / step - 1e-9)) + 1, 5))


@dataclass(frozen=True, eq=False)
class LogTable:
    """Cubic splines of a logarithm through the values at nodes; lines where some value is 0.

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


_ROUNDING = 1e-9  # relative, by which a dataset's first and last energy may stick out


@dataclass(frozen=True)
class TabulatedModel(ScalableModel):
    """Rate between the bins of a table.

    Attributes
    ----------
    energy_edges : `~numpy.ndarray`
        In TeV, > 0, shape (n + 1,).
    fov : `FovBins`
    values : `~numpy.ndarray`
        Rate in s-1 MeV-1 sr-1 at the centre of each bin, >= 0, shape (n, m) or (n, m_lon, m_lat).
    """

    energy_edges: np.ndarray
    fov: FovBins
    values: np.ndarray

    kind = "tabulated"
    zenith_range = None

    def __post_init__(self):
        object.__setattr__(self, "energy_edges", check_edges("energy edges", self.energy_edges))
        shape = (len(self.energy_edges) - 1, *self.fov.shape)
        if self.energy_edges[0] <= 0:
            raise InputError(f"energy edges: got {self.energy_edges[0]} TeV, but energies > 0 are needed")
        if self.values.shape != shape:
            raise InputError(f"rates: got the shape {self.values.shape}, but {shape} is needed for these edges")
        if not np.all(np.isfinite(self.values)) or np.any(self.values < 0) or not self.values.any():
            raise InputError("rates: got values that are not finite, negative or all 0; set empty bins to 0")

    @property
    def is_radial(self) -> bool:
        return self.fov.is_radial

    @property
    def half_width(self) -> float:
        return float(max(np.abs(e).max() for e in self.fov.edges))

    @property
    def offset_max(self) -> float:
        return self.fov.offset_max

    @cached_property
    def _log_energy(self):
        return 0.5 * (np.log(self.energy_edges[1:]) + np.log(self.energy_edges[:-1]))

    @cached_property
    def _flat(self):
        """Rates, their logarithms with 0 for an empty bin, and whether a bin is empty; shape (energy, position)."""
        rate = self.values.reshape(len(self.values), -1)
        return rate, np.log(np.where(rate > 0, rate, 1.0)), (rate <= 0).astype(float)

    def _at_positions(self, fov_lon, fov_lat):
        """Rate at the energies of the table and at positions, shape (n, len(fov_lon))."""
        # there is no rate beyond, and an exponential must not overflow
        ends = [edges[[0, -1]] for edges in self.fov.edges]
        weights = self.fov.weights_at(fov_lon, fov_lat, ends)
        rate, log_rate, empty = self._flat
        out = np.exp((weights @ log_rate.T).T)
        beside = (abs(weights) @ empty.T).T > 0
        if beside.any():
            out = np.where(beside, np.maximum((weights @ rate.T).T, 0), out)
        return np.where(self.fov.within(fov_lon, fov_lat, ends), out, 0.0)

    def rate_grid(self, energy, fov_lon, fov_lat, cos_zenith=np.nan):
        return self._at_energies(self._at_positions(fov_lon, fov_lat), np.asarray(energy, dtype=float))

    def _segment(self, energy):
        """Number of the centre before each energy, and how far it is on the way to the next, in log energy."""
        nodes, x = self._log_energy, np.log(energy)
        left = np.clip(np.searchsorted(nodes, x) - 1, 0, max(len(nodes) - 2, 0))
        right = np.minimum(left + 1, len(nodes) - 1)
        share = (x - nodes[left]) / np.where(right > left, nodes[right] - nodes[left], np.inf)
        return left, right, share[:, None]

    def _at_energies(self, rate, energy):
        low, high = self.energy_edges[[0, -1]]
        inside = (energy >= low * (1 - _ROUNDING)) & (energy <= high * (1 + _ROUNDING))
        left, right, share = self._segment(energy)
        first, last = rate[left], rate[right]
        both = (first > 0) & (last > 0)
        log_first, log_last = np.log(np.where(both, first, 1)), np.log(np.where(both, last, 1))
        power_law = np.exp(log_first + share * (log_last - log_first))
        # a line is not continued beyond the last centre
        linear = first + np.clip(share, 0, 1) * (last - first)
        return np.where(inside[:, None], np.where(both, power_law, linear), 0.0)

    def integral_grid(self, energy_edges, fov_lon, fov_lat, cos_zenith=np.nan):
        rate = self._at_positions(fov_lon, fov_lat)
        edges = np.clip(energy_edges, *self.energy_edges[[0, -1]])
        nodes = np.unique(np.concatenate([edges, np.exp(self._log_energy), self.energy_edges[[0, -1]]]))
        left, right, _ = self._segment(np.sqrt(nodes[1:] * nodes[:-1]))
        is_power_law = (rate[left] > 0) & (rate[right] > 0)
        pieces = _between_nodes(nodes, self._at_energies(rate, nodes), is_power_law)
        # 0 where an edge of the dataset lies beyond the table
        sums = np.concatenate([np.zeros((1, pieces.shape[1])), np.cumsum(pieces, axis=0)])
        return np.diff(sums[np.searchsorted(nodes, edges)], axis=0) * TEV_IN_MEV

    def relative_error_grid(self, energy, fov_lon, fov_lat, cos_zenith=np.nan):
        """Zeros: a table has no errors. That of a run's norm comes on top."""
        return np.zeros((len(energy), len(fov_lon)))

    def shifted(self, shift, reach):
        # of a table there is nothing beyond its energies
        return replace(self, energy_edges=self.energy_edges * np.exp(-shift), values=self.values * np.exp(shift))

    def to_arrays(self):
        return self.fov.to_arrays() | {"energy_edges": self.energy_edges, "values": self.values}

    @classmethod
    def from_arrays(cls, arrays):
        return cls(arrays["energy_edges"], FovBins.from_arrays(arrays), arrays["values"])


def _between_nodes(energy, rate, is_power_law):
    """Integrals between neighbouring energies of power laws, elsewhere of lines in log energy; shape (n - 1, m)."""
    width = np.diff(np.log(energy))[:, None]
    first, last = rate[:-1] * energy[:-1, None], rate[1:] * energy[1:, None]
    slope = np.log(np.where(is_power_law, last, 1) / np.where(is_power_law, first, 1))
    # (e^x - 1) / x, whose limit is 1
    growth = np.where(np.abs(slope) > 1e-8, np.expm1(slope) / np.where(slope == 0, 1, slope), 1 + 0.5 * slope)
    # E (a + b log E) integrates to the energy times the rate, less b times the energy
    step = np.diff(energy)[:, None]
    line = last - first - (rate[1:] - rate[:-1]) / np.where(width > 0, width, np.inf) * step
    return np.where(is_power_law, first * width * growth, np.maximum(line, 0))
