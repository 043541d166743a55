"""Zenith dependence over any model: interpolation between models at some zenith angles."""

from __future__ import annotations

import numpy as np

from gammapy_accmaker.models.base import RateModel
from gammapy_accmaker.models.tabulated import TabulatedModel

__all__ = ["ZenithInterpolated"]


class ZenithInterpolated(RateModel):
    """Models at some zenith angles, between which the rate or its logarithm is linear in cos zenith; clamped at the ends.

    Parameters
    ----------
    cos_zenith : `~numpy.ndarray`
        Increasing, shape (n,).
    models : list of `RateModel`
        One for each.
    log : bool
        Interpolate the logarithm. Where one of the two rates is 0, the rate is linear.
    """

    def __init__(self, cos_zenith: np.ndarray, models: list[RateModel], log: bool):
        self.cos_zenith, self.models, self.log = np.asarray(cos_zenith, dtype=float), list(models), bool(log)
        low, high = min(m.energy_edges[0] for m in models), max(m.energy_edges[-1] for m in models)
        self.energy_edges = np.array([low, high])
        self.offset_max, self.half_width = (max(getattr(m, k) for m in models) for k in ("offset_max", "half_width"))
        self.is_radial = all(m.is_radial for m in models)
        self.zenith_range = (float(self.cos_zenith[0]), float(self.cos_zenith[-1]))

    def _between(self, cos_zenith, evaluate):
        z = np.clip(cos_zenith, *self.zenith_range)
        right = int(np.clip(np.searchsorted(self.cos_zenith, z), 1, len(self.models) - 1))
        low, high = self.cos_zenith[right - 1], self.cos_zenith[right]
        share = (z - low) / (high - low)
        if share <= 0 or share >= 1:
            return evaluate(self.models[right - 1 if share <= 0 else right])
        first, last = evaluate(self.models[right - 1]), evaluate(self.models[right])
        linear = (1 - share) * first + share * last
        if not self.log:
            return linear
        both = (first > 0) & (last > 0)
        logarithm = (1 - share) * np.log(np.where(both, first, 1)) + share * np.log(np.where(both, last, 1))
        return np.where(both, np.exp(logarithm), linear)

    def rate_grid(self, energy, fov_lon, fov_lat, cos_zenith=1.0):
        return self._between(cos_zenith, lambda m: m.rate_grid(energy, fov_lon, fov_lat, cos_zenith))

    def integral_grid(self, energy_edges, fov_lon, fov_lat, cos_zenith=1.0):
        return self._between(cos_zenith, lambda m: m.integral_grid(energy_edges, fov_lon, fov_lat, cos_zenith))

    def relative_error_grid(self, energy, fov_lon, fov_lat, cos_zenith=1.0):
        return self._between(cos_zenith, lambda m: m.relative_error_grid(energy, fov_lon, fov_lat, cos_zenith))

    def to_arrays(self):
        arrays = {f"{k}/{name}": a for k, model in enumerate(self.models) for name, a in model.to_arrays().items()}
        return arrays | {"node_cos_zenith": self.cos_zenith, "log": np.array(self.log)}

    @classmethod
    def from_arrays(cls, arrays, one: type[RateModel] = TabulatedModel):
        """The inverse of `to_arrays`; ``one``: class of the models at the nodes."""
        models = []
        for k in range(len(arrays["node_cos_zenith"])):
            own = {name.removeprefix(f"{k}/"): a for name, a in arrays.items() if name.startswith(f"{k}/")}
            models.append(one.from_arrays(own))
        return cls(arrays["node_cos_zenith"], models, bool(arrays["log"]))
