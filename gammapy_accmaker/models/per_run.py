"""A model of its own for each of some runs, as the fits to the OFF runs matched to each ON run give."""

from __future__ import annotations

import numpy as np

from gammapy_accmaker.errors import ObservationError
from gammapy_accmaker.models.base import RateModel, goodness_of_parts, nested_arrays, nested_models
from gammapy_accmaker.utils.run_key import RunKey, label_array

__all__ = ["ModelPerRun"]


class ModelPerRun(RateModel):
    """Models by run. Where no run is named, it stands for their mean.

    Parameters
    ----------
    models : list of `RateModel`
        One for each set of matches.
    keys : list of `RunKey`
        What the runs are recognised by, shape (n_run,).
    which : `~numpy.ndarray`, shape (n_run,)
        Number of each run's model: runs with the same matches share one.
    """

    kind = "per run"
    differs_by_run = True

    def __init__(self, models, keys, which):
        self.models, self.keys, self.which = tuple(models), tuple(keys), np.asarray(which, dtype=int)
        edges = [model.energy_edges for model in self.models]
        self.energy_edges = np.array([min(e[0] for e in edges), max(e[-1] for e in edges)])
        self.offset_max = max(model.offset_max for model in self.models)
        self.half_width = max(model.half_width for model in self.models)
        self.is_radial = all(model.is_radial for model in self.models)
        ranges = [model.zenith_range for model in self.models if model.zenith_range is not None]
        self.zenith_range = (min(r[0] for r in ranges), max(r[1] for r in ranges)) if ranges else None

    @property
    def covariate_names(self):
        return tuple(dict.fromkeys(name for model in self.models for name in model.covariate_names))

    @property
    def goodness(self):
        return goodness_of_parts(self.models)

    @property
    def not_converged(self):
        found = [model.not_converged for model in self.models if model.not_converged]
        return f"{len(found)} of {len(self.models)} models: {found[0]}" if found else ""

    def describe_zenith(self):
        bins = dict.fromkeys(model.describe_zenith().split(",")[0] for model in self.models)
        return f"{len(self.models)} models, each for the runs that it was matched to: {'; '.join(bins)}"

    def for_run(self, key):
        found = {which for which, other in zip(self.which.tolist(), self.keys, strict=True) if key.is_same_run(other)}
        if not found:
            raise ObservationError(
                f"observation {key.obs_id}: no model was made for it (or for a run of this number that starts and points as "
                "it does) from matched OFF runs; fit again with it among the observations, or widen the limits of `matching`"
            )
        if len(found) > 1:
            raise ObservationError(
                f"observation {key.obs_id}: the fit had several runs with this number, start and pointing, and gave them "
                "different models; give each of them an `obs_id` of its own and fit again"
            )
        return self.models[found.pop()]

    def _mean(self, method, *arguments):
        return np.mean([getattr(model, method)(*arguments) for model in self.models], axis=0)

    def rate_grid(self, energy, fov_lon, fov_lat, cos_zenith=np.nan):
        return self._mean("rate_grid", energy, fov_lon, fov_lat, cos_zenith)

    def integral_grid(self, energy_edges, fov_lon, fov_lat, cos_zenith=np.nan):
        return self._mean("integral_grid", energy_edges, fov_lon, fov_lat, cos_zenith)

    def relative_error_grid(self, energy, fov_lon, fov_lat, cos_zenith=np.nan):
        return self._mean("relative_error_grid", energy, fov_lon, fov_lat, cos_zenith)

    def to_arrays(self):
        of_runs = {
            "obs_id": label_array(key.obs_id for key in self.keys),
            "start": np.array([key.start for key in self.keys]),
            "pointing": np.array([key.pointing for key in self.keys]),
            "which": self.which,
        }
        return nested_arrays(self.models) | of_runs

    @classmethod
    def from_arrays(cls, arrays):
        labels, unknown = arrays["obs_id"].tolist(), np.full((len(arrays["obs_id"]), 2), np.nan)
        # older files have the numbers alone
        start, pointing = arrays.get("start", unknown[:, 0]), arrays.get("pointing", unknown)
        keys = [RunKey(*of_run) for of_run in zip(labels, start.tolist(), map(tuple, pointing.tolist()), strict=True)]
        return cls(nested_models(arrays), keys, arrays["which"])
