"""Fit of the spline model to the counts of many runs.

The coefficients of the rate and the effects of all runs are fitted together: for the present rate each run's effects
are brought to their maximum, and the step of the rate uses the information that is left when the effects are
integrated out (a Schur complement for each run), so that scatter between runs is not taken for structure in zenith
angle. Smoothing parameters follow Fellner-Schall updates, the population of the effects the EM algorithm.

From the top: the axes are chosen from the runs (`_SplineSetup`); one round over a chunk of runs (`_sum_chunk`,
`_finish_chunk`), in functions of their arguments alone, so that other processes can work on chunks; and the rounds, up
to convergence (`fit_spline`). Chunks do not depend on the number of processes, and their sums are added in one order:
nor does the answer.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
from scipy.linalg import cho_solve, lapack

from gammapy_accmaker.errors import InputError
from gammapy_accmaker.models.bsplines import (
    BSplineAxis,
    difference_penalty,
    fit_tensor_spline,
)
from gammapy_accmaker.models.fit_counts import zenith_range
from gammapy_accmaker.models.norm_energy import (
    NO_ENERGIES,
    choose_energies,
    energies_between,
    find_scatter,
    given_energies,
    late_flags,
)
from gammapy_accmaker.models.run_shape import ShapeGroups, find_shape
from gammapy_accmaker.models.source_terms import (
    TINY,
    AmplitudeEquations,
    AmplitudeFit,
    SourceBands,
    step_amplitudes,
)
from gammapy_accmaker.models.spline.adapt import (
    THRESHOLD_BLIND,
    UNUSUAL_NORM,
    as_slices,
    column_means,
    fit_run,
    mean_scaling,
    project_run,
    summarise_run,
)
from gammapy_accmaker.models.spline.cells import AsymmetryCells, FovCells, RunCells, asymmetry_orders, gather_counts
from gammapy_accmaker.models.spline.covariates import CovariateScale
from gammapy_accmaker.models.spline.effects import EffectBasis, RunEffect, RunPopulation, norm_row, update_population
from gammapy_accmaker.models.spline.equations import (
    BATCH,
    RateCovariance,
    RateEquations,
    factor_of,
    moving_directions,
    quadratic_form,
    reaction_variance,
)
from gammapy_accmaker.models.spline.likelihood import (
    RateTable,
    RunDesign,
    fit_effects,
    fit_effects_and_weight,
    shift_within_rate,
    sum_slices,
)
from gammapy_accmaker.models.spline.model import SplineModel, zenith_splines
from gammapy_accmaker.models.spline.penalty import RatePenalty
from gammapy_accmaker.models.spline.scaled_energy import ScaledEnergyAxis
from gammapy_accmaker.utils.run_key import RunKey

_OFFSET_STEP, _ZENITH_STEP, _ASYMMETRY_ENERGY_STEP, _ASYMMETRY_OFFSET_STEP = 0.4, 0.13, 1.2, 1.2
_SHIFT_MARGIN = 0.15  # in log energy: a run that is shifted finds the spectrum continued, not a step in its slope
_MIN_ZENITH_RANGE = 0.02  # in cos zenith; over less the rate does not depend on it


# ---- Axes ----


def _order_runs(runs, zenith) -> tuple[list, list[int]]:
    """Runs with exposure, each a list of its slices, in an order that is theirs and not that of the input.

    Parameters
    ----------
    runs : list of list of `CellCounts`
    zenith : bool
        Whether their zenith angles must be known.

    Returns
    -------
    ordered : list of list of `CellCounts`
    places : list of int
        Of each of them in the input.
    """
    with_exposure = [sorted(as_slices(slices), key=_content) for slices in runs]
    places = [place for place, slices in enumerate(with_exposure) if slices]
    places.sort(key=lambda place: [_content(part) for part in with_exposure[place]])
    ordered = [with_exposure[place] for place in places]
    if not sum(s.counts.sum() for slices in ordered for s in slices) > 0:
        raise InputError(f"runs: none of {len(with_exposure)} runs has both exposure and counts in the energy range")
    unknown = [s[0].key.obs_id for s in ordered if not all(np.isfinite(r.cos_zenith) for r in s)]
    if zenith and unknown:
        raise InputError(
            f"runs {unknown}: the zenith angle is not known; "
            f"give `observatory_location`, or use `zenith: {{type: none}}`"
        )
    return ordered, places


def _content(part):
    """What slices are sorted by; those that are alike in it may come in any order."""
    return float(np.nan_to_num(part.cos_zenith)), float(part.counts.sum()), float(part.exposure.sum())


@dataclass(frozen=True)
class _SplineSetup:
    """Axes and bases of a fit.

    Attributes
    ----------
    design : `RunDesign`
    scale : `CovariateScale`
    zenith_range : tuple of float
        Of cos zenith, as the runs have seen it.
    zenith_axis : `BSplineAxis`
        In the log of cos zenith.
    asymmetry_energy_axis, asymmetry_offset_axis : `BSplineAxis`
    """

    design: RunDesign
    scale: CovariateScale
    zenith_range: tuple[float, float]
    zenith_axis: BSplineAxis
    asymmetry_energy_axis: BSplineAxis
    asymmetry_offset_axis: BSplineAxis

    @classmethod
    def of(cls, grouped, energy_edges, cells, run_effects, gradient, zenith, covariates) -> _SplineSetup:
        """Choose them for these runs (from `_order_runs`); the arguments are those of `fit_spline`."""
        log_energy = 0.5 * np.log(energy_edges[1:] * energy_edges[:-1])
        slices = [s for run in grouped for s in run]
        spectra = np.array([s.spectrum(len(log_energy)) for s in slices])
        scale = _threshold_scaling(CovariateScale.of(slices, zenith, covariates), slices, spectra, log_energy)
        scaled = np.array([log_energy + sum(scale.scaling(s.cos_zenith, s.covariates)) for s in slices])
        ends = [sum(scale.scaling(z, s.covariates)) for s in slices for z in s.cos_zenith_range]
        energy = _energy_axis(scaled, spectra, log_energy[0] + min(ends), log_energy[-1] + max(ends))
        lo, hi = zenith_range(slices) if zenith else (0.0, 1.0)
        # a run tells of its mean zenith angle, however far its slices reach
        by_run = [np.mean([s.cos_zenith for s in run]) for run in grouped]
        if zenith and np.ptp(by_run) > _MIN_ZENITH_RANGE:
            # no more splines than the runs can tell apart
            n_zenith = min(int(np.ceil((hi - lo) / _ZENITH_STEP)) + 3, 3 + len(grouped) // 3, 9)
            zenith_axis = BSplineAxis(np.log(lo), np.log(hi), max(n_zenith, 4))
        else:
            zenith_axis = BSplineAxis(-1.0, 0.0, 1)
        offset = BSplineAxis(
            0.0, cells.offset_max, max(int(np.ceil(cells.offset_max / _OFFSET_STEP)) + 2, 3), even=True
        )
        lo_e, pivot, hi_e = _quantiles(log_energy, spectra.sum(0), (1e-3, 0.5, 1 - 1e-3))
        if hi_e - lo_e < 0.1:
            lo_e, hi_e = log_energy[0] - 0.1, log_energy[-1] + 0.1
        effects = EffectBasis(run_effects, gradient, lo_e, hi_e, pivot, cells.offset_max)
        n_energy = max(int(np.ceil((hi_e - lo_e) / _ASYMMETRY_ENERGY_STEP)) + 3, 4)
        n_offset = max(int(np.ceil(cells.offset_max / _ASYMMETRY_OFFSET_STEP)) + 3, 4)
        return cls(
            RunDesign(energy_edges, cells, energy, offset, effects),
            scale,
            (lo, hi),
            zenith_axis,
            BSplineAxis(lo_e, hi_e, n_energy),
            BSplineAxis(0.0, cells.offset_max, n_offset),
        )


def _quantiles(x, weights, shares):
    """Positions below which the given shares of the weights lie; x need not be sorted."""
    order = np.argsort(x, kind="stable")
    total = np.cumsum(weights[order])
    return [float(np.interp(share * total[-1], total, x[order])) for share in shares]


def _threshold_scaling(scale, slices, spectra, log_energy):
    """Energy scaling that moves the 5 % quantiles of the runs' log energies onto each other."""
    seen = spectra.sum(1) > 0
    if not seen.any() or not len(scale.center):
        return scale
    standard = np.array([scale.standard(s.cos_zenith, s.covariates) for s in slices])[seen]
    weights = spectra[seen].sum(1)
    quantile = np.array([_quantiles(log_energy, s, (0.05,))[0] for s in spectra[seen]])
    mean = np.average(standard, axis=0, weights=weights)
    # weighted least squares of the quantile on the covariates, with a small ridge for those that go together
    centered = (standard - mean) * weights[:, None]
    gram = centered.T @ standard + 1e-2 * weights.sum() * np.eye(standard.shape[1])
    slope = np.linalg.solve(gram, centered.T @ (quantile - np.average(quantile, weights=weights)))
    return scale.with_scaling(-slope)


def _energy_axis(scaled, spectra, lowest, highest):
    """Knots dense from the lowest counts to beyond the peak of the counts, where the threshold is."""
    low, middle = _quantiles(scaled.ravel(), spectra.ravel(), (3e-4, 0.4))
    return ScaledEnergyAxis(float(lowest) - _SHIFT_MARGIN, float(highest) + _SHIFT_MARGIN, low - 0.1, middle)


# ---- One round over a chunk of runs ----

_CHUNKS = 8  # more of very many runs, fewer of few
_CHUNK_SIZES = 24, 256  # runs, about: enough to be worth handing out, and few enough for memory
_ROUND_TOLERANCE = 3e-3  # of the effects of a run, in standard deviations of the prior


@dataclass(frozen=True)
class _FitRun:
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
class _RateState:
    """The rate and the population of the run effects at the start of a round.

    Attributes
    ----------
    design : `RunDesign`
        One of fewer sectors than the runs have takes their sectors together.
    coefficients : `~numpy.ndarray`, shape (n_energy, n_offset, n_zenith)
    asymmetry : `~numpy.ndarray`
        Log asymmetry in the bins and cells and its derivatives, see `AsymmetryCells.log_mean`.
    population : `RunPopulation`
    covariance : `RateCovariance`, optional
        Of the coefficients, once it is known.
    bands, amplitudes : `SourceBands`, `~numpy.ndarray`, optional
        Of the sources, where there are some.
    groups : `ShapeGroups`, optional
        In which runs are compared whose effects cannot follow a threshold.
    """

    design: RunDesign
    coefficients: np.ndarray
    asymmetry: np.ndarray
    population: RunPopulation
    covariance: RateCovariance | None = None
    bands: SourceBands | None = None
    amplitudes: np.ndarray | None = None
    groups: ShapeGroups | None = None


@dataclass
class _ChunkSums:
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
    sources, known_sources : `AmplitudeEquations`, optional
        Of the amplitudes of sources, with the effects integrated out, and with them taken as known.
    follows : list of `~numpy.ndarray`, shape (n, n_amplitude)
        By how much the effects of each run fall as an amplitude rises.
    weighted : `~numpy.ndarray`, shape (n_energy, n_cell)
        Counts with the share of the background in what is expected there; empty without sources.
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
    sources: AmplitudeEquations | None = None
    known_sources: AmplitudeEquations | None = None
    follows: list[np.ndarray | None] = field(default_factory=list)
    weighted: np.ndarray = field(default_factory=lambda: np.zeros(0))


def chunk_starts(n_run: int) -> range:
    """Numbers of the first runs of the chunks, which are of nearly one size."""
    fewest, most = _CHUNK_SIZES
    number = max(min(round(n_run / fewest), _CHUNKS), -(-n_run // most), 1)
    return range(0, n_run, max(-(-n_run // number), 1))


def _sum_chunk(
    state: _RateState, runs: list[_FitRun], values: np.ndarray, weights: np.ndarray, n_steps: int
) -> _ChunkSums:
    """Effects of runs at the present rate, and what is left to tell of the rate when they are integrated out.

    Parameters
    ----------
    state : `_RateState`
    runs : list of `_FitRun`
    values : `~numpy.ndarray`, shape (n_run, n)
        Their effects so far.
    weights : `~numpy.ndarray`, shape (n_run,)
        Their weights so far.
    n_steps : int
        Of the effects; 0 leaves them alone, and takes them as known.
    """
    design, population, adapt = state.design, state.population, n_steps > 0
    values, weights, n, expected = values.copy(), weights.copy(), design.effects.n, np.zeros(())
    second_moments, norm_rows, norm_variance, gains = np.zeros((n, n)), np.zeros((len(runs), n)), 0.0, []
    equations = _equations(state)
    known = _equations(state) if adapt and design.effects.kind in THRESHOLD_BLIND else None
    sources, known_sources = _amplitude_equations(state), _amplitude_equations(state)
    follows: list[np.ndarray | None] = []
    weighted = np.zeros(())
    for i, (run, slices, tables, spread) in enumerate(_with_tables(state, runs, adapt)):
        if adapt:
            prior = population.tails.prior(weights[i])
            precision = np.linalg.inv(prior)
            mean = population.mean(run.regressors)
            values[i], *_ = fit_effects(
                design, tables, slices, mean, prior, start=values[i], max_steps=n_steps, tolerance=_ROUND_TOLERANCE
            )
        sums = sum_slices(design, tables, slices, values[i], full=True, bands=state.bands)
        expected, weighted = expected + sums.expected, weighted + sums.weighted
        information, gradient = sums.rate_information, sums.rate_gradient.ravel()
        if known is not None:
            known.add(run.zenith, information, gradient)
        of_sources = sums.sources
        if of_sources is not None:
            known_sources.add(run.zenith, of_sources.gradient, of_sources.information, of_sources.with_rate)
        if adapt:
            # Schur complement: with rate and effects in one Gaussian of information [[R, C], [C', E]], the rate alone
            # has R - C E^-1 C'. What the effects can explain as well does not count as knowledge of the rate.
            posterior = np.linalg.inv(sums.information + precision)
            gain = sums.cross_information @ posterior
            information = information - gain @ sums.cross_information.T
            deviation = values[i] - mean
            # 0 at the maximum of the effects, which one or two Newton steps do not quite reach
            left = sums.gradient - precision @ deviation
            gradient = gradient - gain @ left
            gains.append(gain.astype(np.float32))
            follow = None
            if of_sources is not None:
                follow = posterior @ of_sources.with_effects
                of_sources = of_sources.without_effects(gain, follow, left)
            follows.append(follow)
            weights[i], _ = population.tails.weight(deviation, posterior, weights[i])
            # the effects are uncertain as well because the rate is, which they follow by the gain
            posterior = posterior + quadratic_form(spread, gain)
            shorten = population.tails.shorten(weights[i])
            second_moments += shorten @ posterior @ shorten.T
            told = energies_between(design.energy_edges, run.norm_energy)
            norm_rows[i] = norm_row(design.effects, column_means(design, sums.expected.sum(1) * told))
            norm_variance += weights[i] * norm_rows[i] @ posterior @ norm_rows[i]
        equations.add(run.zenith, information, gradient)
        if of_sources is not None:
            sources.add(run.zenith, of_sources.gradient, of_sources.information, of_sources.with_rate)
    for own in (equations, known):
        if own is not None:
            own.take_batch()
    return _ChunkSums(
        equations, expected, values, weights, second_moments, norm_rows, norm_variance, gains, known,
        sources, known_sources, follows, weighted,
    )  # fmt: skip


def _finish_chunk(
    state: _RateState, runs: list[_FitRun], values: np.ndarray, weights: np.ndarray, adapt: bool
) -> tuple[RateEquations, list[RunEffect], list[np.ndarray], list[tuple[np.ndarray, np.ndarray]]]:
    """Effects of runs at their maximum, with their errors, what the runs tell of the rate at the end, by how much the
    norm and the shift of each fall as a coefficient of the rate at its zenith angle rises, shape (k, 2), and, where the
    effects cannot follow a threshold, counts and expected counts in the groups of `ShapeGroups`.

    Parameters
    ----------
    state : `_RateState`
    runs : list of `_FitRun`
    values : `~numpy.ndarray`, shape (n_run, n)
        Their effects so far.
    weights : `~numpy.ndarray`, shape (n_run,)
        Their weights so far.
    adapt : bool
        Whether there are any.
    """
    design, population, effects, reactions, compared = state.design, state.population, [], [], []
    groups = state.groups
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
        information, of_rate, gain = sums.rate_information, np.zeros((n, n)), None
        if adapt:
            within, cross = shift_within_rate(design, sums, state.coefficients @ run.zenith)
            posterior = np.linalg.inv(within + np.linalg.inv(population.tails.prior(weight)))
            gain = cross @ posterior
            information = information - gain @ cross.T
            of_rate = of_rate + quadratic_form(spread, gain)
        equations.add(run.zenith, information, sums.rate_gradient.ravel())
        effects.append(
            summarise_run(
                design, slices, value.copy(), posterior, of_rate, sums.expected, population, run.key, run.scaling,
                converged,
                weight, flags, run.norm_energy,
            )
        )  # fmt: skip
        if groups is not None:
            counts = sum(np.bincount(part.index, part.counts, sums.expected.size) for part in slices)
            counts = np.reshape(counts, sums.expected.shape)
            compared.append((groups.summed(counts), groups.summed(sums.expected)))
        if gain is not None:
            reactions.append((gain @ effects[-1].told_rows.T).astype(np.float32))
    equations.take_batch()
    return equations, effects, reactions, compared


def _equations(state):
    n_energy, n_offset, n_zenith = state.coefficients.shape
    return RateEquations(n_energy * n_offset, n_zenith)


def _amplitude_equations(state):
    if state.bands is None:
        return None
    n_energy, n_offset, n_zenith = state.coefficients.shape
    return AmplitudeEquations((n_energy * n_offset, n_zenith), state.bands.n)


def _with_tables(state: _RateState, runs, adapt) -> Iterator:
    """Each run, its slices, the tables of the rate for them, and the covariance of the rate at its zenith angle."""
    for start in range(0, len(runs), BATCH):
        batch = runs[start : start + BATCH]
        spread: list[np.ndarray | None] = [None] * len(batch)
        if adapt and state.covariance is not None:
            spread = list(state.covariance.at(np.array([run.zenith for run in batch])))
        for run, own in zip(batch, spread, strict=True):
            together = len(run.slices[0].exposure) // state.design.cells.n_cell
            slices = run.slices
            if state.bands is not None:
                slices = [s.with_amplitudes(state.bands, state.amplitudes) for s in slices]
            if together > 1:
                slices = [s.on_rings(together) for s in slices]
            tables = [RateTable.of(state.design, state.coefficients, state.asymmetry, s) for s in slices]
            yield run, slices, tables, own


# ---- Rounds ----

_MAX_BIN_WIDTH = 0.12  # in log energy; wider bins would need an integral within the bin
_START_INDEX = -2.7  # spectral index before anything is fitted
_RATE_ONLY_ROUNDS = 3  # before effects of runs are fitted
_MAX_STEP = 1.5  # of a coefficient of the rate in one round
_ASYMMETRY_ROUNDS = (2, 4, 6, 9)
_MIN_ROUNDS = 6
# then smoothing and population, of which few runs tell little and which creep, are left as they are
_LEARNING_ROUNDS = 15
_DAMPING = 0.6  # of later steps of the rate, or it and the effects of few runs would swing about each other
_MAX_BEND, _BEND_MEMORY = 2.0, 0.8  # curvature along a step over that of the information; from round to round
# of the asymmetry, which follows the amplitudes of sources, if there are some
_SOURCE_ROUNDS = tuple(range(12, 100, 3))
_ROUGH = 0.01  # of the penalty, with which the acceptance may be as rough as its knots allow
_AMPLITUDE_CONVERGED = 0.03  # change of the amplitudes of sources in standard deviations
_CONVERGED = 1e-3  # change of the expected counts over all counts, cell by cell
_CONVERGED_SIGMA = 0.1  # the same where counts are few, in units of the statistical error of all of them


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
    norm_energy: tuple[float, float] | None = None,
    max_rounds: int = 40,
    starmap: Callable[[Callable, list[tuple]], Iterable] = itertools.starmap,
    n_band: int = 3,
) -> tuple[SplineModel, AmplitudeFit | None]:
    """Fit the spline model, and the amplitudes of the sources that the runs have beside the background.

    Parameters
    ----------
    runs : iterable of `RunSlice`-like, or of lists of them
        One entry for each run: its slices, which share its effects, or the run as a whole. Only what `CellCounts` hold
        is kept of each. With ``counts`` (n_energy, n_fov) sparse, ``exposure`` (n_fov,) in s, ``cos_zenith``,
        ``azimuth`` in deg, ``covariates`` and ``key``, by which a run is recognised later; two runs with the same key
        are two runs; and, where there are sources, ``signal`` and ``sources``, as many for each run.
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
    norm_energy : tuple of float, optional
        Range in TeV to which the effects ``norm`` and ``tilt`` are fitted; by default where the runs agree in shape,
        see `~gammapy_accmaker.models.norm_energy`.
    max_rounds : int
        Most rounds of the fit.
    starmap : callable
        It calls a function with each of some tuples of arguments and gives the results in their order: with
        `itertools.starmap` in this process. The answer does not depend on it.
    n_band : int
        Most bands of energy in which a source has an amplitude of its own.

    Returns
    -------
    model : `SplineModel`
        Its ``effects`` are in the order of the runs.
    sources : `AmplitudeFit` or None
        None without sources of free amplitude.
    """
    energy_edges = np.asarray(energy_edges, dtype=float)
    if np.diff(np.log(energy_edges)).max() > _MAX_BIN_WIDTH:
        raise ValueError("energy_edges: bins of the spline fit must not be wider than 0.05 dex; use finer bins")
    if max_rounds <= _RATE_ONLY_ROUNDS:
        raise ValueError(f"max_rounds: got {max_rounds}, but more than {_RATE_ONLY_ROUNDS} are needed")
    lon, lat, angle = (np.asarray(a, dtype=float) for a in (fov_lon, fov_lat, solid_angle))
    cells = FovCells(lon, lat, angle)
    gathered = [
        [
            gather_counts(cells, len(energy_edges) - 1, part)
            for part in (run if isinstance(run, (list, tuple)) else [run])
        ]
        for run in runs
    ]
    ordered, places = _order_runs(gathered, zenith)
    setup = _SplineSetup.of(ordered, energy_edges, cells, run_effects, gradient, zenith, tuple(covariates))
    fit = _JointFit(setup, ordered, starmap, norm_energy, _source_bands(ordered, len(energy_edges) - 1, n_band))
    fit.run(max_rounds)
    model = fit.model()
    by_place = dict(zip(places, model.effects, strict=True))
    # a run without exposure has the effects that runs under its conditions have
    effects = tuple(by_place[k] if k in by_place else fit_run(model, slices) for k, slices in enumerate(gathered))
    sources = fit.source_fit
    if sources is not None:
        share = fit.share_left() if len(fit.amplitudes) else sources.share
        sources = replace(sources, values=fit.amplitudes, share=share, converged=fit.converged)
    return replace(model, effects=effects), sources


def _source_bands(grouped, n_energy, n_band) -> SourceBands | None:
    """Bands of the amplitudes of the sources; none of them where all are known, and None without sources."""
    slices = [part for run in grouped for part in run]
    if not any(part.sources or part.signal is not None for part in slices):
        return None
    return SourceBands.of_parts(slices, n_energy, n_band)


class _JointFit:
    """State of the fit between its rounds."""

    def __init__(self, setup: _SplineSetup, grouped, starmap, norm_energy, bands: SourceBands | None):
        self.setup, self.design, self.starmap = setup, setup.design, starmap
        scale, basis = setup.scale, setup.design.effects
        self.scatter, energies = self._norm_energies(grouped, norm_energy)
        self.runs = [self._run(slices, *own) for slices, own in zip(grouped, energies, strict=True)]
        self.regressors = np.array([run.regressors for run in self.runs])
        self.ring_design = RunDesign(
            self.design.energy_edges,
            replace(self.design.cells, n_sector=1),
            self.design.energy,
            self.design.offset,
            replace(basis, kind="none"),
        )
        self.counts = self._all_counts()
        self.bands, self.amplitudes = bands, np.zeros(0 if bands is None else bands.n)
        self.source_fit: AmplitudeFit | None = None
        regression = np.zeros((scale.n_regressor, basis.n))
        self.population = RunPopulation(basis, regression, basis.prior_covariance())
        self.values, self.weights = np.zeros((len(grouped), basis.n)), np.ones(len(grouped))
        # constants and zenith are in the rate itself already, but for gradients in the field of view
        self.allowed = np.ones(regression.shape, dtype=bool)
        self.allowed[: int(scale.zenith)] = basis.odd
        self.allowed[-1] = basis.odd
        self.coefficients = self._first_coefficients()
        self.penalty = RatePenalty(self.coefficients)
        self.asymmetry_cells = AsymmetryCells(
            self.design.cells, self.design.log_energy, setup.asymmetry_energy_axis, setup.asymmetry_offset_axis
        )
        orders = asymmetry_orders(setup.asymmetry_offset_axis).astype(float)
        n = setup.asymmetry_energy_axis.n
        self.asymmetry_penalties = [difference_penalty(n, 1) + 1e-3 * np.eye(n), np.diag(orders**2)]
        self.asymmetry = np.zeros((n, len(orders)))
        self.asymmetry_covariance: np.ndarray  # known once it is fitted
        self.asymmetry_smoothing = np.full(2, 10.0)
        self.last: tuple[float, np.ndarray, float] | None = None
        self.bend = 1.0
        self.rate_covariance: RateCovariance | None = None
        self.background_counts: np.ndarray  # where there are sources, from the first round with sectors
        self.told: tuple[RateEquations, AmplitudeEquations, np.ndarray]  # of amplitudes, in the last round
        self.moved_amplitudes = 0.0  # by the last step, in standard deviations
        self.factor: np.ndarray  # known when all is fitted
        self.mean_reaction = np.zeros((0, 0, 2))
        self.effects: tuple[RunEffect, ...] = ()
        self.converged, self.rounds = False, 0

    def _norm_energies(self, grouped, given):
        """How the runs differ, and for each the energies that tell of its effects and what there is to say of them."""
        edges, scale, kind = self.design.energy_edges, self.setup.scale, self.design.effects.kind
        spectra = np.array([sum(s.spectrum(len(edges) - 1) for s in slices) for slices in grouped])
        scaling = np.array([mean_scaling(scale, slices) for slices in grouped])
        scatter = find_scatter(spectra, np.log(edges) + scaling[:, None])
        if kind not in THRESHOLD_BLIND:
            energies = NO_ENERGIES if kind == "none" else (float(edges[0]), float(edges[-1]))
            return scatter, [(energies, ())] * len(grouped)
        if given is not None:
            return scatter, [(given_energies(edges, *given), ())] * len(grouped)
        chosen = [choose_energies([scatter], c, edges, s) for c, s in zip(spectra, scaling, strict=True)]
        flags = [late_flags(own, [scatter], edges, s) for own, s in zip(chosen, scaling, strict=True)]
        return scatter, [(own, tuple(flag)) for own, flag in zip(chosen, flags, strict=True)]

    def _run(self, slices, norm_energy, flags):
        told = None
        if self.design.effects.kind in THRESHOLD_BLIND:
            told = energies_between(self.design.energy_edges, norm_energy).astype(float)
            if not sum(s.spectrum(len(told)) for s in slices) @ told:  # or the norm would be 0
                told[:] = 0
        scale, cells = self.setup.scale, [self._project(s, told) for s in slices]
        regressors = [scale.regressors(s.cos_zenith, s.azimuth, s.covariates) for s in slices]
        zenith = np.average([c.zenith_basis for c in cells], axis=0, weights=[c.exposure.sum() for c in cells])
        scaling = scale.scaling(slices[0].cos_zenith, slices[0].covariates)[1]
        return _FitRun(slices[0].key, cells, zenith, np.mean(regressors, axis=0), scaling, norm_energy, flags)

    def _project(self, part, effect_energies):
        cos_zenith = float(np.clip(part.cos_zenith, *self.setup.zenith_range)) if self.setup.scale.zenith else 0.5
        scaling = sum(self.setup.scale.scaling(part.cos_zenith, part.covariates))
        zenith = zenith_splines(self.setup.zenith_axis, cos_zenith)
        return project_run(self.design, part, zenith, scaling, effect_energies=effect_energies)

    def _all_counts(self):
        shape = (len(self.design.log_energy), self.design.cells.n_cell)
        total = np.zeros(shape[0] * shape[1])
        for part in self._slices():
            total[part.index] += part.counts
        return total.reshape(shape)

    def _slices(self):
        return (part for run in self.runs for part in run.slices)

    def _first_coefficients(self):
        """The same spectrum at all offsets and zenith angles: a one-dimensional fit of all counts."""
        energy, n_cell = self.design.energy, self.design.cells.n_cell
        nodes = np.linspace(energy.lo, energy.hi, 151)
        counts, exposure = np.zeros(150), np.zeros(150)
        for part in self._slices():
            # at scaled energies the thresholds of the runs lie on each other; fitted is the ratio to a power law, which
            # bends less than the spectrum
            bins = np.clip(np.searchsorted(nodes, part.scaled_energy) - 1, 0, 149)
            counts += np.bincount(bins[part.index // n_cell], part.counts, 150)
            flux = np.exp(self.design.log_width + _START_INDEX * part.scaled_energy)
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
        spectrum = fit.coefficients + _START_INDEX * energy.centers
        return np.tile(spectrum[:, None, None], (1, self.design.offset.n, self.setup.zenith_axis.n))

    def run(self, max_rounds):
        """All rounds of the fit."""
        adapt, last = self.design.effects.n > 0, np.inf
        asymmetry_rounds = _ASYMMETRY_ROUNDS if self.bands is None else (*_ASYMMETRY_ROUNDS, *_SOURCE_ROUNDS)
        tolerance = max(_CONVERGED, _CONVERGED_SIGMA / np.sqrt(self.counts.sum()))
        for k in range(max_rounds):
            before, rings, learn = self.population, k < _RATE_ONLY_ROUNDS - 1, k < _LEARNING_ROUNDS
            n_steps = 0 if not adapt or k < _RATE_ONLY_ROUNDS else 2 if k < _MIN_ROUNDS else 1
            self.rounds = k + 1
            expected = self._round(n_steps, rings=rings, damping=1.0 if k < _MIN_ROUNDS else _DAMPING, learn=learn)
            if rings:
                continue
            change = np.abs(expected - last).sum() / self.counts.sum()
            last = expected
            if k in asymmetry_rounds:
                self._fit_asymmetry(expected)
            settled = self.moved_amplitudes < _AMPLITUDE_CONVERGED
            if k > _MIN_ROUNDS and change < tolerance and settled and (not learn or _similar(before, self.population)):
                self.converged = True
                break
        self._finish(adapt)

    def _round(self, n_steps, *, rings=False, damping=1.0, learn=True):
        """Effects of every run at the present rate, then one step of the rate, its smoothing and the population.

        ``n_steps``: of the effects of each run; 0 leaves them alone. ``rings``: without effects and asymmetry, for the
        first rounds. ``damping``: of the step of the rate. ``learn``: whether smoothing and population are updated.
        Returns the expected counts.
        """
        adapt, n = n_steps > 0, self.design.effects.n
        state = self._state(self.ring_design, np.zeros((3, 1, 1))) if rings else self._state()
        equations, expected = RateEquations(*self._sizes), np.zeros(())
        blind = adapt and self.design.effects.kind in THRESHOLD_BLIND
        known = RateEquations(*self._sizes) if blind else None
        second_moments, norm_rows, norm_variance, gains = np.zeros((n, n)), np.zeros((len(self.runs), n)), 0.0, []
        sources, known_sources, follows = _amplitude_equations(state), _amplitude_equations(state), []
        weighted = np.zeros(())
        for here, sums in self._each_chunk(_sum_chunk, state, n_steps):
            equations.add_all(sums.equations)
            if known is not None:
                known.add_all(sums.known)
            expected = expected + sums.expected
            if sources is not None:
                sources.add_all(sums.sources)
                known_sources.add_all(sums.known_sources)
                follows += sums.follows
                weighted = weighted + sums.weighted
            self.values[here], self.weights[here] = sums.values, sums.weights
            if adapt:
                second_moments += sums.second_moments
                norm_rows[here] = sums.norm_rows
                norm_variance += sums.norm_variance
                gains += sums.gains
        values, penalty = self.coefficients.ravel(), self.penalty.matrix()
        lower = factor_of(equations.information() + penalty)
        system, right = lower, equations.gradient()
        if known is not None:
            # the energies below those of the norms do not tell of them: rate and norms step by turns, see
            # _share_effects
            system, right = factor_of(known.information() + penalty), known.gradient()
        gradient = right - penalty @ values + self.penalty.pull
        solved = cho_solve((system, True), gradient)
        moved = of_amplitudes = np.zeros(0)
        if sources is not None and known_sources is not None and not rings:
            self.background_counts = weighted
            beside = known_sources if known is not None else sources
            solved, moved = self._step_beside(system, gradient, solved, beside, known_sources)
            of_amplitudes = beside.gradient
            self._tell_amplitudes(equations, lower, sources, known_sources, moved)
        damping = self._shorter(damping, np.append(gradient, of_amplitudes))
        step = damping * np.clip(solved, -_MAX_STEP, _MAX_STEP)
        moved = damping * moved
        self.last = damping, np.append(step, moved), gradient @ step + of_amplitudes @ moved
        values = values + step
        if len(moved):
            self.amplitudes = self.amplitudes + moved
        self.coefficients = values.reshape(self.coefficients.shape)
        if learn and (adapt or not n):
            # smoothing parameters are updated with the covariance of the penalised fit; errors of the rate are taken
            # without the penalty along `held` (Woodbury's identity), see _held_against_moving
            held, inner = self._held_against_moving()
            free = cho_solve((lower, True), held)
            covariance = lapack.dpotri(lower, lower=1, overwrite_c=1)[0].T
            covariance += np.triu(covariance, 1).T
            self.penalty.update(values, covariance)
            covariance += free @ np.linalg.solve(inner - held.T @ free, free.T)
            self.rate_covariance = RateCovariance(covariance, self._sizes[1])
        if adapt:
            # the effects follow the step to first order before the population does, or the two would oscillate
            for i, gain in enumerate(gains):
                self.values[i] -= (step.reshape(self._sizes) @ self.runs[i].zenith) @ gain
                if len(moved) and follows[i] is not None:
                    self.values[i] -= follows[i] @ moved
            if blind:
                self._share_effects()
        if adapt and learn:
            self.population = update_population(
                self.population,
                self.values,
                second_moments,
                self.regressors,
                self.allowed,
                norm_rows,
                norm_variance,
                self.weights,
            )
        return expected

    def _step_beside(self, system, gradient, solved, beside, known_sources):
        """Newton step of rate and amplitudes together.

        With both in one system [[H, X], [X', A]] the amplitudes alone have A - X' H^-1 X, and the rate follows them.
        ``system``: Cholesky factor of H; ``solved``: step of the rate with the amplitudes left alone.
        """
        cross = beside.cross.reshape(len(gradient), -1)
        alone = cho_solve((system, True), cross)  # how the rate falls as an amplitude rises
        moved = step_amplitudes(
            self.amplitudes,
            beside.gradient - alone.T @ gradient,
            beside.information - cross.T @ alone,
            known_sources.information,
        )
        return solved - alone @ moved, moved

    def _tell_amplitudes(self, equations, lower, sources, known_sources, moved):
        """What is known of the amplitudes, and how far the last step moved them."""
        if self.bands is None:
            return
        cross = sources.cross.reshape(len(lower), -1)
        left = sources.information - cross.T @ cho_solve((lower, True), cross)
        self.source_fit = AmplitudeFit.of(self.bands, self.amplitudes, known_sources.information, left, True)
        self.moved_amplitudes = float(np.max(np.abs(moved) / self.source_fit.errors, initial=0.0))
        self.told = equations, sources, known_sources.information

    def share_left(self):
        """Share of the information on the amplitudes that is left where the acceptance need not be smooth.

        That it is smooth is an assumption, which keeps it from looking like a source; it is no reason to believe that
        the two can be told apart.
        """
        equations, sources, total = self.told
        matrix = equations.information() + _ROUGH * self.penalty.matrix()
        factor = factor_of(matrix)
        cross = sources.cross.reshape(len(factor), -1)
        left = np.diag(sources.information - cross.T @ cho_solve((factor, True), cross))
        return np.clip(left / np.maximum(np.diag(total), TINY), 0, 1)

    def _shorter(self, damping, gradient):
        """A smaller damping for a while where a step went far too far.

        Rate and energy shifts of few runs can make good for one another along a bent valley, of which the information
        sees the direction at one point alone. ``gradient``: after the last step; for an exact Newton step of damping d
        it has fallen along it by the factor 1 - d.
        """
        if self.last is not None and damping < 1:
            before, step, promised = self.last
            # share by which the slope along the step has fallen, over the share that the step should have made it fall
            bend = (1 - gradient @ step / promised) / before if promised > 0 else 1.0
            self.bend = max(bend, _BEND_MEMORY * self.bend)
            damping = damping / self.bend if self.bend > _MAX_BEND else damping
        return damping

    def _share_effects(self):
        """Put into the rate what norms (and tilts) of runs share along the zenith angle: the expected counts stay as
        they are.

        Where norms are fitted to some energies, and the rate to all, the steps of the two hardly move what they could
        exchange. Here that part is at its maximum: of the prior of the effects and the penalty of the rate.
        """
        basis, (_, n_offset, n_zenith) = self.design.effects, self.coefficients.shape
        zenith = np.array([run.zenith for run in self.runs])
        scaling = np.array([run.slices[0].scaled_energy[0] for run in self.runs]) - self.design.log_energy[0]
        pivot = basis.pivot + scaling.mean()
        along = [np.ones(self.design.energy.n)]
        of_run = [np.ones((len(zenith), 1))]  # change of the effects of each run for a change of one of the rate
        if basis.kind == "tilt":
            of_run = [
                np.eye(1, 2) * np.ones((len(zenith), 1)),
                np.stack([basis.pivot + scaling - pivot, 1 + 0 * scaling], 1),
            ]
            along.append(self.design.energy.centers - pivot)
        moves = np.hstack([np.kron(a[:, None], np.kron(np.ones((n_offset, 1)), np.eye(n_zenith))) for a in along])
        effects = np.concatenate([own[:, :, None] * zenith[:, None] for own in of_run], axis=2)
        tails, penalty = self.population.tails, self.penalty.matrix()
        precision = np.array([np.linalg.inv(tails.prior(weight)) for weight in self.weights])
        weighted = np.einsum("ien,ief->ifn", effects, precision)
        left, values = self.values - self.population.mean(self.regressors), self.coefficients.ravel()
        # what runs share by `shared` goes from the effects to the rate; counts do not change, so only the two penalties
        # speak: a small linear system for their maximum
        matrix = np.einsum("ifn,ifm->nm", weighted, effects) + moves.T @ (penalty @ moves)
        target = np.einsum("ifn,if->n", weighted, left) + moves.T @ (self.penalty.pull - penalty @ values)
        shared = np.linalg.solve(matrix, target)
        self.coefficients = (values + moves @ shared).reshape(self.coefficients.shape)
        self.values -= effects @ shared

    def _finish(self, adapt):
        """Effects of every run at their maximum, and all errors, at the final rate."""
        equations, effects, reactions, compared = RateEquations(*self._sizes), [], [], []
        state, groups = self._state(), self._shape_groups()
        for _, (own, found, of_rate, in_groups) in self._each_chunk(
            _finish_chunk, replace(state, groups=groups), adapt
        ):
            equations.add_all(own)
            effects += found
            reactions += of_rate
            compared += in_groups
        if groups is not None:
            self.scatter = replace(self.scatter, shape=find_shape(groups, *zip(*compared, strict=True)))
        held, inner = self._held_against_moving()
        penalty = self.penalty.matrix().toarray() - held @ np.linalg.solve(inner, held.T)
        # with the inverse of the factor a variance is a sum of squares, and never negative by rounding
        lower = factor_of(equations.information() + penalty)
        self.factor = lapack.dtrtri(lower, lower=1, overwrite_c=1)[0].T
        if reactions:
            zenith = np.array([run.zenith for run in self.runs])
            own, factor = np.array(reactions), self.factor.reshape(*self._sizes, -1)
            self.mean_reaction = np.einsum("rkj,rz->kzj", own, zenith, optimize=True) / len(zenith)
            variances = reaction_variance(own, zenith, self.mean_reaction, factor)
            effects = [
                replace(effect, followed=tuple(variance.tolist()))
                for effect, variance in zip(effects, variances, strict=True)
            ]
        self.effects = tuple(effects)

    def _shape_groups(self):
        """Groups of bins in which runs are compared whose effects leave out their shape; else None."""
        if self.design.effects.kind not in ("none", *THRESHOLD_BLIND):
            return None
        cells = self.design.cells
        turn = 2 * np.pi * (np.arange(cells.n_cell) % cells.n_sector + 0.5) / cells.n_sector
        offset = cells.ring_offset[cells.ring_of_cell]
        at = offset * np.cos(turn), offset * np.sin(turn)
        return ShapeGroups.of(self.counts.sum(1), self.design.energy_edges, *at, False)

    def _held_against_moving(self):
        """What of the penalty errors are free of: it seems to hold against moving the spectrum,
        see `moving_directions`."""
        directions = moving_directions(self.coefficients, self.design.energy, self.setup.zenith_axis)
        held = self.penalty.matrix() @ directions
        return held, directions.T @ held

    @property
    def _sizes(self):
        """Number of splines in energy and offset together, and in zenith angle."""
        n_e, n_t, n_z = self.coefficients.shape
        return n_e * n_t, n_z

    def _state(self, design=None, asymmetry=None):
        design = self.design if design is None else design
        asymmetry = self.asymmetry_cells.log_mean(self.asymmetry) if asymmetry is None else asymmetry
        return _RateState(
            design, self.coefficients, asymmetry, self.population, self.rate_covariance, self.bands, self.amplitudes
        )

    def _each_chunk(self, function, state, option) -> Iterator:
        """Which runs are in a chunk, and what a function finds for them."""
        starts = chunk_starts(len(self.runs))
        chunks = [slice(start, start + starts.step) for start in starts]
        inputs = [(self.runs[here], self.values[here], self.weights[here], option) for here in chunks]
        return zip(chunks, self.starmap(partial(function, state), inputs), strict=True)

    def _fit_asymmetry(self, expected):
        bases = self.asymmetry_cells
        # the asymmetry multiplies what all else expects, so it is fitted alone with that as its exposure; by how much
        # the mean of a cell is above what the mean of its log gives is as at the last round
        without = expected / np.exp(bases.mean_log(self.asymmetry))
        fit = fit_tensor_spline(
            self.counts if self.bands is None else self.background_counts,
            np.maximum(without, 1e-12),
            [bases.at_energy, bases.space[0]],
            self.asymmetry_penalties,
            smoothing=self.asymmetry_smoothing,
            start=self.asymmetry,
            max_rounds=8,
        )
        self.asymmetry, self.asymmetry_covariance = fit.coefficients, fit.covariance
        self.asymmetry_smoothing = fit.smoothing

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
            asymmetry_covariance=self.asymmetry_covariance.astype(np.float32),
            smoothing=self.penalty.smoothing,
            population=population,
            effects=self.effects,
            converged=self.converged,
            rounds=self.rounds,
            run_scatter=tuple(self.scatter.to_array().tolist()),
            mean_reaction=self.mean_reaction.astype(np.float32),
        )


def _similar(before: RunPopulation, after: RunPopulation) -> bool:
    """Whether the spreads of the population changed by less than 1 %."""
    pairs = [(before.norm_spread, after.norm_spread), (before.shift_spread, after.shift_spread)]
    return all(abs(a - b) <= 0.01 * b or not np.isfinite(b) for a, b in pairs)
