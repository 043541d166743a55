"""Adapt the spline model to one run, from the run's own counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy.linalg import block_diag

from gammapy_accmaker.models.base import NOT_CONVERGED
from gammapy_accmaker.models.goodness import POOR_FIT
from gammapy_accmaker.models.norm_energy import (
    NO_ENERGIES,
    choose_energies,
    energies_between,
    given_energies,
    late_flags,
)
from gammapy_accmaker.models.spline.cells import AsymmetryCells, CellCounts, RunCells, gather_counts
from gammapy_accmaker.models.spline.covariates import CovariateScale
from gammapy_accmaker.models.spline.effects import EFFECT_KINDS, NormTails, RunEffect, RunPopulation, norm_row
from gammapy_accmaker.models.spline.likelihood import (
    RateTable,
    RunDesign,
    fit_effects_and_weight,
    shift_within_rate,
    sum_additive,
    sum_slices,
)
from gammapy_accmaker.models.spline.model import SplineModel, zenith_splines
from gammapy_accmaker.utils.run_key import RunKey, find_run
from gammapy_accmaker.utils.statistics import deviance_moments, poisson_deviance, poisson_pulls

_GROUP_WIDTH = 0.1  # dex; energy groups of the goodness of fit
_FEW_COUNTS = 50
_FAR_SHIFT = 4.0  # standard deviations of the population
THRESHOLD_BLIND = ("norm", "tilt")  # kinds of effects that cannot follow the threshold of a run
UNUSUAL_NORM = ("unusual norm",)  # flag of a run whose norm is rather one of those far out


def as_slices(run) -> list:
    """A run as the list of its slices, those without exposure left out."""
    slices = list(run) if isinstance(run, (list, tuple)) else [run]
    return [s for s in slices if np.any(s.exposure > 0)]


def project_run(
    design: RunDesign,
    run: CellCounts,
    zenith_basis: np.ndarray,
    scaling: float,
    energies: np.ndarray | None = None,
    effect_energies: np.ndarray | None = None,
) -> RunCells:
    """A slice of a run under the conditions of a fit.

    Parameters
    ----------
    design : `RunDesign`
    run : `CellCounts`
        In the cells of the design.
    zenith_basis : `~numpy.ndarray`, shape (n_zenith,)
    scaling : float
        Of log energy, before the run's own shift.
    energies : `~numpy.ndarray`, shape (n_energy,), optional
        1 for the energy bins that count, else 0; all by default.
    effect_energies : `~numpy.ndarray`, shape (n_energy,), optional
        1 for the energy bins that tell of the effects of the run, else 0; all by default.
    """
    index, counts = run.index, run.counts
    if energies is not None:
        counted = energies[index // design.cells.n_cell] > 0
        index, counts = index[counted], counts[counted]
    additive = sum_additive(design, design.modes_of(run.displacement).additive, index, counts, effect_energies)
    scaled = design.log_energy + scaling
    return RunCells(
        index, counts, run.exposure, zenith_basis, scaled, additive, energies, effect_energies, run.displacement,
        run.signal, run.sources,
    )  # fmt: skip


def mean_scaling(scale: CovariateScale, slices) -> float:
    """Energy scaling of a run, the mean over its slices."""
    scaling = [sum(scale.scaling(s.cos_zenith, s.covariates)) for s in slices]
    return float(np.average(scaling, weights=[s.exposure.sum() for s in slices]))


def fit_run(
    model: SplineModel,
    run,
    *,
    kind: str | None = None,
    min_counts: int = 0,
    norm_energy: tuple[float, float] | None = None,
    held: Sequence[tuple[np.ndarray, np.ndarray]] | None = None,
) -> RunEffect:
    """Effects of a run from its own counts, by penalised maximum likelihood.

    A run with few counts shrinks to what is expected under its conditions.

    Parameters
    ----------
    model : `SplineModel`
    run : `RunSlice`-like or list of them
        A run or its slices, in the bins of the model.
    kind : str, optional
        ``none``, ``norm``, ``tilt`` or ``shift``; that of the model by default. Fewer effects than the model
        has take their prior width from its population, and the others stay at their means.
    min_counts : int
        The effects are fitted to the energies (in groups of 0.1 dex) in which the run has at least so many counts;
        without any they stay at their means.
    norm_energy : tuple of float, optional
        Range in TeV to which a norm, or norm and tilt, are fitted; by default where the run and those of the fit agree
        in shape, see `~gammapy_accmaker.models.norm_energy`.
    held : sequence of tuple of `~numpy.ndarray`, shapes (n_fov,) and (n_energy,), optional
        Exposure and energies, from 0 to 1, of each slice that are counted elsewhere too: covariance and response of the
        effects are those without these counts, and ``removed`` is what they tell of rate and asymmetry.

    Returns
    -------
    effect : `RunEffect`
    """
    own = model.population.basis
    kind = own.kind if kind is None else kind
    if kind not in EFFECT_KINDS:
        raise ValueError(f"kind: got {kind!r}, but one of {', '.join(EFFECT_KINDS)} is needed")
    first = run[0] if isinstance(run, (list, tuple)) else run
    slices = as_slices(run)
    if held is not None:
        held = [own for part, own in zip(run, held, strict=True) if np.any(part.exposure > 0)]
    # as in the fit, of which the run may have been a part; then its effects there are where to start
    conditions = [model.mean_effects(s.cos_zenith, s.azimuth, s.covariates) for s in slices or [first]]
    mean, start = np.mean(conditions, axis=0), None
    directions, tails, design, weight = None, model.population.tails, model.design, 1.0
    if EFFECT_KINDS.index(kind) < EFFECT_KINDS.index(own.kind):
        directions, prior = _fewer_effects(model, kind)
        tails = NormTails(prior, directions.T @ tails.row)
    elif kind != own.kind:
        design = model.design_for(replace(own, kind=kind))
        mean, tails = (
            np.zeros(design.effects.n),
            NormTails(design.effects.prior_covariance(), np.zeros(design.effects.n)),
        )
    else:
        known = find_run(first.key, (effect.key for effect in model.effects))
        if known is not None:
            start, weight = model.effects[known].coefficients, model.effects[known].weight
    cells, tables, scale = [], [], model.covariates
    energies, flags = _energies_of_norm(model, slices, kind, norm_energy)
    used, taken = _energies_to_fit(design, slices, min_counts, energies), []
    for part in slices:
        zenith = model.clamp_zenith(part.cos_zenith)
        basis, scaled = zenith_splines(model.zenith_axis, zenith), sum(scale.scaling(zenith, part.covariates))
        gathered = gather_counts(design.cells, len(design.log_energy), part)
        cells.append(project_run(design, gathered, basis, scaled))
        taken.append(cells[-1] if used is None else project_run(design, gathered, basis, scaled, used))
        tables.append(RateTable.of(design, model.coefficients, model.asymmetry_cells, cells[-1]))
    scaling = scale.scaling(model.clamp_zenith(first.cos_zenith), first.covariates)[1]
    low, high = model.zenith_range
    if not low - 1e-3 <= first.cos_zenith <= high + 1e-3:
        flags.append("zenith outside trained range")
    if not slices:
        prior = tails.prior(1.0)
        covariance = prior if directions is None else directions @ prior @ directions.T
        expected = np.zeros((len(design.log_energy), design.cells.n_cell))
        flags.append("no exposure")
        return summarise_run(
            design, cells, mean, covariance, np.zeros(covariance.shape), expected, model.population, first.key, scaling,
            True, 1.0, tuple(flags), energies,
        )  # fmt: skip
    values, weight, unusual, converged = fit_effects_and_weight(
        design, tables, taken, mean, tails, directions=directions, start=start, weight=weight
    )
    sums = sum_slices(design, tables, taken, values, full=True)
    expected = sums.expected if used is None else sum_slices(design, tables, cells, values).expected
    exposures = [c.exposure.sum() for c in cells]
    zenith_basis = np.average([c.zenith_basis for c in cells], axis=0, weights=exposures)
    information, cross = shift_within_rate(design, sums, model.coefficients @ zenith_basis)
    free = np.eye(design.effects.n) if directions is None else directions
    precision = np.linalg.inv(tails.prior(weight))
    covariance = free @ np.linalg.inv(free.T @ information @ free + precision) @ free.T
    response = cross @ covariance
    spread = model.rate_rows(zenith_basis).T @ response
    effect = summarise_run(
        design, cells, values, covariance, spread.T @ spread, expected, model.population, first.key, scaling, converged,
        weight, (*flags, *UNUSUAL_NORM * unusual), energies,
    )  # fmt: skip
    followed = effect.followed
    if model.mean_reaction.size and free.shape[1]:  # without a fit of the run there is no error of it
        followed = tuple(model.reaction_variance(response @ effect.told_rows.T, zenith_basis).tolist())
    effect = replace(effect, response=response.astype(np.float32), followed=followed)
    if model.scatter.shape is not None and design.effects.kind == own.kind:
        by_shape = _shape_information(design, model.scatter.shape, taken, sums.expected)
        effect = replace(effect, shape_response=by_shape @ covariance)
    if held is None:
        return effect
    parts = [part for own, of in zip(taken, held, strict=True) for part in _not_held(design, own, *of)]
    left = sum_slices(design, [table for table in tables for _ in range(2)], parts, values, full=True)
    known = sums.rate_information - response @ cross.T
    information, cross = shift_within_rate(design, left, model.coefficients @ zenith_basis)
    covariance = free @ np.linalg.inv(free.T @ information @ free + precision) @ free.T
    response = cross @ covariance
    of_asymmetry = AsymmetryCells(
        design.cells, design.log_energy, model.asymmetry_energy_axis, model.asymmetry_offset_axis
    ).information(sums.expected - left.expected)
    removed = block_diag(known - (left.rate_information - response @ cross.T), of_asymmetry)
    return replace(effect, covariance=covariance, response=response.astype(np.float32), removed=removed)


def _shape_information(design, shape, cells, expected):
    """Information between the shape that effects without a threshold leave out, and the effects, shape (k, n)."""
    told = cells[0].energies, cells[0].effect_energies
    for weights in told:
        if weights is not None:
            expected = expected * weights[:, None]
    by_mode = expected @ design.cells.mean(shape.modes(design.cells.fov_lon, design.cells.fov_lat))
    weighted = shape.columns(design.log_energy) * by_mode[:, shape.mode_of_column]
    return weighted.T @ design.columns


def _not_held(design, cells, exposure, energies):
    """What of a slice is left: cells that are not held, and energies that are not in those that are."""
    held = np.minimum(design.cells.membership.T @ (exposure * design.cells.solid_angle), cells.exposure)
    # no counts, since the information is that of what is expected; what sources dilute of it is left out of account
    nothing = {
        "index": np.zeros(0, dtype=int),
        "counts": np.zeros(0),
        "additive_counts": 0 * cells.additive_counts,
        "signal": None,
    }
    others = (1 - energies) * (1 if cells.energies is None else cells.energies)
    return replace(cells, exposure=cells.exposure - held, **nothing), replace(
        cells, exposure=held, energies=others, **nothing
    )


def column_means(design: RunDesign, by_energy: np.ndarray) -> np.ndarray:
    """Mean of each additive effect over a spectrum of expected counts, shape (n_additive,)."""
    return by_energy @ design.columns / by_energy.sum() if by_energy.any() else design.columns.mean(axis=0)


def summarise_run(
    design: RunDesign,
    cells: list[RunCells],
    values: np.ndarray,
    covariance: np.ndarray,
    covariance_of_rate: np.ndarray,
    expected: np.ndarray,
    population: RunPopulation,
    key: RunKey,
    scaling: float,
    converged: bool,
    weight: float,
    flags: tuple[str, ...] = (),
    norm_energy: tuple[float, float] = NO_ENERGIES,
) -> RunEffect:
    """Put the fitted effects of a run and its goodness of fit into a `RunEffect`.

    Parameters
    ----------
    design, cells
        Of the run.
    values, covariance, covariance_of_rate : `~numpy.ndarray`, shapes (n,), (n, n), (n, n)
        Effects, their posterior covariance given the rate, and what the uncertainty of the rate adds.
    expected : `~numpy.ndarray`, shape (n_energy, n_cell)
        Counts of the background.
    population : `RunPopulation`
    key : `RunKey`
    scaling, converged, weight, flags, norm_energy
        As in `RunEffect`.
    """
    n_energy, n_ring, starts = expected.shape[0], design.cells.n_ring, _group_starts(design)
    counts, with_sources = np.zeros(expected.size), expected.copy()
    for part in cells:
        counts += np.bincount(part.index, part.counts, expected.size)
        if part.signal is not None:
            with_sources[:, part.signal.columns] += part.signal.values
    spectrum = counts.reshape(expected.shape).sum(1)
    # rings in thirds of the position angle: enough counts in a bin to see a misfit, fine enough to place it
    shape = (n_energy, n_ring, 3, design.cells.n_sector // 3)
    in_groups, mu = (
        np.add.reduceat(a.reshape(shape).sum(3), starts).reshape(len(starts), -1) for a in (counts, with_sources)
    )
    seen = mu > 0
    moments = [np.zeros(mu.shape), np.zeros(mu.shape)]
    for out, moment in zip(moments, deviance_moments(mu[seen]), strict=True):
        out[seen] = moment
    excess = np.where(seen, poisson_deviance(in_groups, np.where(seen, mu, 1)) - moments[0], 0).sum(1)
    deviance = excess / np.sqrt(np.maximum(moments[1].sum(1), 1e-12))
    told = energies_between(design.energy_edges, norm_energy) if np.isfinite(norm_energy[0]) else np.ones(n_energy)
    weights = column_means(design, expected.sum(1) * told)
    found = list(flags)
    if in_groups.sum() < _FEW_COUNTS:
        found.append("few counts")
    if design.effects.n and not spectrum @ told:
        found.append("no counts for the norm")
    if not converged:
        found.append(NOT_CONVERGED)
    if np.any(deviance > POOR_FIT):
        found.append("poor fit")
    if design.effects.n_shift and abs(values[0]) > _FAR_SHIFT * population.shift_spread > 0:
        found.append("unusual energy shift")
    return RunEffect(
        obs_id=key.obs_id,
        basis=design.effects,
        coefficients=values,
        covariance=covariance,
        covariance_of_rate=covariance_of_rate,
        response=np.zeros((0, len(values)), dtype=np.float32),
        scaling=float(scaling),
        norm_row=norm_row(design.effects, weights),
        group_edges=np.append(design.energy_edges[:-1][starts], design.energy_edges[-1]),
        counts=in_groups.sum(1),
        expected=mu.sum(1),
        deviance=deviance,
        pulls=poisson_pulls(in_groups.sum(1), mu.sum(1)),
        converged=bool(converged),
        flags=tuple(found),
        norm_energy=norm_energy,
        start=key.start,
        pointing=key.pointing,
        weight=float(weight),
    )


def _group_starts(design):
    """First energy bin of each group of about _GROUP_WIDTH."""
    edges = np.log10(design.energy_edges)
    n_energy, n_group = len(edges) - 1, max(round((edges[-1] - edges[0]) / _GROUP_WIDTH), 1)
    group = np.minimum(np.arange(n_energy) * n_group // n_energy, n_group - 1)
    return np.flatnonzero(np.diff(group, prepend=-1))


def _spectrum(slices):
    return sum(np.asarray(s.counts.sum(axis=1)).ravel() for s in slices)


def _energies_of_norm(model, slices, kind, given):
    """Range in TeV to which the effects of a run are fitted, all energies if they can follow a threshold,
    and what there is to say."""
    edges = model.energy_edges
    if kind == "none":
        return NO_ENERGIES, []
    if kind not in THRESHOLD_BLIND or not slices:
        return (float(edges[0]), float(edges[-1])), []
    if given is not None:
        return given_energies(edges, *given), []
    trained = [replace(s, cos_zenith=model.clamp_zenith(s.cos_zenith)) for s in slices]
    scaling = mean_scaling(model.covariates, trained)
    energies = choose_energies([model.scatter], _spectrum(slices), edges, scaling)
    return energies, late_flags(energies, [model.scatter], edges, scaling)


def _energies_to_fit(design, slices, min_counts, energies):
    """1 for the energy bins in a range of energies, and in groups with enough counts, else 0;
    None where all are taken."""
    if not slices or design.effects.n == 0:
        return None
    counts, used = _spectrum(slices), energies_between(design.energy_edges, energies)
    if min_counts:
        starts = _group_starts(design)
        enough = np.add.reduceat(counts, starts) >= min_counts
        used &= np.repeat(enough, np.diff(starts, append=len(counts)))
    if not counts @ used:  # or its norm would be 0, and all of the run with it
        used[:] = False
    return None if used.all() else used.astype(float)


def _fewer_effects(model: SplineModel, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Directions of the norm, and of the tilt, among the effects of the model, and their prior covariance.

    The prior is the best approximation, over the spectrum, of what the model's population does.
    """
    own, design = model.population.basis, model.design
    fewer = replace(own, kind=kind)
    if fewer.n == 0:
        return np.zeros((own.n, 0)), np.zeros((0, 0))
    directions = np.zeros((own.n, fewer.n))
    directions[own.n_shift :, 0] = own.term_names == "norm"
    if kind == "tilt":
        residual = own.term_names == "residual"
        # coefficients that are linear in the splines' centres make a straight line
        directions[own.n_shift :, 1][residual] = own.residual_axis.centers - own.pivot
    weights = model.spectrum_weights[:, None]
    columns = np.concatenate([np.zeros((len(weights), own.n_shift)), own.energy_columns(design.log_energy)], axis=1)
    columns[:, own.n_shift :] *= own.mode_of_column == own.modes.index("flat")
    if own.n_shift:
        columns[:, 0] = model.mean_slope
    target = columns @ directions
    gram = target.T @ (weights * target) + 1e-9 * np.eye(fewer.n)
    project = np.linalg.solve(gram, (weights * target).T @ columns)
    # a little of the prior keeps a population without spread from fixing the effect
    return directions, project @ model.population.covariance @ project.T + 1e-2 * fewer.prior_covariance()
