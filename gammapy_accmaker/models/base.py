"""What every acceptance model offers, on plain arrays, and the integral of a model over energy bins.

Energies are in TeV, field-of-view coordinates in deg, rates in s-1 MeV-1 sr-1 per ontime.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np

__all__ = ["TEV_IN_MEV", "RateModel", "integrate_power_law", "integrate_rate"]

TEV_IN_MEV = 1e6


class RateModel(ABC):
    """Fitted acceptance: the background rate over energy and field of view.

    Attributes
    ----------
    energy_edges : `~numpy.ndarray`
        Edges in TeV within which the model was trained; the rate outside is 0.
    offset_max : float
        Offset in deg beyond which the rate is 0.
    half_width : float
        Offset in deg that a radial model covers, half the side of the square that another one covers.
    is_radial : bool
        Whether the rate depends on the offset alone.
    zenith_range : tuple of float, or None
        Trained range of cos zenith; None where the model does not depend on it.
    """

    energy_edges: np.ndarray
    offset_max: float
    half_width: float
    is_radial: bool
    zenith_range: tuple[float, float] | None

    @abstractmethod
    def rate_grid(self, energy: np.ndarray, fov_lon: np.ndarray, fov_lat: np.ndarray, cos_zenith: float) -> np.ndarray:
        """Rate at each of n energies and m positions, shape (n, m)."""

    @abstractmethod
    def integral_grid(
        self, energy_edges: np.ndarray, fov_lon: np.ndarray, fov_lat: np.ndarray, cos_zenith: float
    ) -> np.ndarray:
        """Rate integrated over each of n energy bins, in s-1 sr-1, shape (n, m); what is not covered adds nothing."""

    @abstractmethod
    def relative_error_grid(
        self, energy: np.ndarray, fov_lon: np.ndarray, fov_lat: np.ndarray, cos_zenith: float
    ) -> np.ndarray:
        """One standard deviation of the logarithm of the rate, from the counts of the fit, shape (n, m)."""

    @abstractmethod
    def to_arrays(self) -> dict[str, np.ndarray]:
        """Serial form, exact, made of arrays alone."""

    @classmethod
    @abstractmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> RateModel:
        """The inverse of `to_arrays`."""

    def rate(self, energy, fov_lon, fov_lat, cos_zenith=1.0, azimuth=None) -> np.ndarray:
        """Rate at positions that broadcast against each other."""
        arrays = np.broadcast_arrays(energy, fov_lon, fov_lat, cos_zenith)
        energy, lon, lat, cos_zenith = (np.ravel(a).astype(float) for a in arrays)
        out = np.empty(energy.shape)
        energies, which = np.unique(energy, return_inverse=True)
        for z in np.unique(cos_zenith):
            for k in np.unique(which[cos_zenith == z]):
                here = (which == k) & (cos_zenith == z)
                out[here] = self.rate_grid(energies[k : k + 1], lon[here], lat[here], float(z))[0]
        return out.reshape(arrays[0].shape)


def integrate_power_law(values: np.ndarray, energy: np.ndarray) -> np.ndarray:
    """Integral between neighbouring energies of a function that is a power law between them.

    Parameters
    ----------
    values : `~numpy.ndarray`
        Function at the energies, shape (n, ...), >= 0.
    energy : `~numpy.ndarray`
        Energies, shape (n,), increasing.

    Returns
    -------
    integral : `~numpy.ndarray`
        Shape (n - 1, ...).
    """
    width = np.log(energy[1:] / energy[:-1]).reshape(-1, *[1] * (values.ndim - 1))
    # of E dN/dE over log E: the mean of an exponential between its ends
    ends = values * energy.reshape(-1, *[1] * (values.ndim - 1))
    low, high = ends[:-1], ends[1:]
    with np.errstate(divide="ignore", invalid="ignore"):
        slope = np.log(high / low)
        mean = (high - low) / slope
    nearly_flat = ~(np.abs(slope) > 1e-6)
    mean = np.where(nearly_flat, 0.5 * (low + high), mean)
    return width * np.where((low > 0) & (high > 0), mean, 0.0)


def integrate_rate(evaluate, energy_edges: np.ndarray, knots: np.ndarray) -> np.ndarray:
    """Integral of a rate over energy bins.

    Parameters
    ----------
    evaluate : callable
        From energies in TeV, shape (n,), to rates in s-1 MeV-1 sr-1, shape (n, ...).
    energy_edges : `~numpy.ndarray`
        Edges of the bins in TeV, shape (nbin + 1,).
    knots : `~numpy.ndarray`
        Energies at which the integration is split; the first and the last bound the trained range, and what lies
        outside of it contributes nothing.

    Returns
    -------
    integral : `~numpy.ndarray`
        In s-1 sr-1, shape (nbin, ...).
    """
    inside = energy_edges[(energy_edges > knots[0]) & (energy_edges < knots[-1])]
    within = knots[(knots >= energy_edges[0]) & (knots <= energy_edges[-1])]
    nodes = np.unique(np.concatenate([inside, within]))
    # edges that meet a knot up to rounding would leave a sliver between them
    nodes = nodes[np.diff(nodes, prepend=-np.inf) > 1e-9 * nodes]
    if len(nodes) < 2:
        shape = evaluate(knots[:1]).shape[1:]
        return np.zeros((len(energy_edges) - 1, *shape))
    pieces = integrate_power_law(evaluate(nodes), nodes) * TEV_IN_MEV
    middle = np.sqrt(nodes[1:] * nodes[:-1])
    bins = np.searchsorted(energy_edges, middle) - 1
    total = np.zeros((len(energy_edges) - 1, *pieces.shape[1:]))
    np.add.at(total, bins, pieces)
    return total


class ScaledModel(RateModel):
    """A model times the norm of one run.

    ``norm_spread``: relative error of the norm. ``tilt_spread``: of the spectral index, NaN since it is not fitted.
    """

    tilt_spread = np.nan

    def __init__(self, model: RateModel, norm: float, norm_error: float = 0.0):
        self.model, self.norm, self.norm_error = model, norm, norm_error
        self.energy_edges, self.offset_max = model.energy_edges, model.offset_max
        self.half_width, self.is_radial, self.zenith_range = model.half_width, model.is_radial, model.zenith_range

    @property
    def norm_spread(self) -> float:
        return self.norm_error / self.norm

    def rate_grid(self, energy, fov_lon, fov_lat, cos_zenith=1.0):
        return self.norm * self.model.rate_grid(energy, fov_lon, fov_lat, cos_zenith)

    def integral_grid(self, energy_edges, fov_lon, fov_lat, cos_zenith=1.0):
        return self.norm * self.model.integral_grid(energy_edges, fov_lon, fov_lat, cos_zenith)

    def relative_error_grid(self, energy, fov_lon, fov_lat, cos_zenith=1.0):
        return np.hypot(self.model.relative_error_grid(energy, fov_lon, fov_lat, cos_zenith), self.norm_spread)

    def to_arrays(self):
        return self.model.to_arrays() | {"norm": np.array(self.norm)}

    @classmethod
    def from_arrays(cls, arrays):
        raise TypeError("ScaledModel: one run's model is not stored; store the model and the run's norm")
