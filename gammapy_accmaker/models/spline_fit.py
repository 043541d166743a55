"""Fit of the spline model to the counts of many runs.

The coefficients of the rate and the effects of all runs are fitted together: for the present rate each run's effects
are brought to their maximum, and the step of the rate uses the information that is left when the effects are
integrated out (a Schur complement for each run), so that scatter between runs is not taken for structure in zenith
angle. Smoothing parameters follow Fellner-Schall updates, the population of the effects the EM algorithm.
"""

from __future__ import annotations

import numpy as np
from scipy.linalg import cho_solve, cholesky, lapack

from gammapy_accmaker.models.bsplines import (
    axis_penalties,
    difference_penalty,
    fellner_schall,
    fit_tensor_spline,
    penalty_eigenvalues,
)
from gammapy_accmaker.models.fov_cells import FovCells, asymmetry_orders
from gammapy_accmaker.models.run_effects import RunPopulation, norm_row, update_population
from gammapy_accmaker.models.run_likelihood import RateTable, RunCells, RunSums, fit_effects, sum_slices
from gammapy_accmaker.models.spline import SplineModel
from gammapy_accmaker.models.spline_run import column_means, project_run, summarise_run
from gammapy_accmaker.models.spline_setup import SplineSetup, group_runs

__all__ = ["fit_spline"]

MAX_BIN_WIDTH = 0.12  # in log energy; wider bins would need an integral within the bin
START_INDEX = -2.7  # spectral index before anything is fitted
RATE_ONLY_ROUNDS = 3  # before effects of runs are fitted
MAX_STEP = 1.5  # of a coefficient of the rate in one round
NULL_SPACE = 1e-3  # first differences in offset and zenith: directions without data flatten out
RIDGE = 1e-4  # towards the spectrum of all counts: where there are no data a coefficient does not run away
ASYMMETRY_ROUNDS = (2, 4, 6, 9)
MIN_ROUNDS = 6
CONVERGED = 1e-3  # change of the expected counts over all counts, cell by cell
ROUND_STEPS = 2  # of the effects of a run in one round


def fit_spline(
    runs,
    energy_edges,
    fov_lon,
    fov_lat,
    solid_angle,
    *,
    run_effects: str = "shift",
    gradient: bool = True,
    zenith: bool = True,
    covariates: tuple[str, ...] = (),
    max_rounds: int = 14,
) -> SplineModel:
    """Fit the spline model.

    Parameters
    ----------
    runs : list of `RunCounts`-like
        With ``counts`` (n_energy, n_fov) sparse, ``exposure`` (n_fov,) in s, ``cos_zenith``, ``azimuth`` in deg,
        ``obs_id`` and ``covariates``. Entries of the same ``obs_id`` are slices of one run and share its effects.
    energy_edges : array_like, shape (n_energy + 1,)
        TeV; fine bins (0.02 dex is good, at most 0.05 dex), in which the rate is taken at the centre.
    fov_lon, fov_lat, solid_angle : array_like, shape (n_fov,)
        Pixels, in deg and sr.
    run_effects : str
        ``none``, ``norm``, ``tilt`` or ``shift``.
    gradient : bool
        For ``shift``: whether radial width and gradients in the field of view may differ from run to run.
    zenith : bool
        Whether the rate depends on zenith angle.
    covariates : tuple of str
        Keys of ``run.covariates`` that the energy scale and the mean effects may depend on.
    max_rounds : int
        Most rounds of the fit.

    Returns
    -------
    model : `SplineModel`
    """
    energy_edges = np.asarray(energy_edges, dtype=float)
    if np.diff(np.log(energy_edges)).max() > MAX_BIN_WIDTH:
        raise ValueError("energy_edges: bins of the spline fit must not be wider than 0.05 dex; use finer bins")
    if max_rounds <= RATE_ONLY_ROUNDS:
        raise ValueError(f"max_rounds: got {max_rounds}, but more than {RATE_ONLY_ROUNDS} are needed")
    grouped = group_runs(runs, zenith)
    cells = FovCells(*(np.asarray(a, dtype=float) for a in (fov_lon, fov_lat, solid_angle)))
    setup = SplineSetup.of(grouped, energy_edges, cells, run_effects, gradient, zenith, tuple(covariates))
    fit = _JointFit(setup, grouped)
    fit.run(max_rounds)
    return fit.model()


class _JointFit:
    """State of the fit between its rounds."""

    def __init__(self, setup: SplineSetup, grouped):
        self.setup, self.design = setup, setup.design
        scale, basis = setup.scale, setup.design.effects
        self.runs: list[list[RunCells]] = []
        regressors = []
        for slices in grouped:
            self.runs.append([self._project(s) for s in slices])
            rows = [scale.regressors(s.cos_zenith, s.azimuth, s.covariates) for s in slices]
            regressors.append(np.mean(rows, axis=0))
        self.obs_ids = [slices[0].obs_id for slices in grouped]
        self.own_scaling = [scale.scaling(s[0].cos_zenith, s[0].covariates)[1] for s in grouped]
        self.regressors = np.array(regressors)
        self.counts = self._all_counts()
        regression = np.zeros((scale.n_regressor, basis.n))
        self.population = RunPopulation(basis, regression, basis.prior_covariance())
        self.values = np.zeros((len(grouped), basis.n))
        # constants and zenith are in the rate itself already, but for gradients in the field of view
        self.allowed = np.ones(regression.shape, dtype=bool)
        self.allowed[: int(scale.zenith)] = basis.odd
        self.allowed[-1] = basis.odd
        self.coefficients = self._first_coefficients()
        sizes = self.coefficients.shape
        axes = [difference_penalty(n) for n in sizes]
        self.penalties, self.eigenvalues = axis_penalties(axes), penalty_eigenvalues(axes)
        flat = axis_penalties([np.zeros((sizes[0],) * 2), *(difference_penalty(n, 1) for n in sizes[1:])])
        self.null_space = NULL_SPACE * (flat[1] + flat[2]) + RIDGE * np.eye(self.coefficients.size)
        self.pull = RIDGE * self.coefficients.ravel()
        self.smoothing = np.array([1.0, 10.0, 10.0])
        self.asymmetry_bases = [
            setup.asymmetry_energy_axis.basis(self.design.log_energy),
            self.design.cells.asymmetry(setup.asymmetry_offset_axis),
        ]
        orders = asymmetry_orders(setup.asymmetry_offset_axis).astype(float)
        n = setup.asymmetry_energy_axis.n
        self.asymmetry_penalties = [difference_penalty(n, 1) + 1e-3 * np.eye(n), np.diag(orders**2)]
        self.asymmetry = np.zeros((n, len(orders)))
        self.asymmetry_fit = None
        self.by_zenith, self.factor, self.effects, self.converged = None, None, (), False

    def _project(self, part):
        zenith = float(np.clip(part.cos_zenith, *self.setup.zenith_range)) if self.setup.scale.zenith else 0.5
        scaling = sum(self.setup.scale.scaling(part.cos_zenith, part.covariates))
        return project_run(self.design, part, self.setup.zenith_axis.basis([zenith])[0], scaling)

    def _all_counts(self):
        shape = (len(self.design.log_energy), self.design.cells.n_cell)
        total = np.zeros(shape[0] * shape[1])
        for slices in self.runs:
            for part in slices:
                total[part.index] += part.counts
        return total.reshape(shape)

    def _first_coefficients(self):
        """The same spectrum at all offsets and zenith angles: a one-dimensional fit of all counts."""
        energy, n_cell = self.design.energy, self.design.cells.n_cell
        nodes = np.linspace(energy.lo, energy.hi, 151)
        counts, exposure = np.zeros(150), np.zeros(150)
        for part in (p for slices in self.runs for p in slices):
            bins = np.clip(np.searchsorted(nodes, part.scaled_energy) - 1, 0, 149)
            counts += np.bincount(bins[part.index // n_cell], part.counts, 150)
            flux = np.exp(self.design.log_width + START_INDEX * part.scaled_energy)
            exposure += np.bincount(bins, flux * part.exposure.sum(), 150)
        seen = exposure > 0
        basis, n = energy.basis(0.5 * (nodes[1:] + nodes[:-1])[seen]), energy.n
        fit = fit_tensor_spline(
            counts[seen],
            exposure[seen],
            [basis],
            [difference_penalty(n)],
            smoothing=[1.0],
            estimate_smoothing=False,
            max_rounds=100,
        )
        spectrum = fit.coefficients + START_INDEX * energy.centers
        return np.tile(spectrum[:, None, None], (1, self.design.offset.n, self.setup.zenith_axis.n))

    def run(self, max_rounds):
        """All rounds of the fit."""
        adapt, last = self.design.effects.n > 0, np.inf
        for k in range(max_rounds):
            before = self.population
            expected = self._round(adapt and k >= RATE_ONLY_ROUNDS)
            change = np.abs(expected - last).sum() / self.counts.sum()
            last = expected
            if k in ASYMMETRY_ROUNDS:
                self._fit_asymmetry(expected)
            if k > MIN_ROUNDS and change < CONVERGED and _similar(before, self.population):
                self.converged = True
                break
        # the last pass: effects and errors at the final rate
        self._round(adapt, final=True)

    def _round(self, adapt, final=False):
        """Effects of every run at the present rate, then one step of the rate, its smoothing and the population.

        The final round only takes the effects and the errors at the present rate. Returns the expected counts.
        """
        design, shape, n_run = self.design, self.coefficients.shape, len(self.runs)
        k, n_z, n = shape[0] * shape[1], shape[2], design.effects.n
        information, gradient = np.zeros((n_z, n_z, k, k)), np.zeros((k, n_z))
        expected = np.zeros(self.counts.shape)
        second_moments, norm_rows, norm_variance = np.zeros((n, n)), np.zeros((n_run, n)), 0.0
        asymmetry = self.asymmetry_bases[0] @ self.asymmetry @ self.asymmetry_bases[1].T
        precision = np.linalg.inv(self.population.covariance)
        follow, effects = [], []
        for i, slices in enumerate(self.runs):
            tables = [RateTable.at(design, self.coefficients, s.zenith_basis, asymmetry) for s in slices]
            time = np.array([s.exposure.sum() for s in slices])
            zenith = time @ np.array([s.zenith_basis for s in slices]) / time.sum()
            mean, posterior, converged = self.population.mean(self.regressors[i]), np.zeros((n, n)), True
            if adapt:
                self.values[i], _, _, converged = fit_effects(
                    design,
                    tables,
                    slices,
                    mean,
                    self.population.covariance,
                    start=self.values[i],
                    max_steps=30 if final else ROUND_STEPS,
                    tolerance=1e-4 if final else 3e-3,
                )
            sums = sum_slices(design, tables, slices, self.values[i], full=True)
            expected += sums.expected
            rate_information, rate_gradient = sums.rate_information, sums.rate_gradient.ravel()
            if adapt:
                between, cross = (
                    self._shift_within_rate(sums, zenith)
                    if final
                    else (
                        sums.information,
                        sums.cross_information,
                    )
                )
                posterior = np.linalg.inv(between + precision)
                gain = cross @ posterior
                rate_information = rate_information - gain @ cross.T
                # what the effects have yet to move, when they are not quite at their maximum
                rate_gradient = rate_gradient - gain @ (sums.gradient - precision @ (self.values[i] - mean))
                follow.append((zenith, gain.astype(np.float32)))
                posterior = posterior + gain.T @ self._rate_covariance(zenith) @ gain
                second_moments += posterior
                norm_rows[i] = norm_row(design.effects, column_means(design, sums.expected))
                norm_variance += norm_rows[i] @ posterior @ norm_rows[i]
            gradient += rate_gradient[:, None] * zenith
            near = np.flatnonzero(zenith)
            for a in near:
                for b in near[near <= a]:
                    information[a, b] += zenith[a] * zenith[b] * rate_information
            if final:
                effects.append(self._effect(i, posterior, sums.expected, converged))
        for a in range(n_z):
            for b in range(a):
                information[b, a] = information[a, b]
        information = information.transpose(2, 0, 3, 1).reshape(k * n_z, k * n_z)
        penalty = sum(s * p for s, p in zip(self.smoothing, self.penalties, strict=True)) + self.null_space
        lower = cholesky(information + penalty, lower=True)
        if final:
            self.factor, self.effects = lapack.dtrtri(lower, lower=1)[0].T, tuple(effects)
            return expected
        values = self.coefficients.ravel()
        step = cho_solve((lower, True), gradient.ravel() - penalty @ values + self.pull)
        step = np.clip(step, -MAX_STEP, MAX_STEP)
        values = values + step
        self.coefficients = values.reshape(shape)
        triangle = lapack.dpotri(lower, lower=1)[0]
        covariance = triangle + triangle.T
        covariance[np.diag_indices(len(values))] /= 2
        self.by_zenith = np.ascontiguousarray(covariance.reshape(k, n_z, k, n_z).transpose(1, 3, 0, 2))
        if adapt or not n:
            self.smoothing = fellner_schall(self.smoothing, self.eigenvalues, self.penalties, values, covariance)
        if adapt:
            # the effects follow the step to first order before the population does, or the two would oscillate
            for i, (zenith, gain) in enumerate(follow):
                self.values[i] -= (step.reshape(k, n_z) @ zenith) @ gain
            self.population = update_population(
                self.population,
                self.values,
                second_moments,
                self.regressors,
                self.allowed,
                norm_rows,
                norm_variance,
            )
        return expected

    def _rate_covariance(self, zenith):
        """Covariance of the coefficients in energy and offset at one zenith angle, from the last round."""
        near = np.flatnonzero(zenith)
        return sum(zenith[a] * zenith[b] * self.by_zenith[a, b] for a in near for b in near)

    def _effect(self, i, covariance, expected, converged):
        return summarise_run(
            self.design,
            self.runs[i],
            self.values[i].copy(),
            covariance,
            expected,
            self.population,
            self.obs_ids[i],
            self.own_scaling[i],
            converged,
        )

    def _shift_within_rate(self, sums: RunSums, zenith) -> tuple[np.ndarray, np.ndarray]:
        """Information of the effects, and between rate and effects, with the shift as a direction of the rate.

        The derivative of a spline is not quite a spline of the same knots. The small difference would look as if the
        knots told where the threshold is, and errors there would come out too small.
        """
        information, cross = sums.information.copy(), sums.cross_information.copy()
        if self.design.effects.n_shift:
            direction = (self.design.energy.differentiate @ (self.coefficients @ zenith)).ravel()
            cross[:, 0] = sums.rate_information @ direction
            information[0] = information[:, 0] = direction @ cross
        return information, cross

    def _fit_asymmetry(self, expected):
        without = expected / np.exp(self.asymmetry_bases[0] @ self.asymmetry @ self.asymmetry_bases[1].T)
        self.asymmetry_fit = fit_tensor_spline(
            self.counts,
            np.maximum(without, 1e-12),
            self.asymmetry_bases,
            self.asymmetry_penalties,
            smoothing=None if self.asymmetry_fit is None else self.asymmetry_fit.smoothing,
            start=self.asymmetry,
            max_rounds=8,
        )
        self.asymmetry = self.asymmetry_fit.coefficients

    def model(self) -> SplineModel:
        """The fitted model."""
        setup, design, population = self.setup, self.design, self.population
        return SplineModel(
            energy_edges=design.energy_edges,
            fov_lon=design.cells.fov_lon,
            fov_lat=design.cells.fov_lat,
            solid_angle=design.cells.solid_angle,
            zenith_range=setup.zenith_range,
            covariates=setup.scale,
            energy_axis=design.energy,
            offset_axis=design.offset,
            zenith_axis=setup.zenith_axis,
            asymmetry_energy_axis=setup.asymmetry_energy_axis,
            asymmetry_offset_axis=setup.asymmetry_offset_axis,
            coefficients=self.coefficients,
            covariance_factor=self.factor[np.triu_indices(len(self.factor))].astype(np.float32),
            asymmetry=self.asymmetry,
            asymmetry_covariance=self.asymmetry_fit.covariance.astype(np.float32),
            smoothing=self.smoothing,
            asymmetry_smoothing=self.asymmetry_fit.smoothing,
            population=population,
            effects=self.effects,
            converged=self.converged,
        )


def _similar(before: RunPopulation, after: RunPopulation) -> bool:
    """Whether the spreads of the population changed by less than 1 %."""
    pairs = [(before.norm_spread, after.norm_spread), (before.shift_spread, after.shift_spread)]
    return all(abs(a - b) <= 0.01 * b or not np.isfinite(b) for a, b in pairs)
