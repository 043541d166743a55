"""Models that are made of models, each from some of the runs: bins of cos zenith, one by one or interpolated between
their means, sectors of azimuth, and the model that each ON run has from the OFF runs matched to it.

Each is a `RateModel` over any other, and hands a question on to the part that it concerns.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from gammapy_accmaker.camera.bins import azimuth_sector
from gammapy_accmaker.errors import ObservationError
from gammapy_accmaker.models.alignment import ZenithScaling
from gammapy_accmaker.models.base import (
    RateModel,
    ScalableModel,
    describe_cos_zenith,
    goodness_of_parts,
    nested_arrays,
    nested_models,
)
from gammapy_accmaker.utils.run_key import RunKey, label_array


class _OfParts(RateModel):
    """A model that is made of others, and stores what they cover together."""

    energy_edges: np.ndarray
    offset_max: float
    half_width: float
    is_radial: bool
    zenith_range: tuple[float, float] | None
    models: Sequence[Any]

    @property
    def goodness(self):
        return goodness_of_parts(self.models)

    @property
    def convergence(self) -> str:
        if len(self.models) == 1:
            return self.models[0].convergence
        texts = Counter(model.convergence for model in self.models if model.convergence)
        return "; ".join(f"{n} of {len(self.models)} fits: {text}" for text, n in texts.items())


class _OfScalable(_OfParts, ScalableModel):
    """The same of parts whose energies can be scaled."""

    def shifted(self, shift, reach):
        # the parts have other energies then, what they cover together stays
        other = copy.copy(self)
        other.models = [model.shifted(shift, reach) for model in self.models]
        return other


def _common_coverage(model: _OfParts, parts: Sequence[RateModel]) -> None:
    """Give a model the coverage of all its parts."""
    model.energy_edges = np.unique(np.concatenate([part.energy_edges for part in parts]))
    model.offset_max, model.half_width = (max(getattr(p, k) for p in parts) for k in ("offset_max", "half_width"))
    model.is_radial = all(part.is_radial for part in parts)


def _placed(models, used, cos_zenith, azimuth, leading):
    """`RateModel.error_factor` of the models of some numbers, one below the other, among the directions of all."""
    factors = [model.error_factor(cos_zenith, azimuth, leading=leading) for model in models]
    start = np.cumsum([0, *(factor.shape[1] for factor in factors)])
    rows = []
    for k in used:
        rows.append(np.zeros((len(factors[k]), start[-1])))
        rows[-1][:, start[k] : start[k + 1]] = factors[k]
    return np.concatenate(rows)


def _describe_bins(number, how, zenith_range):
    bins = f"{how}, {number} bins" if number > 1 else "one bin, since the runs are alike or too few for more"
    return f"{bins}, {describe_cos_zenith(zenith_range)}"


class ZenithBinned(_OfScalable):
    """One model for each bin of cos zenith; beyond the bins, that of the nearest.

    Parameters
    ----------
    edges : `~numpy.ndarray`
        Of cos zenith, increasing, shape (n + 1,).
    models : list of `RateModel`
        One for each bin.
    trained_range : tuple of float, optional
        Of cos zenith; that of the edges by default.
    """

    kind = "zenith binned"

    def __init__(self, edges: np.ndarray, models: Sequence[RateModel], trained_range=None):
        self.edges, self.models = np.asarray(edges, dtype=float), list(models)
        low, high = self.edges[[0, -1]] if trained_range is None else trained_range
        self.zenith_range = float(low), float(high)
        self.zenith_edges = self.edges[1:-1]
        _common_coverage(self, self.models)

    def model_at(self, cos_zenith: float) -> RateModel:
        """The model of a zenith angle."""
        return self.models[self._number_at(cos_zenith)]

    def _number_at(self, cos_zenith):
        cos_zenith = self.middle_cos_zenith if np.isnan(cos_zenith) else cos_zenith
        return int(np.searchsorted(self.zenith_edges, cos_zenith, side="right"))

    def describe_zenith(self):
        return _describe_bins(len(self.models), "binned", self.zenith_range)

    def rate_grid(self, energy, fov_lon, fov_lat, cos_zenith=np.nan):
        return self.model_at(cos_zenith).rate_grid(energy, fov_lon, fov_lat, cos_zenith)

    def integral_grid(self, energy_edges, fov_lon, fov_lat, cos_zenith=np.nan):
        return self.model_at(cos_zenith).integral_grid(energy_edges, fov_lon, fov_lat, cos_zenith)

    def relative_error_grid(self, energy, fov_lon, fov_lat, cos_zenith=np.nan):
        return self.model_at(cos_zenith).relative_error_grid(energy, fov_lon, fov_lat, cos_zenith)

    def error_rows(self, energy, fov_lon, fov_lat, cos_zenith=np.nan):
        return self.model_at(cos_zenith).error_rows(energy, fov_lon, fov_lat, cos_zenith)

    def error_factor(self, cos_zenith, azimuth=np.nan, *, leading=False):
        return _placed(self.models, [self._number_at(cos_zenith)], cos_zenith, azimuth, leading)

    def goodness_at(self, cos_zenith):
        return self.model_at(cos_zenith).goodness_at(cos_zenith)

    def run_scatter_at(self, cos_zenith):
        return self.model_at(cos_zenith).run_scatter_at(cos_zenith)

    def to_arrays(self):
        own = {"edges": self.edges, "trained_range": np.array(self.zenith_range)}
        return nested_arrays(self.models) | own

    @classmethod
    def from_arrays(cls, arrays):
        return cls(arrays["edges"], nested_models(arrays), arrays["trained_range"])


class ZenithInterpolated(_OfScalable):
    """Models at some zenith angles, between which the rate or its logarithm is linear in cos zenith; clamped at the
    ends.

    Parameters
    ----------
    cos_zenith : `~numpy.ndarray`
        Increasing, shape (n,).
    models : list of `RateModel`
        One for each.
    log : bool
        Interpolate the logarithm. Where one of the two rates is 0, it is the rate itself.
    trained_range : tuple of float, optional
        Of cos zenith; from the first to the last model by default.
    scaling : `ZenithScaling`
        By it a model is read at a zenith angle that is not its own, so that thresholds move and are not smeared.
    """

    kind = "zenith interpolated"

    def __init__(
        self, cos_zenith: np.ndarray, models: Sequence[RateModel], log: bool, trained_range=None, scaling=None
    ):
        self.cos_zenith, self.models, self.log = np.asarray(cos_zenith, dtype=float), list(models), bool(log)
        self.scaling = ZenithScaling() if scaling is None else scaling
        low, high = self.cos_zenith[[0, -1]] if trained_range is None else trained_range
        self.zenith_range = float(low), float(high)
        _common_coverage(self, self.models)

    def describe_zenith(self):
        return _describe_bins(len(self.models), "interpolated", self.zenith_range)

    def _around(self, cos_zenith):
        """Numbers of the models on both sides of a zenith angle, and the share of the second."""
        z = np.clip(cos_zenith, *self.cos_zenith[[0, -1]])
        right = int(np.clip(np.searchsorted(self.cos_zenith, z), min(1, len(self.models) - 1), len(self.models) - 1))
        if self.cos_zenith[right] == z:
            return right, right, 0.0
        low, high = self.cos_zenith[right - 1], self.cos_zenith[right]
        return right - 1, right, (z - low) / (high - low)

    def _trained(self, cos_zenith):
        """A zenith angle within the trained range; its middle where it is not known."""
        low, high = self.zenith_range or (np.nan, np.nan)
        return 0.5 * (low + high) if np.isnan(cos_zenith) else np.clip(cos_zenith, low, high)

    def _shift(self, k, cos_zenith):
        return self.scaling.shift(self._trained(cos_zenith), self.cos_zenith[k])

    def _models_around(self, cos_zenith):
        """The models on both sides of a zenith angle, with its threshold, the factors of their rates, and the share of
        the second."""
        cos_zenith = self.middle_cos_zenith if np.isnan(cos_zenith) else cos_zenith
        first, second, share = self._around(cos_zenith)
        around = first, second
        models = [self.models[k] for k in around]
        if self.scaling.energy:
            reach = float(self.energy_edges[0]), float(self.energy_edges[-1])
            models = [model.shifted(self._shift(k, cos_zenith), reach) for k, model in zip(around, models, strict=True)]
        factors = [self.scaling.factor(self._trained(cos_zenith), self.cos_zenith[k]) for k in around]
        return models, factors, share

    def _between(self, cos_zenith, evaluate):
        (first, second), factors, share = self._models_around(cos_zenith)
        low = factors[0] * evaluate(first)
        if share == 0:
            return low
        high = factors[1] * evaluate(second)
        linear = (1 - share) * low + share * high
        if not self.log:
            return linear
        both = (low > 0) & (high > 0)
        logarithm = (1 - share) * np.log(np.where(both, low, 1)) + share * np.log(np.where(both, high, 1))
        return np.where(both, np.exp(logarithm), linear)

    def rate_grid(self, energy, fov_lon, fov_lat, cos_zenith=np.nan):
        return self._between(cos_zenith, lambda m: m.rate_grid(energy, fov_lon, fov_lat, cos_zenith))

    def integral_grid(self, energy_edges, fov_lon, fov_lat, cos_zenith=np.nan):
        return self._between(cos_zenith, lambda m: m.integral_grid(energy_edges, fov_lon, fov_lat, cos_zenith))

    def relative_error_grid(self, energy, fov_lon, fov_lat, cos_zenith=np.nan):
        (first, second), factors, share = self._models_around(cos_zenith)
        low = first.relative_error_grid(energy, fov_lon, fov_lat, cos_zenith)
        if share == 0:
            return low
        high = second.relative_error_grid(energy, fov_lon, fov_lat, cos_zenith)
        if not self.log:
            # errors of the rates add in quadrature, so each counts by its part of the rate
            rates = [
                factor * m.rate_grid(energy, fov_lon, fov_lat, cos_zenith)
                for factor, m in zip(factors, (first, second), strict=True)
            ]
            total = (1 - share) * rates[0] + share * rates[1]
            share = np.divide(share * rates[1], total, out=np.full(total.shape, share), where=total > 0)
        # the models at the two angles were fitted to different runs
        return np.hypot((1 - share) * low, share * high)

    def error_rows(self, energy, fov_lon, fov_lat, cos_zenith=np.nan):
        models, factors, share = self._models_around(cos_zenith)
        at = energy, fov_lon, fov_lat, cos_zenith
        if share == 0:
            return models[0].error_rows(*at)
        shares = np.array([1 - share, share])[:, None, None] * np.ones((2, len(energy), len(fov_lon)))
        if not self.log:
            # errors of the rates add up, so each counts by its part of the rate
            rates = shares * [f * m.rate_grid(*at) for m, f in zip(models, factors, strict=True)]
            total = rates.sum(0)
            shares = np.where(total > 0, rates / np.where(total > 0, total, 1), shares)
        (low, of_low), (high, of_high) = (m.error_rows(*at) for m in models)
        return tuple(np.concatenate([shares[0] * a, shares[1] * b]) for a, b in ((low, high), (of_low, of_high)))

    def error_factor(self, cos_zenith, azimuth=np.nan, *, leading=False):
        return _placed(self.models, self._used_at(cos_zenith), cos_zenith, azimuth, leading)

    def _used_at(self, cos_zenith):
        first, second, share = self._around(self.middle_cos_zenith if np.isnan(cos_zenith) else cos_zenith)
        return (first,) if share == 0 else (first, second)

    def goodness_at(self, cos_zenith):
        return goodness_of_parts([self.models[k] for k in self._used_at(cos_zenith)])

    def run_scatter_at(self, cos_zenith):
        return [
            scatter.moved(self._shift(k, cos_zenith))
            for k in self._used_at(cos_zenith)
            for scatter in self.models[k].run_scatter_at(cos_zenith)
        ]

    def to_arrays(self):
        own = {"cos_zenith": self.cos_zenith, "log": np.array(self.log), "trained_range": np.array(self.zenith_range)}
        return nested_arrays(self.models) | own | {"scaling": self.scaling.to_array()}

    @classmethod
    def from_arrays(cls, arrays):
        scaling = ZenithScaling(*arrays.get("scaling", np.zeros(0)).tolist())  # older files have none
        return cls(arrays["cos_zenith"], nested_models(arrays), bool(arrays["log"]), arrays["trained_range"], scaling)


class _MeanOfParts(_OfParts):
    """Their mean, by the ontime that each stands for, where nobody says which of them is asked for."""

    ontime: np.ndarray

    def _zenith_range_of_parts(self):
        ranges = [model.zenith_range for model in self.models if model.zenith_range is not None]
        return (min(low for low, _ in ranges), max(high for _, high in ranges)) if ranges else None

    def _mean(self, method, *arguments):
        return np.average([getattr(model, method)(*arguments) for model in self.models], axis=0, weights=self.ontime)

    def rate_grid(self, energy, fov_lon, fov_lat, cos_zenith=np.nan):
        return self._mean("rate_grid", energy, fov_lon, fov_lat, cos_zenith)

    def integral_grid(self, energy_edges, fov_lon, fov_lat, cos_zenith=np.nan):
        return self._mean("integral_grid", energy_edges, fov_lon, fov_lat, cos_zenith)

    def relative_error_grid(self, energy, fov_lon, fov_lat, cos_zenith=np.nan):
        """As of a single one, in the mean."""
        return self._mean("relative_error_grid", energy, fov_lon, fov_lat, cos_zenith)


class AzimuthBinned(_MeanOfParts, _OfScalable):
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

    def __init__(self, azimuth_edges: np.ndarray, models: Sequence[RateModel], trained, ontime):
        self.azimuth_edges, self.models = np.asarray(azimuth_edges, dtype=float), list(models)
        self.trained, self.ontime = np.asarray(trained, dtype=int), np.asarray(ontime, dtype=float)
        _common_coverage(self, self.models)
        self.zenith_range = self._zenith_range_of_parts()
        self.zenith_edges = np.unique(np.concatenate([m.zenith_edges for m in models]))
        width = np.diff(np.append(self.azimuth_edges, self.azimuth_edges[0] + 360))
        middle = self.azimuth_edges + 0.5 * width
        apart = np.abs((middle[:, None] - middle[self.trained] + 180) % 360 - 180)
        apart[self.trained, np.arange(len(models))] = -1.0  # a trained sector is its own
        self._nearest = np.argmin(apart, axis=1)

    def describe_zenith(self):
        return "; ".join(dict.fromkeys(model.describe_zenith() for model in self.models))

    def at_azimuth(self, azimuth):
        return self.models[self._number_at(azimuth)]

    def _number_at(self, azimuth):
        return int(self._nearest[azimuth_sector(self.azimuth_edges, azimuth)])

    def error_factor(self, cos_zenith, azimuth=np.nan, *, leading=False):
        here = 0 if np.isnan(azimuth) else self._number_at(azimuth)
        return _placed(self.models, [here], cos_zenith, azimuth, leading)

    def to_arrays(self):
        own = {"azimuth_edges": self.azimuth_edges, "trained": self.trained, "ontime": self.ontime}
        return nested_arrays(self.models) | own

    @classmethod
    def from_arrays(cls, arrays):
        return cls(arrays["azimuth_edges"], nested_models(arrays), arrays["trained"], arrays["ontime"])


class ModelPerRun(_MeanOfParts):
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
        self.ontime = np.ones(len(self.models))
        _common_coverage(self, self.models)
        self.energy_edges = self.energy_edges[[0, -1]]
        self.zenith_range = self._zenith_range_of_parts()

    @property
    def covariate_names(self):
        return tuple(dict.fromkeys(name for model in self.models for name in model.covariate_names))

    @property
    def not_converged(self):
        found = [model.not_converged for model in self.models if model.not_converged]
        return f"{len(found)} of {len(self.models)} models: {found[0]}" if found else ""

    def describe_zenith(self):
        bins = dict.fromkeys(model.describe_zenith().split(",")[0] for model in self.models)
        return f"{len(self.models)} models, each for the runs that it was matched to: {'; '.join(bins)}"

    def for_run(self, key):
        return self.models[self.number_for_run(key)]

    def number_for_run(self, key):
        found = {which for which, other in zip(self.which.tolist(), self.keys, strict=True) if key.is_same_run(other)}
        if not found:
            raise ObservationError(
                f"observation {key.obs_id}: no model was made for it (or for a run of this number that starts and "
                "points as it does) from matched OFF runs; "
                "fit again with it among the observations, or widen the limits of `matching`"
            )
        if len(found) > 1:
            raise ObservationError(
                f"observation {key.obs_id}: the fit had several runs with this number, start and pointing, and gave "
                "them different models; give each of them an `obs_id` of its own and fit again"
            )
        return found.pop()

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
