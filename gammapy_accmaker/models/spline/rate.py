"""The spline model as the rest of the package sees a model:
within its coverage, integrated over energy, for one run."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from gammapy_accmaker.camera.bins import TEV_IN_MEV
from gammapy_accmaker.models.base import AdaptedRun, RateModel
from gammapy_accmaker.models.spline.adapt import fit_run
from gammapy_accmaker.models.spline.cells import in_pixels
from gammapy_accmaker.models.spline.effects import RunEffect
from gammapy_accmaker.models.spline.model import SplineModel

_FINE_STEP = 0.02  # in log10 energy, of the bins of an integral
_TILT_RANGE = (0.5, 10.0)  # TeV
_NOT_CONVERGED = (
    "the fit did not converge: the counts that it expects still changed from round to round. Look at the residuals; "
    "pool more runs, or use run_effects 'norm' or 'none', or the model 'radial'"
)
_RIM = 1 / 12  # of the trained offset; so far the rate is continued at its last value


@dataclass(frozen=True)
class SplineRate(RateModel):
    """Rate of a `SplineModel` under the conditions of one run, or of the mean run.

    Attributes
    ----------
    spline : `SplineModel`
    effect : `RunEffect`, optional
        Of the run; without it the mean of runs under these conditions.
    azimuth : float, optional
        Of the pointing in deg.
    covariates : dict of float
        Of the run.
    """

    spline: SplineModel
    effect: RunEffect | None = None
    azimuth: float | None = None
    covariates: dict[str, float] = field(default_factory=dict)

    kind = "spline"
    is_radial = False

    @property
    def energy_edges(self) -> np.ndarray:
        return self.spline.energy_edges

    @property
    def covariate_names(self) -> tuple[str, ...]:
        return self.spline.covariates.names

    @property
    def not_converged(self) -> str:
        return "" if self.spline.converged else _NOT_CONVERGED

    @property
    def convergence(self) -> str:
        rounds = self.spline.rounds
        return self.not_converged or "converged" + (f" after {rounds} rounds" if rounds else "")

    @property
    def half_width(self) -> float:
        return self.offset_max

    @property
    def offset_max(self) -> float:
        return (1 + _RIM) * self.spline.offset_max

    @property
    def zenith_range(self) -> tuple[float, float] | None:
        # over a narrow range the splines are one, but the energy scale still follows the zenith angle
        return self.spline.zenith_range if self.spline.covariates.zenith else None

    @property
    def norm_spread(self) -> float:
        """Relative error of the norm of the run, or its spread over the runs where it is not fitted."""
        if self.effect is None or not self.effect.basis.n:
            return self.spline.population.norm_spread
        return self.effect.norm_error / self.effect.norm

    @property
    def tilt_spread(self) -> float:
        """Standard deviation of the spectral index that the effects of the run leave, over _TILT_RANGE."""
        fitted = self.spline.population if self.effect is None or not self.effect.basis.n else self.effect
        basis, covariance = fitted.basis, fitted.covariance
        log_energy = np.linspace(np.log(_TILT_RANGE[0]), np.log(_TILT_RANGE[1]), 20)
        slope = (log_energy - log_energy.mean()) / ((log_energy - log_energy.mean()) ** 2).sum()
        modes = basis.mode_values(np.zeros(1), np.zeros(1))[0]
        additive = slope @ (basis.energy_columns(log_energy) * modes[basis.mode_of_column])
        row = np.concatenate([np.zeros(basis.n_shift), additive])
        return float(np.sqrt(row @ covariance @ row))

    def rate_grid(self, energy, fov_lon, fov_lat, cos_zenith=np.nan):
        energy = np.asarray(energy, dtype=float)
        rate = self.spline.rate_grid(
            energy, fov_lon, fov_lat, cos_zenith, azimuth=self.azimuth, covariates=self.covariates, effect=self.effect
        )
        # one part in 1e9 beyond the edges is rounding, more is outside
        covered = (energy >= self.energy_edges[0] * (1 - 1e-9)) & (energy <= self.energy_edges[-1] * (1 + 1e-9))
        rate[~covered] = 0
        rate[:, np.hypot(fov_lon, fov_lat) >= self.offset_max] = 0
        return rate

    def integral_grid(self, energy_edges, fov_lon, fov_lat, cos_zenith=np.nan):
        # as in the fit: the rate in the middle of fine bins times their width
        edges = np.clip(energy_edges, *self.energy_edges[[0, -1]])
        n = np.maximum(np.ceil(np.log10(edges[1:] / edges[:-1]) / _FINE_STEP - 1e-6).astype(int), 1)
        fine = [np.geomspace(low, high, k + 1) for low, high, k in zip(edges[:-1], edges[1:], n, strict=True)]
        middle = np.concatenate([np.sqrt(e[1:] * e[:-1]) for e in fine])
        width = np.concatenate([np.diff(e) for e in fine]) * TEV_IN_MEV
        sums = np.where(np.repeat(np.arange(len(n)), n) == np.arange(len(n))[:, None], width, 0)
        return sums @ self.rate_grid(middle, fov_lon, fov_lat, cos_zenith)

    def relative_error_grid(self, energy, fov_lon, fov_lat, cos_zenith=np.nan, part="both"):
        """One standard deviation of the log of the rate; ``part``: "coefficients", "run" or "both"."""
        return self.spline.relative_error_grid(
            energy, fov_lon, fov_lat, cos_zenith, azimuth=self.azimuth, effect=self.effect, part=part
        )

    def depends_on_run(self, effects):
        return True  # on its covariates, if on nothing else

    def adapt(self, run, bins, effects, place=None):
        known = self.spline.effects if place is not None and not effects.min_counts else ()
        if known:
            effect = known[place]
        else:
            effect = fit_run(
                self.spline,
                in_pixels(run, bins.inside),
                kind=effects.kind,
                min_counts=effects.min_counts,
                norm_energy=effects.norm_energy,
            )
        first = run.slices[0]
        return AdaptedRun(
            SplineRate(self.spline, effect, first.azimuth, first.covariates),
            effect.expected.sum(),
            effect.norm,
            effect.norm_error,
            np.max(effect.deviance, initial=0.0),
            effect.flags,
            effect.norm_energy,
            # what the covariates of the run foretell of its energy scale, and what its events add
            effect.scaling + effect.shift,
            effect.shift_error,
        )

    def without(self, adapted, run, bins, effects, held, *, of_fit):
        effect = fit_run(
            self.spline,
            in_pixels(run, bins.inside),
            kind=effects.kind,
            min_counts=effects.min_counts,
            norm_energy=effects.norm_energy,
            held=[(exposure[bins.inside], energies) for exposure, energies in held],
        )
        first = run.slices[0]
        model = SplineRate(self.spline, effect, first.azimuth, first.covariates)
        if not of_fit or not effect.removed.size:
            return model, None
        along = self.spline.error_factor(run.cos_zenith, leading=True)
        return model, along.T @ effect.removed @ along

    def fit_error_grid(self, energy, fov_lon, fov_lat, cos_zenith=np.nan):
        return self.relative_error_grid(energy, fov_lon, fov_lat, cos_zenith, part="coefficients")

    def error_rows(self, energy, fov_lon, fov_lat, cos_zenith=np.nan):
        return self.spline.error_rows(energy, fov_lon, fov_lat, cos_zenith, azimuth=self.azimuth, effect=self.effect)

    def error_factor(self, cos_zenith, azimuth=np.nan, *, leading=False):
        return self.spline.error_factor(cos_zenith, leading=leading)

    def to_arrays(self):
        return self.spline.to_arrays()

    @classmethod
    def from_arrays(cls, arrays):
        return cls(SplineModel.from_arrays(arrays))
