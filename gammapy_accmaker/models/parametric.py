"""Parametric acceptance: a function of energy and position in the field of view, fitted to counts in bins.

A function of energy, or of energy and position, is fitted to all bins at once. A function of position alone is fitted in
each energy bin (bins with few counts are merged), and the energy dependence is a smooth spectrum of all counts, as for the
binned models, so that the counts of each energy are kept.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.interpolate import RegularGridInterpolator

from gammapy_accmaker.binning import FovBins
from gammapy_accmaker.errors import FitError, InputError
from gammapy_accmaker.models.base import TEV_IN_MEV, RateModel
from gammapy_accmaker.models.log_table import LogTable, table_nodes
from gammapy_accmaker.models.parametric_fit import (
    BinNodes,
    Likelihood,
    ParametricResult,
    energy_nodes,
    fit_likelihoods,
)
from gammapy_accmaker.models.parametric_function import PYTHON, RateFunction, check_shared, rate_function
from gammapy_accmaker.models.spectrum import SmoothSpectrum, fit_spectrum, linear_weights

__all__ = ["ParametricModel", "ParametricResult", "fit_parametric"]

log = logging.getLogger(__name__)

COUNTS_A_PARAMETER = 30  # least counts of an energy group for each parameter that is fitted in it
ENERGY_STEP, FOV_STEP = np.log(10) / 40, 0.1  # of a table, in ln E and deg
ERROR_ENERGIES, ERROR_POSITIONS = 12, 11  # nodes of the relative error
TABLE_TOLERANCE = 1e-3
STEP_IN_ERRORS = 0.01  # of a parameter, in a derivative
AT_LIMIT = 1e-3  # of the distance between two limits


@dataclass(frozen=True, eq=False)
class ParametricModel(RateModel):
    """Acceptance from a fitted function.

    It holds no code. A ready function is kept by its name and values. A function that was given in Python is kept as tables of
    the logarithm of its factors (40 a decade, 0.1 deg; cubic splines), within 0.1 % of it where it is smooth and > 0: these
    are what predicts, in the process of the fit too, so that a file, a worker and the fit agree exactly.
    Beyond the bins of the fit it is flat for one bin, as a grid is, and 0 from there.

    Attributes
    ----------
    bin_edges : `~numpy.ndarray`
        Energy edges of the fit in TeV, shape (nbin + 1,).
    fov : `FovBins`
        Bins of the fit.
    energy_edges : `~numpy.ndarray`
        Edges in TeV of the bins in which the rate is not 0, shape (m + 1,).
    description : str
        The function in words.
    shapes : tuple
        For each energy group, the values of all parameters of a ready function, or the `LogTable` of each factor.
    result : `ParametricResult`
    relative_error : `~numpy.ndarray`
        Standard deviation of the log of the rate on a coarse grid, shape (energy, fov_lon, fov_lat).
    spectrum : `SmoothSpectrum` or None
        Counts per TeV of all of the fit, for a function of position alone.
    group_energy, group_counts : `~numpy.ndarray` or None
        For such a function, mean energy in TeV of each group, and the counts per s-1 sr-1 of its shape.
    """

    bin_edges: np.ndarray
    fov: FovBins
    energy_edges: np.ndarray
    description: str
    shapes: tuple
    result: ParametricResult
    relative_error: np.ndarray
    spectrum: SmoothSpectrum | None = None
    group_energy: np.ndarray | None = None
    group_counts: np.ndarray | None = None

    zenith_range = None
    is_radial = False

    @cached_property
    def _coverage(self):
        """First and last value of each axis in deg, one bin beyond the fit, shape (2, 2)."""
        return np.array([(2 * e[0] - e[1], 2 * e[-1] - e[-2]) for e in self.fov.edges])

    @property
    def half_width(self) -> float:
        return float(np.abs(self._coverage).max())

    @property
    def offset_max(self) -> float:
        return float(np.degrees(np.arccos(np.cos(np.radians(self.half_width)) ** 2)))

    @cached_property
    def _function(self):
        return None if self.description.startswith(PYTHON) else rate_function(self.description)

    def rate_grid(self, energy, fov_lon, fov_lat, cos_zenith=1.0):
        energy = np.asarray(energy, dtype=float)
        low, high = self.energy_edges[[0, -1]]
        inside = (energy >= low * (1 - 1e-9)) & (energy <= high * (1 + 1e-9))
        if self.spectrum is None:
            rate = inside[:, None] * self._product(0, np.clip(energy, low, high), fov_lon, fov_lat)
        else:
            shares = linear_weights(np.log(self.group_energy), np.log(energy))
            rate = (self.spectrum(energy) / TEV_IN_MEV)[:, None] * (shares @ self._profiles(fov_lon, fov_lat))
        return np.where(self._covers(fov_lon, fov_lat), rate, 0)

    def integral_grid(self, energy_edges, fov_lon, fov_lat, cos_zenith=1.0):
        edges = np.clip(np.asarray(energy_edges, dtype=float), *self.energy_edges[[0, -1]])
        if self.spectrum is None:
            energy, weight = energy_nodes(edges)
            rate = self._product(0, energy.ravel(), fov_lon, fov_lat)
            total = np.einsum("ek,ekp->ep", weight, rate.reshape(*energy.shape, -1))
        else:
            total = self.spectrum.bin_weights(edges, self.group_energy) @ self._profiles(fov_lon, fov_lat)
        return np.where(self._covers(fov_lon, fov_lat), total, 0)

    def relative_error_grid(self, energy, fov_lon, fov_lat, cos_zenith=1.0):
        lon, lat = self._clipped(fov_lon, fov_lat)
        x = np.clip(np.log(energy), *np.log(self.energy_edges[[0, -1]]))
        nodes = _error_nodes(self.energy_edges, self.fov)
        points = np.stack([np.repeat(x, len(lon)), np.tile(lon, len(x)), np.tile(lat, len(x))], axis=1)
        return RegularGridInterpolator(nodes, self.relative_error)(points).reshape(len(x), len(lon))

    def _covers(self, fov_lon, fov_lat):
        return np.all([(x >= a) & (x < b) for x, (a, b) in zip((fov_lon, fov_lat), self._coverage, strict=True)], axis=0)  # fmt: skip

    def _clipped(self, fov_lon, fov_lat):
        return [np.clip(x, *e[[0, -1]]) for x, e in zip((fov_lon, fov_lat), self.fov.edges, strict=True)]

    def _product(self, group, energy, fov_lon, fov_lat):
        """Rate of one group's shape at energies and positions, shape (n, m)."""
        lon, lat = self._clipped(fov_lon, fov_lat)
        if self._function is not None:
            return self._function.grid(self.shapes[group], energy, lon, lat)
        return _table_product(self.shapes[group], energy, lon, lat)

    def _profiles(self, fov_lon, fov_lat):
        """Rate per count in s-1 sr-1 of each group, shape (group, m)."""
        shapes = [self._product(g, np.ones(1), fov_lon, fov_lat)[0] for g in range(len(self.shapes))]
        return np.array(shapes) / self.group_counts[:, None]

    def to_arrays(self):
        arrays = {f"fov_edges_{k}": e for k, e in enumerate(self.fov.edges)}
        arrays |= {name: getattr(self, name) for name in ("bin_edges", "energy_edges", "relative_error")}
        arrays |= {"description": np.array(self.description), **self.result.to_arrays()}
        if self.spectrum is not None:
            arrays |= {"spectrum": self.spectrum.coefficients, "group_energy": self.group_energy, "group_counts": self.group_counts}  # fmt: skip
        if self._function is not None:
            return arrays | {"values": np.array(self.shapes)}
        for k, tables in enumerate(zip(*self.shapes, strict=True)):
            arrays |= {f"table_{k}": np.array([t.log_values for t in tables])}
            arrays |= {f"table_{k}_nodes_{i}": x for i, x in enumerate(tables[0].nodes)}
        return arrays

    @classmethod
    def from_arrays(cls, arrays):
        fov = FovBins((arrays["fov_edges_0"], arrays["fov_edges_1"]))
        given = {name: arrays[name] for name in ("bin_edges", "energy_edges", "relative_error")}
        if "spectrum" in arrays:
            low, high = arrays["energy_edges"][[0, -1]]
            given["spectrum"] = SmoothSpectrum(float(low), float(high), arrays["spectrum"])
            given |= {name: arrays[name] for name in ("group_energy", "group_counts")}
        if "values" in arrays:
            shapes = tuple(arrays["values"])
        else:
            factors = []
            for k in range(sum(name.startswith("table_") and name.count("_") == 1 for name in arrays)):
                values = arrays[f"table_{k}"]
                nodes = tuple(arrays[f"table_{k}_nodes_{i}"] for i in range(values.ndim - 1))
                factors.append([LogTable(nodes, one) for one in values])
            shapes = tuple(zip(*factors, strict=True))
        result = ParametricResult.from_arrays(arrays)
        return cls(fov=fov, description=str(arrays["description"]), shapes=shapes, result=result, **given)


def _table_product(tables, energy, lon, lat):
    rate = np.ones((len(energy), len(lon)))
    for table in tables:
        rate = rate * table.grid(np.log(energy), lon, lat)
    return rate


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
        As for `rate_function`. A free parameter that scales the rate starts where the total counts agree, unless its value is
        given.
    shared : tuple of str
        For a function of position alone: parameters that all energies have in common.
    on_failure : {"raise", "flag"}
        What is done where the fit fails: a `FitError`, or a warning and a result that is not valid.

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
    if fov.is_radial:
        raise InputError("fov: got rings, but a parametric model needs the bins of a grid, FovBins.grid")
    if on_failure not in ("raise", "flag"):
        raise InputError(f"on_failure: got {on_failure!r}, but 'raise' or 'flag' is needed")
    if not counts.sum() > 0:
        raise FitError("fit: there are no counts outside of the exclusion in the energy and offset range of the model")
    seen = exposure > 0
    counts, volume = counts[:, seen], (exposure * fov.solid_angle)[seen]
    if function.n_inputs == 2:
        return _fit_by_energy(counts, volume, bin_edges, fov, seen, function, tuple(shared), on_failure)
    one = Likelihood(function, BinNodes.of_bins(bin_edges, fov, seen), counts, volume)
    start = one.start()
    fitted = fit_likelihoods([one], np.arange(len(start))[None], start)
    values, covariance, _, _ = fitted
    result = _result(function, function.names, [function.expand], fitted, [np.arange(len(start))], counts.size)
    _report(result, function, on_failure)
    full = function.expand(values)
    nodes = _error_nodes(bin_edges, fov)
    error = _relative_error(function, values, covariance, np.exp(nodes[0]), nodes)
    shape = _shape(function, full, bin_edges, fov)
    return ParametricModel(bin_edges, fov, bin_edges, function.description, (shape,), result, error)


def _fit_by_energy(counts, volume, bin_edges, fov, seen, function, shared, on_failure):
    """Fit a function of position in groups of energy bins, each of which has all parameters but the shared ones."""
    with_counts = np.flatnonzero(counts.sum(1))
    used = slice(with_counts[0], with_counts[-1] + 1)
    counts, edges = counts[used], bin_edges[used.start : used.stop + 1]
    spectrum = fit_spectrum(counts.sum(1), edges)
    is_shared = np.isin([function.names[k] for k in function.free], shared)
    first = _group_starts(counts.sum(1), COUNTS_A_PARAMETER * max(int((~is_shared).sum()), 1))
    grouped = np.add.reduceat(counts, first, axis=0)
    last = np.append(first[1:], len(counts))
    width = (edges[last] - edges[first]) * TEV_IN_MEV
    pixels = BinNodes.of_bins(np.array([1.0, 2.0]), fov, seen)

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
    starts = np.array([_start_at(group, guess) for group in groups])
    # the shared parameters come first, then those of each group
    n_own = int((~is_shared).sum())
    which = np.empty((len(groups), n), dtype=int)
    which[:, is_shared] = np.arange(n - n_own)
    which[:, ~is_shared] = n - n_own + np.arange(len(groups) * n_own).reshape(len(groups), n_own)
    if is_shared.any():
        start = np.empty(which.max() + 1)
        start[which] = starts
        fitted = fit_likelihoods(groups, which, start)
    else:
        fitted = _joined([fit_likelihoods([g], np.arange(n)[None], s) for g, s in zip(groups, starts, strict=True)])
    values, covariance = fitted[:2]
    names = [name if name in shared else f"{name}[{g}]" for g in range(len(groups)) for name in function.names]
    result = _result(function, names, [function.expand] * len(groups), fitted, list(which), grouped.size)
    _report(result, function, on_failure)

    middle = 0.5 * (np.log(edges[1:]) + np.log(edges[:-1]))
    in_bin = counts.sum(1)
    energy = np.exp(np.add.reduceat(in_bin * middle, first) / np.add.reduceat(in_bin, first))
    full = [function.expand(values[row]) for row in which]
    shapes = tuple(_shape(function, one, edges, fov) for one in full)
    nodes = _error_nodes(edges, fov)
    by_group = [_relative_error(function, values[row], covariance[np.ix_(row, row)], np.ones(1), nodes)[0] for row in which]  # fmt: skip
    shares = linear_weights(np.log(energy), nodes[0])
    error = np.tensordot(shares, np.array(by_group), 1)
    model = ParametricModel(
        bin_edges, fov, edges, function.description, shapes, result, error, spectrum, energy, np.ones(len(groups))
    )
    # counts that one s-1 MeV-1 sr-1 of the shapes, as the model reads them, would give
    points = pixels.fov_lon.ravel(), pixels.fov_lat.ravel()
    mean = (model._profiles(*points).reshape(len(groups), *pixels.fov_lon.shape) * pixels.fov_weight).sum(2)
    model.group_counts[:] = mean @ volume
    return model


def _start_at(group, values):
    """Start values of a group: those of all energies, with the norm of its own counts."""
    function = group.function
    full, total = function.expand(values), group.counts.sum()
    for i, k in enumerate(function.free):
        changed = full.copy()
        changed[k] *= 1.01
        now = group.expected(full).sum()
        low, high = function.bounds[k]
        scaled = full[k] * total / now
        if full[k] != 0 and abs(group.expected(function.tie(changed)).sum() / now - 1.01) < 1e-9 and low <= scaled <= high:  # fmt: skip
            values = values.copy()
            values[i] = scaled
            break
    return values


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


def _result(function, names, expand, fitted, which, n_bins):
    """All parameters with errors, from those that were fitted; ties are followed by their derivatives."""
    values, covariance, deviance, problem = fitted
    step = np.sqrt(np.abs(np.diag(np.nan_to_num(covariance)))) * STEP_IN_ERRORS
    step = np.where(step > 0, step, 1e-6 * np.maximum(np.abs(values), 1e-6))
    full, jacobian = [], np.zeros((len(names), len(values)))
    for g, row in enumerate(which):
        full.append(expand[g](values[row]))
        here = slice(g * len(function.names), (g + 1) * len(function.names))
        for i, k in enumerate(row):
            change = np.zeros(len(row))
            change[i] = step[k]
            jacobian[here, k] = (expand[g](values[row] + change) - expand[g](values[row] - change)) / (2 * step[k])
    # a shared parameter is listed once
    kept = np.sort(np.unique(names, return_index=True)[1])
    full = np.concatenate(full)[kept]
    everything = jacobian @ covariance @ jacobian.T if np.isfinite(covariance).all() else np.full((len(names),) * 2, np.nan)  # fmt: skip
    everything = everything[np.ix_(kept, kept)]
    low, high = np.array(function.bounds).T
    at_limit = []
    for k, value in zip(kept, full, strict=True):
        p = k % len(function.names)
        width = AT_LIMIT * (high[p] - low[p] if np.isfinite(high[p] - low[p]) else 0)
        if p in function.free and (value <= low[p] + width or value >= high[p] - width):
            at_limit.append(names[k])
    message = problem or "converged"
    if at_limit:
        message += f"; at a limit: {', '.join(at_limit)}"
    errors = np.sqrt(np.maximum(np.diag(everything), 0))
    return ParametricResult(tuple(names[k] for k in kept), full, errors, everything, deviance, int(n_bins - len(values)), not problem, message)  # fmt: skip


def _report(result, function, on_failure):
    if result.valid:
        return
    text = f"parametric fit of {function.description!r} failed: {result.message}"
    if on_failure == "raise":
        raise FitError(
            f"{text}. Fix or limit parameters that the counts do not tell, give better start values, use fewer energy bins, or "
            "set on_failure to 'flag'"
        )
    log.warning(f"{text}. It is used all the same, and flagged in the result of the model.")


def _shape(function: RateFunction, values, energy_edges, fov):
    """What the model keeps of the function: the values of a ready one, else tables of its factors."""
    if not function.description.startswith(PYTHON):
        return values
    low, high = np.log(energy_edges[[0, -1]])
    x = table_nodes(low, high, ENERGY_STEP)
    lon, lat = (table_nodes(e[0], e[-1], FOV_STEP) for e in fov.edges)
    grid = [g.ravel() for g in np.meshgrid(lon, lat, indexing="ij")]
    tables = []
    for k, model in enumerate(function.factors):
        nodes = [(x,), (lon, lat), (x, lon, lat)][model.n_inputs - 1]
        rate = np.maximum(function.factor_grid(k, values, np.exp(x), *grid), 0)
        tables.append(LogTable.of_values(nodes, rate.reshape([len(n) for n in nodes])))
    _check_table(function, values, tables, (x, lon, lat))
    return tuple(tables)


def _check_table(function, values, tables, nodes):
    """Warn where a table is not its function half way between the nodes."""
    x, lon, lat = (0.5 * (n[1:] + n[:-1])[:: max(len(n) // 12, 1)] for n in nodes)
    lon, lat = (g.ravel() for g in np.meshgrid(lon, lat, indexing="ij"))
    direct, read = function.grid(values, np.exp(x), lon, lat), _table_product(tables, np.exp(x), lon, lat)
    worst = np.abs(read - direct).max() / direct.max()
    inside = direct > 1e-6 * direct.max(axis=1, keepdims=True)
    worst = max(worst, np.abs(read / np.where(inside, direct, 1) - 1)[inside].max())
    if worst > TABLE_TOLERANCE:
        log.warning(
            f"{function.description}: the table that stands for the function is up to {100 * worst:.2g} % off between its nodes; "
            "make the function smoother"
        )


def _error_nodes(energy_edges, fov):
    lon, lat = (np.linspace(e[0], e[-1], ERROR_POSITIONS) for e in fov.edges)
    return np.linspace(*np.log(energy_edges[[0, -1]]), ERROR_ENERGIES), lon, lat


def _relative_error(function, values, covariance, energy, nodes):
    """Standard deviation of the log of the rate, by linear propagation, shape (energy, fov_lon, fov_lat); 1 if unknown."""
    lon, lat = (g.ravel() for g in np.meshgrid(*nodes[1:], indexing="ij"))
    shape = (len(energy), len(nodes[1]), len(nodes[2]))
    if not np.isfinite(covariance).all():
        return np.ones(shape)

    def log_rate(changed):
        return np.log(np.maximum(function.grid(function.expand(changed), energy, lon, lat), 1e-300)).ravel()

    slopes = []
    for k, error in enumerate(np.sqrt(np.maximum(np.diag(covariance), 0))):
        step = np.zeros(len(values))
        step[k] = STEP_IN_ERRORS * error or 1e-9
        slopes.append((log_rate(values + step) - log_rate(values - step)) / (2 * step[k]))
    slopes = np.array(slopes)
    return np.sqrt(np.maximum(np.sum(slopes * (covariance @ slopes), axis=0), 0)).reshape(shape)
