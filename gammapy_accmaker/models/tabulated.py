"""Tables of a rate over energy and offset, or over energy, FOV_LON and FOV_LAT, such as somebody's background IRF.

They are read as gammapy reads an IRF: the logarithm is linear between the bin centres (in log energy), is continued to
the outer edges, and there is nothing beyond. A bin without a rate has no logarithm: next to one the rate itself is
linear.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from gammapy_accmaker.camera.bins import TEV_IN_MEV, FovBins, check_edges
from gammapy_accmaker.errors import InputError
from gammapy_accmaker.models.base import ScalableModel

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
