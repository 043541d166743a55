"""What differs from run to run: norm, energy shift, smooth spectral residual, gradients in the field of view.

The effects of a run are the coefficients of an `EffectBasis`. Over the runs they are Gaussian: their means depend
linearly on covariates of the run, and their full covariance is estimated from all runs (`RunPopulation`), so that
what is well measured in a run, its threshold say, predicts what is not. `RunEffect` is the result for one run.

The norm has heavy tails, for clouds: it comes from a mixture of Gaussians, most of them of the width of the population
and some much wider. How likely a run is to be of the wide ones gives it a weight (1 for a usual run, towards 0 for one
that stands apart), by which the precision of its prior along the norm is multiplied, and with which it enters the
population. The mixture is integrated as if the run's likelihood were Gaussian in its norm.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from scipy.linalg import block_diag

from gammapy_accmaker.models.bsplines import BSplineAxis, smooth_covariance
from gammapy_accmaker.models.norm_energy import NO_ENERGIES
from gammapy_accmaker.models.spline.cells import camera_modes
from gammapy_accmaker.utils.run_key import RunKey

EFFECT_KINDS = ("none", "norm", "tilt", "shift")

# Widths of the population before any run is seen; _PRIOR_RUNS of such runs are added to those that are.
_SD_NORM, _SD_TILT, _SD_SHIFT, _SD_SHIFT_GRADIENT = 0.15, 0.1, 0.1, 0.03
_SD_RESIDUAL, _SD_RADIAL, _SD_GRADIENT = 0.07, 0.1, 0.05
_PRIOR_RUNS = 5.0
_COVARIATE_RUNS = 4.0  # weight, in runs, of the prior that covariates do not matter
# widths, in that of usual runs, and shares of runs
NORM_TAILS = np.array([1.0, 3.0, 10.0]), np.array([0.95, 0.03, 0.02])
_KNOT_STEP = {"residual": 0.5, "radial": 2.0, "gradient": 4.0}  # in log energy


@dataclass(frozen=True)
class EffectBasis:
    """Functions of energy and field of view whose coefficients are the effects of a run.

    The log rate of a run is the population's at the energy scaled by ``exp(shift(x))``, plus the sum of the additive
    terms; ``shift(x)`` is a constant and, with ``gradient``, linear in the field of view.

    Parameters
    ----------
    kind : str
        ``none``, ``norm``, ``tilt`` (norm and spectral tilt) or ``shift`` (norm, energy shift, spectral residual).
    gradient : bool
        For ``shift``: whether radial width and gradients in the field of view are free as well.
    log_energy_min, log_energy_max : float
        Range of log(E / TeV) of the spectral residual.
    pivot : float
        log(E / TeV) about which a tilt turns.
    offset_max : float
        Deg; unit of the gradients.
    """

    kind: str
    gradient: bool
    log_energy_min: float
    log_energy_max: float
    pivot: float
    offset_max: float

    def __post_init__(self):
        if self.kind not in EFFECT_KINDS:
            raise ValueError(f"run effects: got {self.kind!r}, but one of {', '.join(EFFECT_KINDS)} is needed")

    @cached_property
    def shift_modes(self) -> tuple[str, ...]:
        """Camera modes of the energy shift."""
        if self.kind != "shift":
            return ()
        return ("flat", "lon", "lat") if self.gradient else ("flat",)

    @cached_property
    def terms(self) -> tuple[tuple[str, str, int], ...]:
        """Additive terms: name, camera mode, number of coefficients."""
        out = []
        if self.kind != "none":
            out.append(("norm", "flat", 1))
        if self.kind == "tilt":
            out.append(("tilt", "flat", 1))
        if self.kind == "shift":
            out.append(("residual", "flat", self._axis("residual").n))
            if self.gradient:
                out.append(("radial", "radial", self._axis("radial").n))
                out += [("gradient_" + m, m, self._axis("gradient").n) for m in ("lon", "lat")]
        return tuple(out)

    def _axis(self, name):
        span = self.log_energy_max - self.log_energy_min
        n = max(int(np.ceil(span / _KNOT_STEP[name])) + 3, 4)
        return BSplineAxis(self.log_energy_min, self.log_energy_max, n)

    @property
    def residual_axis(self) -> BSplineAxis:
        """Axis of the spectral residual in log energy."""
        return self._axis("residual")

    @property
    def n_shift(self) -> int:
        """Number of coefficients of the energy shift; they come first."""
        return len(self.shift_modes)

    @cached_property
    def n(self) -> int:
        """Number of coefficients."""
        return self.n_shift + sum(k for _, _, k in self.terms)

    @cached_property
    def term_names(self) -> np.ndarray:
        """Name of the term of each additive coefficient."""
        return np.array([name for name, _, k in self.terms for _ in range(k)], dtype="U16")

    @cached_property
    def is_flat(self) -> np.ndarray:
        """Whether each additive coefficient acts on the whole field of view alike."""
        return np.array([mode == "flat" for _, mode, k in self.terms for _ in range(k)], dtype=bool)

    @cached_property
    def modes(self) -> tuple[str, ...]:
        """Camera modes of the additive terms, each once."""
        return tuple(dict.fromkeys(mode for _, mode, _ in self.terms))

    @cached_property
    def mode_of_column(self) -> np.ndarray:
        """Number, in `modes`, of the camera mode of each additive coefficient."""
        return np.array([self.modes.index(mode) for _, mode, k in self.terms for _ in range(k)], dtype=int)

    @cached_property
    def odd(self) -> np.ndarray:
        """Whether each coefficient is of a gradient in the field of view, shape (n,)."""
        modes = list(self.shift_modes) + [self.modes[m] for m in self.mode_of_column]
        return np.isin(modes, ("lon", "lat"))

    def energy_columns(self, log_energy) -> np.ndarray:
        """Energy dependence of each additive coefficient, shape (len(log_energy), n - n_shift)."""
        x = np.asarray(log_energy, dtype=float)
        columns = [np.zeros((len(x), 0))]
        for name, _, _ in self.terms:
            if name == "norm":
                columns.append(np.ones((len(x), 1)))
            elif name == "tilt":
                columns.append(np.clip(x, self.log_energy_min, self.log_energy_max)[:, None] - self.pivot)
            else:
                columns.append(self._axis(name.split("_")[0]).basis(x))
        return np.hstack(columns)

    def shift_values(self, fov_lon, fov_lat) -> np.ndarray:
        """Camera modes of the shift at positions in deg, shape (n_position, n_shift)."""
        return camera_modes(fov_lon, fov_lat, self.offset_max, self.shift_modes)

    def mode_values(self, fov_lon, fov_lat) -> np.ndarray:
        """Camera modes of the additive terms at positions in deg, shape (n_position, len(modes))."""
        return camera_modes(fov_lon, fov_lat, self.offset_max, self.modes)

    def by_mode(self, columns: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
        """Sum of the additive columns of each camera mode, shape (n_energy, len(modes))."""
        out = np.zeros((len(columns), len(self.modes)))
        for m in range(len(self.modes)):
            here = self.mode_of_column == m
            out[:, m] = columns[:, here] @ coefficients[self.n_shift :][here]
        return out

    def prior_covariance(self) -> np.ndarray:
        """Covariance of the coefficients before any run is seen, shape (n, n); smooth along energy."""
        widths = {"norm": _SD_NORM, "tilt": _SD_TILT, "residual": _SD_RESIDUAL, "radial": _SD_RADIAL}
        shifts = ((_SD_SHIFT if mode == "flat" else _SD_SHIFT_GRADIENT) ** 2 for mode in self.shift_modes)
        terms = (smooth_covariance(widths.get(name, _SD_GRADIENT), k) for name, _, k in self.terms)
        # without any block scipy would give a row
        return block_diag(np.zeros((0, 0)), *shifts, *terms)


@dataclass(frozen=True)
class NormTails:
    """Prior of the effects of a run whose norm may be far out; given the norm, all else is as in the population.

    Attributes
    ----------
    covariance : `~numpy.ndarray`, shape (n, n)
        Of usual runs.
    row : `~numpy.ndarray`, shape (n,)
        What the effects add to the log of the norm; 0 where they leave it alone.
    """

    covariance: np.ndarray
    row: np.ndarray

    @cached_property
    def _along(self):
        """Change of all effects that goes with the norm, times the variance of the norm; and that variance."""
        along = self.covariance @ self.row
        return along, max(float(self.row @ along), 1e-300)

    def prior(self, weight: float) -> np.ndarray:
        """Prior covariance of a run of this weight, shape (n, n)."""
        along, variance = self._along
        # only the variance along the norm grows, to variance / weight; what is left given the norm stays as it is
        return self.covariance + (1 / weight - 1) / variance * np.outer(along, along)

    def shorten(self, weight: float) -> np.ndarray:
        """Matrix that shortens the effects of a run of this weight to those of a usual one, shape (n, n)."""
        along, variance = self._along
        return np.eye(len(self.row)) - (1 - np.sqrt(weight)) / variance * np.outer(along, self.row)

    def weight(self, deviation: np.ndarray, posterior: np.ndarray, weight: float) -> tuple[float, bool]:
        """Weight of a run: with it the posterior mean of its norm is that of the mixture.

        Parameters
        ----------
        deviation : `~numpy.ndarray`, shape (n,)
            Posterior mean of its effects, as a deviation from what is expected under its conditions.
        posterior : `~numpy.ndarray`, shape (n, n)
            Posterior covariance.
        weight : float
            With which these two were found.

        Returns
        -------
        weight : float
        unusual : bool
            Whether its norm rather comes from one of the wide Gaussians.
        """
        variance, remaining = self._along[1], self.row @ posterior @ self.row
        if not remaining > 0:
            return 1.0, False
        # what the counts alone tell of the norm: a Gaussian of this precision, and precision times mean
        precision, pull = max(1 / remaining - weight / variance, 0.0), self.row @ deviation / remaining
        widths, shares = NORM_TAILS
        # posterior shares of the Gaussians of the mixture: how well each predicts what the counts tell (its evidence)
        prior = 1 / (variance * widths**2)
        log_share = np.log(shares) - 0.5 * np.log1p(precision / prior) + 0.5 * pull**2 / (precision + prior)
        share = np.exp(log_share - log_share.max())
        # the mixture's posterior mean is pull * sum(by_precision) / sum(share); the weight is the factor on the
        # precision of one Gaussian prior that gives the same mean
        by_precision = share / (precision + prior)
        return float(variance * (by_precision @ prior) / by_precision.sum()), bool(share[0] < share[1:].sum())


@dataclass(frozen=True)
class RunPopulation:
    """Distribution of the effects over the runs: means linear in covariates, Gaussian but for the tails of the norm.

    Attributes
    ----------
    basis : `EffectBasis`
    regression : `~numpy.ndarray`, shape (n_covariate, basis.n)
        Mean effect per unit of each (centred) covariate.
    covariance : `~numpy.ndarray`, shape (basis.n, basis.n)
    norm_spread, shift_spread : float
        Standard deviations over the usual runs of the log of the norm and of the energy shift (in log energy), once the
        covariates are taken into account.
    norm_row : `~numpy.ndarray`, shape (basis.n,)
        What each coefficient adds to the log of the norm of a mean run; along it the tails are heavy. Empty before any
        run is seen.
    """

    basis: EffectBasis
    regression: np.ndarray
    covariance: np.ndarray
    norm_spread: float = np.nan
    shift_spread: float = np.nan
    norm_row: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def mean(self, covariates: np.ndarray) -> np.ndarray:
        """Mean effects of runs with these covariates, shape (n,)."""
        return covariates @ self.regression

    @cached_property
    def tails(self) -> NormTails:
        """Prior of a run."""
        return NormTails(self.covariance, self.norm_row if len(self.norm_row) else np.zeros(len(self.covariance)))


def norm_row(basis: EffectBasis, weights: np.ndarray) -> np.ndarray:
    """What each coefficient adds to the log of the norm, if the spectrum weighs the additive columns so."""
    return np.concatenate([np.zeros(basis.n_shift), np.where(basis.is_flat, weights, 0.0)])


def update_population(
    population: RunPopulation,
    effects: np.ndarray,
    second_moments: np.ndarray,
    covariates: np.ndarray,
    allowed: np.ndarray,
    norm_rows: np.ndarray,
    norm_variance: float,
    weights: np.ndarray,
) -> RunPopulation:
    """One step of the EM algorithm for the population's means and covariance.

    Parameters
    ----------
    population : `RunPopulation`
    effects : `~numpy.ndarray`, shape (n_run, n)
        Posterior means of the runs' effects.
    second_moments : `~numpy.ndarray`, shape (n, n)
        Sum over the runs of the posterior covariances, shortened by `NormTails.shorten`.
    covariates : `~numpy.ndarray`, shape (n_run, n_covariate)
    allowed : `~numpy.ndarray`, shape (n_covariate, n)
        Whether the mean of an effect may depend on a covariate.
    norm_rows : `~numpy.ndarray`, shape (n_run, n)
        What the effects add to the log of each run's norm, see `norm_row`.
    norm_variance : float
        Sum over the runs of weight times posterior variance of the log of the norm.
    weights : `~numpy.ndarray`, shape (n_run,)
        Of the runs, see `NormTails`.
    """
    # M step: regression of the effects on the covariates, each run with its weight, so that a run behind clouds does
    # not move the means of all
    weighted = covariates * weights[:, None]
    gram = covariates.T @ weighted + _COVARIATE_RUNS * np.eye(covariates.shape[1])
    regression = np.zeros(allowed.shape)
    # effects that may depend on the same covariates share one linear system
    for pattern in np.unique(allowed, axis=1).T:
        columns = np.all(allowed == pattern[:, None], axis=0)
        solution = np.linalg.solve(gram[np.ix_(pattern, pattern)], weighted[:, pattern].T @ effects[:, columns])
        regression[np.ix_(pattern, columns)] = solution
    left = effects - covariates @ regression
    norm = float(np.sqrt(np.mean(weights * (norm_rows * left).sum(1) ** 2) + norm_variance / len(effects)))
    left = np.array([population.tails.shorten(weight) @ own for weight, own in zip(weights, left, strict=True)])
    # scatter of the means plus what each run leaves open: the first alone would shrink from step to step
    prior = _PRIOR_RUNS * population.basis.prior_covariance()
    covariance = (left.T @ left + second_moments + prior) / (len(effects) + _PRIOR_RUNS)
    covariance = 0.5 * (covariance + covariance.T)
    shift = float(np.sqrt(covariance[0, 0])) if population.basis.n_shift else 0.0
    return RunPopulation(population.basis, regression, covariance, norm, shift, norm_rows.mean(0))


@dataclass(frozen=True)
class RunEffect:
    """Effects of one run, fitted on its own counts.

    Attributes
    ----------
    obs_id : int or str
        Label of the run; others may have the same.
    basis : `EffectBasis`
    coefficients : `~numpy.ndarray`, shape (basis.n,)
    covariance : `~numpy.ndarray`, shape (basis.n, basis.n)
        Posterior covariance, given the rate of the population: how well the run's own counts tell its effects.
    covariance_of_rate : `~numpy.ndarray`, shape (basis.n, basis.n)
        What the uncertainty of the rate of the population adds to it, much of it common to all runs: the sum of both is
        that of the effects as deviations from the true population.
    response : `~numpy.ndarray`, shape (n_coefficient, basis.n)
        By how much each effect falls when a coefficient of the rate at the run's zenith angle rises; empty, shape (0,
        basis.n), for the runs of the fit.
    scaling : float
        Part of the energy scaling that comes from the covariates of the run.
    norm_row : `~numpy.ndarray`, shape (basis.n,)
        What each coefficient adds to the log of the norm, weighted with the run's expected counts.
    group_edges : `~numpy.ndarray`, shape (n_group + 1,)
        TeV; energy groups of the goodness of fit.
    counts, expected : `~numpy.ndarray`, shape (n_group,)
        Observed and fitted counts.
    deviance, pulls : `~numpy.ndarray`, shape (n_group,)
        Poisson deviance of counts over energy and field of view within each group, minus its expectation in units of
        its standard deviation; and the normal score of the group's sum.
    converged : bool
    flags : tuple of str
        Why this run is to be looked at; empty for a good run.
    norm_energy : tuple of float
        First and last energy in TeV that the effects were fitted to; NaN where there are none.
    start, pointing
        By which, with the label, the run is recognised where it comes again, see `RunKey`.
    followed : tuple of float
        Variances that the uncertainty of the rate adds to the log of the norm and to the shift, as deviations from
        their means over the runs of the fit.
    removed : `~numpy.ndarray`, shape (n_coefficient, n_coefficient)
        What counts that were left out of covariance and response tell of the coefficients of the rate at the run's
        zenith angle, and of those of the asymmetry; empty where none were.
    shape_response : `~numpy.ndarray`, shape (k, basis.n)
        By how much each effect rises with each coefficient of the shape that the effects leave out, see `RunShape`;
        empty where they leave out none.
    """

    obs_id: int | str
    basis: EffectBasis
    coefficients: np.ndarray
    covariance: np.ndarray
    covariance_of_rate: np.ndarray
    response: np.ndarray
    scaling: float
    norm_row: np.ndarray
    group_edges: np.ndarray
    counts: np.ndarray
    expected: np.ndarray
    deviance: np.ndarray
    pulls: np.ndarray
    converged: bool
    flags: tuple[str, ...] = field(default=())
    weight: float = 1.0
    norm_energy: tuple[float, float] = NO_ENERGIES
    start: float = np.nan
    pointing: tuple[float, float] = (np.nan, np.nan)
    followed: tuple[float, float] = (0.0, 0.0)
    removed: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    shape_response: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))

    @property
    def key(self) -> RunKey:
        """What the run is recognised by."""
        return RunKey(self.obs_id, self.start, self.pointing)

    @property
    def norm(self) -> float:
        """Rate over that of the population, at the shifted energy, averaged over the run's spectrum."""
        return float(np.exp(self.norm_row @ self.coefficients))

    @property
    def norm_error(self) -> float:
        """Standard deviation of the norm, as a deviation from its mean over the runs of the fit."""
        return self.norm * float(np.sqrt(self.norm_row @ self.covariance @ self.norm_row + self.followed[0]))

    @property
    def told_rows(self) -> np.ndarray:
        """What each coefficient adds to the log of the norm, and to the energy shift, shape (2, basis.n)."""
        shift = np.zeros(self.basis.n)
        shift[: min(self.basis.n_shift, 1)] = 1
        return np.stack([self.norm_row, shift])

    @property
    def shift(self) -> float:
        """Energy shift in log energy: positive where the threshold is lower than the population's; 0 without."""
        return float(self.coefficients[0]) if self.basis.n_shift else 0.0

    @property
    def shift_error(self) -> float:
        """Standard deviation of the shift, as a deviation from its mean over the runs of the fit."""
        return float(np.sqrt(self.covariance[0, 0] + self.followed[1])) if self.basis.n_shift else 0.0
