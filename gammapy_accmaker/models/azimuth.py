"""Azimuth dependence over any model: one model for each sector of azimuth."""

from __future__ import annotations

import numpy as np

from gammapy_accmaker.camera.bins import azimuth_sector
from gammapy_accmaker.models.base import RateModel, goodness_of_parts, nested_arrays, nested_models
from gammapy_accmaker.models.zenith import common_coverage

__all__ = ["AzimuthBinned"]


class AzimuthBinned(RateModel):
    """One model for each sector of azimuth, see `at_azimuth`; without an azimuth, their mean by the time of the fit.

    Parameters
    ----------
    azimuth_edges : `~numpy.ndarray`
        In deg, increasing, in [0, 360), shape (n,); the last sector goes on through 360 deg to the first edge.
    models : list of `RateModel`
        One for each trained sector.
    trained : sequence of int
        The sectors of the models. Any other one takes the model of the nearest.
    ontime : `~numpy.ndarray`
        Of the fit in each trained sector.
    """

    kind = "azimuth binned"

    def __init__(self, azimuth_edges: np.ndarray, models: list[RateModel], trained, ontime):
        self.azimuth_edges, self.models = np.asarray(azimuth_edges, dtype=float), list(models)
        self.trained, self.ontime = np.asarray(trained, dtype=int), np.asarray(ontime, dtype=float)
        common_coverage(self, self.models)
        ranges = [m.zenith_range for m in models if m.zenith_range is not None]
        self.zenith_range = (min(r[0] for r in ranges), max(r[1] for r in ranges)) if ranges else None
        self.zenith_edges = np.unique(np.concatenate([m.zenith_edges for m in models]))
        width = np.diff(np.append(self.azimuth_edges, self.azimuth_edges[0] + 360))
        middle = self.azimuth_edges + 0.5 * width
        apart = np.abs((middle[:, None] - middle[self.trained] + 180) % 360 - 180)
        apart[self.trained, np.arange(len(models))] = -1.0  # a trained sector is its own
        self._nearest = np.argmin(apart, axis=1)

    @property
    def goodness(self):
        return goodness_of_parts(self.models)

    def describe_zenith(self):
        return "; ".join(dict.fromkeys(model.describe_zenith() for model in self.models))

    def at_azimuth(self, azimuth):
        return self.models[self._nearest[azimuth_sector(self.azimuth_edges, azimuth)]]

    def _mean(self, evaluate):
        return sum(t * evaluate(m) for t, m in zip(self.ontime / self.ontime.sum(), self.models, strict=True))

    def rate_grid(self, energy, fov_lon, fov_lat, cos_zenith=np.nan):
        return self._mean(lambda m: m.rate_grid(energy, fov_lon, fov_lat, cos_zenith))

    def integral_grid(self, energy_edges, fov_lon, fov_lat, cos_zenith=np.nan):
        return self._mean(lambda m: m.integral_grid(energy_edges, fov_lon, fov_lat, cos_zenith))

    def relative_error_grid(self, energy, fov_lon, fov_lat, cos_zenith=np.nan):
        """As at a single azimuth, in the mean."""
        return self._mean(lambda m: m.relative_error_grid(energy, fov_lon, fov_lat, cos_zenith))

    def to_arrays(self):
        own = {"azimuth_edges": self.azimuth_edges, "trained": self.trained, "ontime": self.ontime}
        return nested_arrays(self.models) | own

    @classmethod
    def from_arrays(cls, arrays):
        return cls(arrays["azimuth_edges"], nested_models(arrays), arrays["trained"], arrays["ontime"])
