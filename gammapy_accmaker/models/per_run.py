"""A model of its own for each of some runs, as the fits to the OFF runs matched to each ON run give."""

from __future__ import annotations

import numpy as np

from gammapy_accmaker.errors import ObservationError
from gammapy_accmaker.models.base import RateModel, nested_arrays, nested_models

__all__ = ["ModelPerRun"]


class ModelPerRun(RateModel):
    """Models by run. Where no run is named, it stands for their mean.

    Parameters
    ----------
    models : list of `RateModel`
        One for each set of matches.
    obs_id : `~numpy.ndarray`, shape (n_run,)
        Numbers of the runs.
    which : `~numpy.ndarray`, shape (n_run,)
        Number of each run's model: runs with the same matches share one.
    """

    kind = "per run"

    def __init__(self, models, obs_id, which):
        self.models = tuple(models)
        self.obs_id, self.which = np.asarray(obs_id, dtype=int), np.asarray(which, dtype=int)
        self._number = dict(zip(self.obs_id.tolist(), self.which.tolist(), strict=True))
        edges = [model.energy_edges for model in self.models]
        self.energy_edges = np.array([min(e[0] for e in edges), max(e[-1] for e in edges)])
        self.offset_max = max(model.offset_max for model in self.models)
        self.half_width = max(model.half_width for model in self.models)
        self.is_radial = all(model.is_radial for model in self.models)
        ranges = [model.zenith_range for model in self.models if model.zenith_range is not None]
        self.zenith_range = (min(r[0] for r in ranges), max(r[1] for r in ranges)) if ranges else None

    def describe_zenith(self):
        bins = dict.fromkeys(model.describe_zenith().split(",")[0] for model in self.models)
        return f"{len(self.models)} models, each for the runs that it was matched to: {'; '.join(bins)}"

    def for_run(self, obs_id):
        if int(obs_id) not in self._number:
            raise ObservationError(
                f"observation {obs_id}: no model was made for it from matched OFF runs; fit again with it among the "
                "observations, or widen the limits of `matching`"
            )
        return self.models[self._number[int(obs_id)]]

    def _mean(self, method, *arguments):
        return np.mean([getattr(model, method)(*arguments) for model in self.models], axis=0)

    def rate_grid(self, energy, fov_lon, fov_lat, cos_zenith=np.nan):
        return self._mean("rate_grid", energy, fov_lon, fov_lat, cos_zenith)

    def integral_grid(self, energy_edges, fov_lon, fov_lat, cos_zenith=np.nan):
        return self._mean("integral_grid", energy_edges, fov_lon, fov_lat, cos_zenith)

    def relative_error_grid(self, energy, fov_lon, fov_lat, cos_zenith=np.nan):
        return self._mean("relative_error_grid", energy, fov_lon, fov_lat, cos_zenith)

    def to_arrays(self):
        return nested_arrays(self.models) | {"obs_id": self.obs_id, "which": self.which}

    @classmethod
    def from_arrays(cls, arrays):
        return cls(nested_models(arrays), arrays["obs_id"], arrays["which"])
