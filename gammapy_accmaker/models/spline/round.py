"""One round of the spline fit over a chunk of runs: their effects at the present rate, and what they tell of the rate.

These are functions of their arguments alone, so that other processes can work on chunks. Chunks do not depend on the
number of processes, and their sums are added in one order: nor does the answer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from gammapy_accmaker.models.norm_energy import energies_between
from gammapy_accmaker.models.spline.adapt import THRESHOLD_BLIND, UNUSUAL_NORM, column_means, summarise_run
from gammapy_accmaker.models.spline.effects import RunEffect, RunPopulation, norm_row
from gammapy_accmaker.models.spline.equations import BATCH, RateCovariance, RateEquations, quadratic_form
from gammapy_accmaker.models.spline.likelihood import (
    RateTable,
    RunDesign,
    fit_effects,
    fit_effects_and_weight,
    shift_within_rate,
    sum_slices,
)
from gammapy_accmaker.models.spline.run_cells import RunCells
from gammapy_accmaker.utils.run_key import RunKey

__all__ = ["ChunkSums", "FitRun", "RateState", "chunk_starts", "finish_chunk", "sum_chunk"]

CHUNKS = 8  # about; more of very many runs, fewer of few
CHUNK_SIZES = 3 * BATCH, 16 * BATCH  # runs: enough to be worth handing out, and few enough for memory
ROUND_TOLERANCE = 3e-3  # of the effects of a run, in standard deviations of the prior


@dataclass(frozen=True)
class FitRun:
    """A run of the fit.

    Attributes
    ----------
    key : `RunKey`
    slices : list of `RunCells`
    zenith : `~numpy.ndarray`, shape (n_zenith,)
        Splines in zenith angle, mean over the slices.
    regressors : `~numpy.ndarray`, shape (n_regressor,)
        What the mean effects of the run depend on.
    scaling : float
        Part of the energy scaling that comes from the covariates of the run.
    norm_energy : tuple of float
        First and last energy in TeV that tell of the effects.
    flags : tuple of str
        What there is to say of them.
    """

    key: RunKey
    slices: list[RunCells]
    zenith: np.ndarray
    regressors: np.ndarray
    scaling: float
    norm_energy: tuple[float, float]
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class RateState:
    """The rate and the population of the run effects at the start of a round.

    Attributes
    ----------
    design : `RunDesign`
        One of fewer sectors than the runs have takes their sectors together.
    coefficients : `~numpy.ndarray`, shape (n_energy, n_offset, n_zenith)
    asymmetry : `~numpy.ndarray`
        Log asymmetry in the bins and cells.
    population : `RunPopulation`
    covariance : `RateCovariance`, optional
        Of the coefficients, once it is known.
    """

    design: RunDesign
    coefficients: np.ndarray
    asymmetry: np.ndarray
    population: RunPopulation
    covariance: RateCovariance | None = None


@dataclass
class ChunkSums:
    """What a chunk of runs adds to a round.

    Attributes
    ----------
    equations : `RateEquations`
    known : `RateEquations`, optional
        The same with the effects taken as known, where they are fitted to some of the energies.
    expected : `~numpy.ndarray`, shape (n_energy, n_cell)
        Counts.
    values : `~numpy.ndarray`, shape (n_run, n)
        Effects of each run.
    weights : `~numpy.ndarray`, shape (n_run,)
        Of each run in the population of norms.
    second_moments : `~numpy.ndarray`, shape (n, n)
        Sum of their posterior covariances, shortened by `NormTails.shorten`.
    norm_rows : `~numpy.ndarray`, shape (n_run, n)
        See `norm_row`.
    norm_variance : float
        Sum of weight times posterior variance of the log of the norm.
    gains : list of `~numpy.ndarray`, shape (n_energy * n_offset, n)
        By how much the effects of each run fall as a coefficient of the rate at its zenith angle rises.
    """

    equations: RateEquations
    expected: np.ndarray
    values: np.ndarray
    weights: np.ndarray
    second_moments: np.ndarray
    norm_rows: np.ndarray
    norm_variance: float = 0.0
    gains: list[np.ndarray] = field(default_factory=list)
    known: RateEquations | None = None


def chunk_starts(n_run: int) -> range:
    """Numbers of the first runs of the chunks: whole batches each."""
    size = int(np.clip(BATCH * np.ceil(n_run / CHUNKS / BATCH), *CHUNK_SIZES))
    return range(0, n_run, size)


def sum_chunk(state: RateState, runs: list[FitRun], values: np.ndarray, weights: np.ndarray, n_steps: int) -> ChunkSums:
    """Effects of runs at the present rate, and what is left to tell of the rate when they are integrated out.

    Parameters
    ----------
    state : `RateState`
    runs : list of `FitRun`
    values : `~numpy.ndarray`, shape (n_run, n)
        Their effects so far.
    weights : `~numpy.ndarray`, shape (n_run,)
        Their weights so far.
    n_steps : int
        Of the effects; 0 leaves them alone, and takes them as known.
    """
    design, population, adapt = state.design, state.population, n_steps > 0
    values, weights, n, expected = values.copy(), weights.copy(), design.effects.n, 0.0
    second_moments, norm_rows, norm_variance, gains = np.zeros((n, n)), np.zeros((len(runs), n)), 0.0, []
    equations = _equations(state)
    known = _equations(state) if adapt and design.effects.kind in THRESHOLD_BLIND else None
    for i, (run, slices, tables, spread) in enumerate(_with_tables(state, runs, adapt)):
        if adapt:
            prior = population.tails.prior(weights[i])
            precision = np.linalg.inv(prior)
            mean = population.mean(run.regressors)
            values[i], *_ = fit_effects(
                design, tables, slices, mean, prior, start=values[i], max_steps=n_steps, tolerance=ROUND_TOLERANCE
            )
        sums = sum_slices(design, tables, slices, values[i], full=True)
        expected = expected + sums.expected
        information, gradient = sums.rate_information, sums.rate_gradient.ravel()
        if known is not None:
            known.add(run.zenith, information, gradient)
        if adapt:
            posterior = np.linalg.inv(sums.information + precision)
            gain = sums.cross_information @ posterior
            information = information - gain @ sums.cross_information.T
            deviation = values[i] - mean
            gradient = gradient - gain @ (sums.gradient - precision @ deviation)
            gains.append(gain.astype(np.float32))
            weights[i], _ = population.tails.weight(deviation, posterior, weights[i])
            posterior = posterior + quadratic_form(spread, gain)
            shorten = population.tails.shorten(weights[i])
            second_moments += shorten @ posterior @ shorten.T
            told = energies_between(design.energy_edges, run.norm_energy)
            norm_rows[i] = norm_row(design.effects, column_means(design, sums.expected * told[:, None]))
            norm_variance += weights[i] * norm_rows[i] @ posterior @ norm_rows[i]
        equations.add(run.zenith, information, gradient)
    for own in (equations, known):
        if own is not None:
            own.take_batch()
    return ChunkSums(equations, expected, values, weights, second_moments, norm_rows, norm_variance, gains, known)


def finish_chunk(
    state: RateState, runs: list[FitRun], values: np.ndarray, weights: np.ndarray, adapt: bool
) -> tuple[RateEquations, list[RunEffect]]:
    """Effects of runs at their maximum, with their errors, and what the runs tell of the rate at the end.

    Parameters
    ----------
    state : `RateState`
    runs : list of `FitRun`
    values : `~numpy.ndarray`, shape (n_run, n)
        Their effects so far.
    weights : `~numpy.ndarray`, shape (n_run,)
        Their weights so far.
    adapt : bool
        Whether there are any.
    """
    design, population, effects = state.design, state.population, []
    equations, n = _equations(state), design.effects.n
    for value, weight, (run, slices, tables, spread) in zip(
        values, weights, _with_tables(state, runs, adapt), strict=True
    ):
        posterior, converged, flags = np.zeros((n, n)), True, run.flags
        if adapt:
            value, weight, unusual, converged = fit_effects_and_weight(
                design, tables, slices, population.mean(run.regressors), population.tails, start=value, weight=weight
            )
            flags += UNUSUAL_NORM * unusual
        sums = sum_slices(design, tables, slices, value, full=True)
        information, of_rate = sums.rate_information, np.zeros((n, n))
        if adapt:
            within, cross = shift_within_rate(design, sums, state.coefficients @ run.zenith)
            posterior = np.linalg.inv(within + np.linalg.inv(population.tails.prior(weight)))
            gain = cross @ posterior
            information = information - gain @ cross.T
            of_rate = of_rate + quadratic_form(spread, gain)
        equations.add(run.zenith, information, sums.rate_gradient.ravel())
        effects.append(
            summarise_run(
                design, slices, value.copy(), posterior, of_rate, sums.expected, population, run.key, run.scaling, converged,
                weight, flags, run.norm_energy,
            )
        )  # fmt: skip
    equations.take_batch()
    return equations, effects


def _equations(state):
    n_energy, n_offset, n_zenith = state.coefficients.shape
    return RateEquations(n_energy * n_offset, n_zenith)


def _with_tables(state: RateState, runs, adapt) -> Iterator:
    """Each run, its slices, the tables of the rate for them, and the covariance of the rate at its zenith angle."""
    for start in range(0, len(runs), BATCH):
        batch = runs[start : start + BATCH]
        spread = [None] * len(batch)
        if adapt and state.covariance is not None:
            spread = state.covariance.at(np.array([run.zenith for run in batch]))
        for run, own in zip(batch, spread, strict=True):
            together = len(run.slices[0].exposure) // state.design.cells.n_cell
            slices = run.slices if together == 1 else [s.on_rings(together) for s in run.slices]
            tables = [RateTable.at(state.design, state.coefficients, s.zenith_basis, state.asymmetry) for s in slices]
            yield run, slices, tables, own
