"""Fit of a parametric acceptance to counts in bins.

A function of energy, or of energy and position, is fitted to all bins at once. A function of position alone is fitted
in each energy bin (bins with few counts are merged), and the energy dependence is a smooth spectrum of all counts, as
for the binned models, so that the counts of each energy are kept.
"""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np

from gammapy_accmaker.camera.bins import TEV_IN_MEV, FovBins
from gammapy_accmaker.errors import FitError, InputError
from gammapy_accmaker.models.alignment import AlignedRuns, fit_spectra
from gammapy_accmaker.models.goodness import goodness_of_model
from gammapy_accmaker.models.parametric.function import check_shared, rate_function
from gammapy_accmaker.models.parametric.likelihood import BinNodes, Likelihood, fit_likelihoods
from gammapy_accmaker.models.parametric.model import ParametricModel, ParametricResult, error_nodes, shape_of
from gammapy_accmaker.models.run_shape import root_of
from gammapy_accmaker.models.spectrum import kept_integrals, linear_weights

log = logging.getLogger(__name__)

_COUNTS_A_PARAMETER = 30  # least counts of an energy group for each parameter that is fitted in it
_STEP_IN_ERRORS = 0.01  # of a parameter, in a derivative


def fit_parametric(
    counts: np.ndarray,
    exposure: np.ndarray,
    bin_edges: np.ndarray,
    fov: FovBins,
    function,
    *,
    parameters: dict[str, dict] | None = None,
    shared: tuple[str, ...] = (),
    on_failure: str = "raise",
    profile_edges: np.ndarray | None = None,
    displacement: np.ndarray | None = None,
    aligned: AlignedRuns | None = None,
) -> ParametricModel:
    """Parametric acceptance from the summed counts of all runs.

    Parameters
    ----------
    counts : `~numpy.ndarray`
        Unexcluded counts, shape (nbin, fov.size).
    exposure : `~numpy.ndarray`
        Unexcluded ontime (times the norms of the runs) in s, shape (fov.size,).
    bin_edges : `~numpy.ndarray`
        Energy edges in TeV, shape (nbin + 1,).
    fov : `FovBins`
        Bins of a grid.
    function, parameters
        As for `rate_function`. A free parameter that scales the rate starts where the total counts agree, unless its
        value is given.
    shared : tuple of str
        For a function of position alone: parameters that all energies have in common.
    on_failure : {"raise", "flag"}
        What is done where the fit fails: a `FitError`, or a warning and a result that is not valid.

    profile_edges : `~numpy.ndarray`, optional
        For a function of position alone: those of the energy edges between which it is the same. Between all of them by
        default; groups with few counts are merged in either case.
    displacement : `~numpy.ndarray`, shape (fov.size, axis), optional
        How far the mean position of what was seen of each bin is from that of the bin, in deg.
    aligned : `AlignedRuns`, optional
        The runs, where their energies are shifted, for a function of position alone; the model is that of the mean run.

    Returns
    -------
    model : `ParametricModel`
        With its `ParametricResult`.

    Raises
    ------
    InputError
        For a function, parameters or bins that do not fit, or a likelihood that is not finite at the start.
    FitError
        Without counts, or for a fit that failed.
    """
    function = rate_function(function, parameters)
    check_shared(function, shared)
    all_counts = counts
    if fov.is_radial:
        raise InputError("fov: got rings, but a parametric model needs the bins of a grid, FovBins.grid")
    if on_failure not in ("raise", "flag"):
        raise InputError(f"on_failure: got {on_failure!r}, but 'raise' or 'flag' is needed")
    if not counts.sum() > 0:
        raise FitError("fit: there are no counts outside of the exclusion in the energy and offset range of the model")
    seen = exposure > 0
    counts, volume = counts[:, seen], (exposure * fov.solid_angle)[seen]
    if function.n_inputs == 2:
        options = tuple(shared), on_failure, profile_edges, displacement, aligned
        model, mixed = _fit_by_energy(counts, volume, bin_edges, fov, seen, function, *options)
        return _judged(model, all_counts, exposure, displacement, mixed)
    one = Likelihood(function, BinNodes.of_bins(bin_edges, fov, seen, displacement), counts, volume)
    start = one.start()
    fitted = fit_likelihoods([one], np.arange(len(start))[None], start)
    values, covariance, _, _ = fitted
    result = _result(function, function.names, fitted, [np.arange(len(start))], counts.size)
    _report(result, function, on_failure)
    full = function.expand(values)
    nodes = error_nodes(bin_edges, fov)
    error = _error_directions(covariance, _slopes(function, values, covariance, np.exp(nodes[0]), nodes))
    shape = shape_of(function, full, bin_edges, fov)
    model = ParametricModel(bin_edges, fov, bin_edges, function.description, (shape,), result, error)
    return _judged(model, all_counts, exposure, displacement)


def _judged(model, counts, exposure, displacement, mixed=None):
    """The model with its goodness of fit; ``mixed``: the spectrum of the runs with all their shifts."""
    n_parameters = int((model.result.errors > 0).sum())
    judged = model if mixed is None else replace(model, spectrum=mixed)
    goodness = goodness_of_model(
        judged, counts, exposure, model.bin_edges, model.fov, displacement=displacement, n_parameters=n_parameters
    )
    return replace(model, result=replace(model.result, goodness=goodness))


def _fit_by_energy(
    counts, volume, bin_edges, fov, seen, function, shared, on_failure, profile_edges, displacement, aligned
):
    """Fit a function of position in groups of energy bins, each of which has all parameters but the shared ones; and
    the spectrum of the runs with all their shifts."""
    with_counts = np.flatnonzero(counts.sum(1))
    used = slice(with_counts[0], with_counts[-1] + 1)
    own_counts, edges = counts[used], bin_edges[used.start : used.stop + 1]
    spectrum, mixed = fit_spectra(counts, bin_edges, used, aligned)
    counts = own_counts
    if aligned is not None:
        whole = spectrum.all_of_it()
        counts = aligned.moved(lambda e: whole.bin_weights(e, np.ones(1)), bin_edges)[used][:, seen]
    is_shared = np.isin([function.names[k] for k in function.free], shared)
    starts = np.arange(len(counts))
    if profile_edges is not None:
        inside = (profile_edges > edges[0]) & (profile_edges < edges[-1])
        starts = np.concatenate([[0], np.searchsorted(edges, profile_edges[inside])])
    in_start = np.add.reduceat(counts.sum(1), starts)
    first = starts[_group_starts(in_start, _COUNTS_A_PARAMETER * max(int((~is_shared).sum()), 1))]
    grouped = np.add.reduceat(counts, first, axis=0)
    last = np.append(first[1:], len(counts))
    width = (edges[last] - edges[first]) * TEV_IN_MEV
    pixels = BinNodes.of_bins(np.array([1.0, 2.0]), fov, seen, displacement)

    def likelihood(one_group, widths):
        # the shape has no energy: the width of the bin is its integral
        nodes = BinNodes(np.ones((1, 1)), np.array([[widths]]), pixels.fov_lon, pixels.fov_lat, pixels.fov_weight)
        return Likelihood(function, nodes, one_group[None], volume)

    groups = [likelihood(c, w) for c, w in zip(grouped, width, strict=True)]
    # the shape of all energies together is where each group starts
    everything = likelihood(grouped.sum(0), width.sum())
    n = len(function.free)
    together = fit_likelihoods([everything], np.arange(n)[None], everything.start())
    guess = everything.start() if together[3] else together[0]
    fitted, which = _fit_groups(groups, np.array([group.start(guess) for group in groups]), is_shared)
    values, covariance = fitted[:2]
    common = {*shared, *function.fixed_names}
    names = [name if name in common else f"{name}[{g}]" for g in range(len(groups)) for name in function.names]
    result = _result(function, names, fitted, list(which), grouped.size)
    _report(result, function, on_failure)

    middle = 0.5 * (np.log(edges[1:]) + np.log(edges[:-1]))
    in_bin = counts.sum(1)
    energy = np.exp(np.add.reduceat(in_bin * middle, first) / np.add.reduceat(in_bin, first))
    full = [function.expand(values[row]) for row in which]
    shapes = tuple(shape_of(function, one, edges, fov) for one in full)
    nodes = error_nodes(edges, fov)
    slopes = np.zeros((len(values), *(len(node) for node in nodes)))
    for row, share in zip(which, linear_weights(np.log(energy), nodes[0]).T, strict=True):
        own = _slopes(function, values[row], covariance[np.ix_(row, row)], np.ones(1), nodes)
        slopes[row] += own * share[:, None, None]
    error = _error_directions(covariance, slopes)
    model = ParametricModel(
        bin_edges, fov, edges, function.description, shapes, result, error, spectrum, energy, np.ones(len(groups))
    )
    # counts that one s-1 MeV-1 sr-1 of the shapes, as the model reads them, would give
    points = pixels.fov_lon.ravel(), pixels.fov_lat.ravel()
    mean = (model.profiles(*points).reshape(len(groups), *pixels.fov_lon.shape) * pixels.fov_weight).sum(2)
    group_counts = mean @ volume
    if profile_edges is not None:
        weights = mixed.bin_weights(np.append(edges[first], edges[-1]), energy)
        group_counts = group_counts / kept_integrals(np.add.reduceat(own_counts.sum(1), first), weights)
    return replace(model, group_counts=group_counts), mixed


def _fit_groups(groups, starts, is_shared):
    """Fit groups one by one, or at once if they share parameters;
    and the number of each group's parameters, (group, n)."""
    n, n_shared = len(is_shared), int(is_shared.sum())
    # the shared parameters come first, then those of each group
    which = np.empty((len(groups), n), dtype=int)
    which[:, is_shared] = np.arange(n_shared)
    which[:, ~is_shared] = n_shared + np.arange(len(groups) * (n - n_shared)).reshape(len(groups), -1)
    if not n_shared:
        return _joined(
            [fit_likelihoods([g], np.arange(n)[None], s) for g, s in zip(groups, starts, strict=True)]
        ), which
    start = np.empty(which.max() + 1)
    start[which] = starts
    return fit_likelihoods(groups, which, start), which


def _group_starts(counts, least):
    """First bin of each group of neighbouring energy bins with at least so many counts; a rest joins the last group."""
    first, held = [0], 0
    for k, n in enumerate(counts):
        if held >= least and counts[k:].sum() >= least:
            first.append(k)
            held = 0
        held += n
    return np.array(first)


def _joined(fits):
    """Independent fits as one."""
    values, covariances, deviances, problems = zip(*fits, strict=True)
    n = [len(v) for v in values]
    covariance = np.zeros((sum(n), sum(n)))
    at = np.cumsum([0, *n])
    for k, one in enumerate(covariances):
        covariance[at[k] : at[k + 1], at[k] : at[k + 1]] = one
    named = [f"energy group {k}: {problem}" for k, problem in enumerate(problems) if problem]
    return np.concatenate(values), covariance, sum(deviances), "; ".join(named)


def _result(function, names, fitted, which, n_bins):
    """All parameters with errors, from those that were fitted; ties are followed by their derivatives."""
    values, covariance, deviance, problem = fitted
    step = np.sqrt(np.abs(np.diag(np.nan_to_num(covariance)))) * _STEP_IN_ERRORS
    step = np.where(step > 0, step, 1e-6 * np.maximum(np.abs(values), 1e-6))
    full, jacobian = [], np.zeros((len(names), len(values)))
    for g, row in enumerate(which):
        full.append(function.expand(values[row]))
        here = slice(g * len(function.names), (g + 1) * len(function.names))
        for i, k in enumerate(row):
            below, above = values[row].copy(), values[row].copy()
            below[i], above[i] = values[k] - step[k], values[k] + step[k]
            jacobian[here, k] = (function.expand(above) - function.expand(below)) / (2 * step[k])
    # a parameter that is common to all groups is listed once
    kept = np.sort(np.unique(names, return_index=True)[1])
    all_values = np.concatenate(full)[kept]
    everything = (
        jacobian @ covariance @ jacobian.T if np.isfinite(covariance).all() else np.full((len(names),) * 2, np.nan)
    )
    everything = everything[np.ix_(kept, kept)]
    errors = np.sqrt(np.maximum(np.diag(everything), 0))
    near = []
    for k, value, error in zip(kept, all_values, errors, strict=True):
        p = k % len(function.names)
        low, high = function.bounds[p]
        if p in function.free and min(value - low, high - value) <= error:
            near.append(names[k])
    message = problem or "converged"
    if near:
        message += f"; within an error of a limit: {', '.join(near)}"
    return ParametricResult(
        tuple(names[k] for k in kept),
        all_values,
        errors,
        everything,
        deviance,
        int(n_bins - len(values)),
        not problem,
        message,
    )


def _report(result, function, on_failure):
    if result.valid:
        return
    text = f"parametric fit of {function.description!r} failed: {result.message}"
    if on_failure == "raise":
        raise FitError(
            f"{text}. Fix, limit or share over energy what the counts do not tell, give better start values, use fewer "
            "energy bins, or set on_failure to 'flag'"
        )
    log.warning(f"{text}. It is used all the same, and flagged in the result of the model.")


def _slopes(function, values, covariance, energy, nodes):
    """Derivatives of the log of the rate by the parameters, shape (n, energy, fov_lon, fov_lat)."""
    lon, lat = (g.ravel() for g in np.meshgrid(*nodes[1:], indexing="ij"))

    def log_rate(changed):
        return np.log(np.maximum(function.grid(function.expand(changed), energy, lon, lat), 1e-300)).ravel()

    of_each = []
    limits = np.array(function.bounds)[function.free]
    for k, error in enumerate(np.sqrt(np.maximum(np.diag(np.nan_to_num(covariance)), 0))):
        below, above = values.copy(), values.copy()
        step = _STEP_IN_ERRORS * error or 1e-9
        below[k], above[k] = np.clip([values[k] - step, values[k] + step], *limits[k])
        of_each.append((log_rate(above) - log_rate(below)) / (above[k] - below[k]))
    return np.reshape(of_each, (len(values), len(energy), len(nodes[1]), len(nodes[2])))


def _error_directions(covariance, slopes):
    """Changes of the log of the rate by one standard deviation along independent directions, by linear propagation;
    and one of 1 wherever the rate follows a parameter of which nothing is known."""
    known = np.isfinite(np.diag(covariance))
    unknown = (slopes[~known] != 0).any(axis=0)
    directions = np.tensordot(root_of(covariance[np.ix_(known, known)]).T, slopes[known], axes=1)
    return np.concatenate([directions, unknown[None]] if unknown.any() else [directions]).astype(np.float32)
