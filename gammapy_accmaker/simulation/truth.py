"""Analytic truth of the simulated background."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import gamma, gammainc

__all__ = ["BackgroundTruth", "TEV_IN_MEV", "energy_quadrature", "offset_of"]

TEV_IN_MEV = 1e6


def energy_quadrature(edges) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Energies in TeV, weights in MeV and bin numbers of a Gauss-Legendre rule in log energy.

    Each bin is cut into panels of at most 0.2 in ln E, narrow enough for five nodes to follow the threshold.
    """
    node, weight = np.polynomial.legendre.leggauss(5)
    edges = np.log(np.asarray(edges, dtype=float))
    energy, weights, number = [], [], []
    for k, (low, high) in enumerate(zip(edges[:-1], edges[1:], strict=True)):
        panels = np.linspace(low, high, int(np.ceil((high - low) / 0.2)) + 1)
        half = 0.5 * np.diff(panels)[:, None]
        energy.append(np.exp((panels[:-1, None] + half * (1 + node)).ravel()))
        weights.append((half * weight).ravel() * energy[-1] * TEV_IN_MEV)
        number.append(np.full(len(energy[-1]), k))
    return np.concatenate(energy), np.concatenate(weights), np.concatenate(number)


def offset_of(fov_lon, fov_lat) -> np.ndarray:
    """Offset in deg of positions in deg."""
    lon, lat = np.deg2rad(fov_lon), np.deg2rad(fov_lat)
    # Not arccos(cos cos): that loses all digits at the centre.
    return np.rad2deg(np.arctan2(np.hypot(np.cos(lat) * np.sin(lon), np.sin(lat)), np.cos(lat) * np.cos(lon)))


@dataclass(frozen=True)
class BackgroundTruth:
    """Analytic truth of the hadronic background, in the camera frame (ALTAZ), per ontime.

    A power law above a sharp threshold that grows with zenith, times a generalised Gaussian in offset whose width
    grows with energy, times ``1 + a(E) fov_lon + b(E) fov_lat``, which has mean 1 on every ring. Positions are in
    deg with gammapy's signs: FOV_LON grows with decreasing azimuth, FOV_LAT with altitude. All methods take plain
    arrays that broadcast against each other.

    Parameters
    ----------
    scale : float
        Factor on the rate; 1 gives about 6 events per s at zenith.
    asymmetric : bool
        Whether the camera has a gradient.
    zenith_dependent : bool
        If False, the rate at every zenith angle is that at zenith.
    offset_max : float
        Edge of the camera in deg: the rate is 0 beyond.
    energy_min, energy_max : float
        Range in TeV of reconstructed energies that the event selection keeps. The rate itself goes on outside.
    """

    scale: float = 1.0
    asymmetric: bool = True
    zenith_dependent: bool = True
    offset_max: float = 3.0
    energy_min: float = 0.05
    energy_max: float = 100.0

    def threshold(self, cos_zenith) -> np.ndarray:
        """Energy threshold in TeV."""
        return 0.15 * (np.asarray(cos_zenith, dtype=float) ** -2 if self.zenith_dependent else np.ones_like(cos_zenith))

    def spectrum(self, energy, cos_zenith) -> np.ndarray:
        """Rate on the axis in s-1 MeV-1 sr-1, at energies in TeV."""
        light_pool = np.asarray(cos_zenith, dtype=float) ** -2 if self.zenith_dependent else 1.0
        # Never a negative power of something tiny: far below the threshold the ratio is what is small.
        trigger = 1 / (1 + (self.threshold(cos_zenith) / energy) ** 6)
        return 1.8e-4 * self.scale * light_pool * trigger * np.asarray(energy, dtype=float) ** -2.7

    def width(self, energy) -> np.ndarray:
        """Scale of the offset profile in deg."""
        return 1.6 * np.asarray(energy, dtype=float) ** 0.08

    def profile(self, energy, offset) -> np.ndarray:
        """Rate relative to the axis, at offsets in deg."""
        return np.where(offset <= self.offset_max, np.exp(-((offset / self.width(energy)) ** 2.5)), 0.0)

    def profile_integral(self, energy) -> np.ndarray:
        """Integral of the profile in sr, in the plane tangent to the axis."""
        width = self.width(energy)
        inside = gammainc(0.8, (self.offset_max / width) ** 2.5)
        return 2 * np.pi * np.deg2rad(width) ** 2 / 2.5 * gamma(0.8) * inside

    def asymmetry(self, energy, fov_lon, fov_lat) -> np.ndarray:
        """Factor of the camera's gradient: 2 to 6 % per deg in lon, falling with energy; -1 to -6 % in lat, rising."""
        bend = 0.6 * np.tanh(np.log10(energy))
        return 1 + self.asymmetric * (0.04 * (1 - bend) * fov_lon - 0.035 * (1 + bend) * fov_lat)

    def rate(self, energy, fov_lon, fov_lat, cos_zenith=1.0, *, shift=0.0) -> np.ndarray:
        """Rate in s-1 MeV-1 sr-1 per ontime.

        Parameters
        ----------
        energy, fov_lon, fov_lat, cos_zenith : array-like
            Reconstructed energy in TeV, position in deg, cosine of the zenith angle of the pointing.
        shift : float
            Energy shift s of a run: spectrum and profile are taken at ``log E + s``, the asymmetry at ``log E``.
        """
        shifted = np.exp(shift) * np.asarray(energy, dtype=float)
        field = self.profile(shifted, offset_of(fov_lon, fov_lat)) * self.asymmetry(energy, fov_lon, fov_lat)
        return self.spectrum(shifted, cos_zenith) * field

    def integral(self, energy_edges, fov_lon, fov_lat, cos_zenith=1.0, *, shift=0.0) -> np.ndarray:
        """Rate integrated over energy bins, in s-1 sr-1, shape ``(n_bins, *shape of the positions)``."""
        positions = np.broadcast_arrays(fov_lon, fov_lat, cos_zenith)
        result = np.zeros((len(energy_edges) - 1, *positions[0].shape))
        for energy, weight, k in zip(*energy_quadrature(energy_edges), strict=True):
            result[k] += weight * self.rate(energy, *positions, shift=shift)
        return result
