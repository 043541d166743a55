"""Poisson likelihood of a rate function for counts in energy and field-of-view bins, and its minimum by iminuit.

The counts of a bin are Poisson with mean exposure x solid angle x the integral of the rate over its energies, averaged
over its solid angle: Gauss-Legendre sums in log energy and in the field of view, not values at the centre.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from iminuit import Minuit
from iminuit.util import IMinuitWarning

from gammapy_accmaker.camera.bins import TEV_IN_MEV, FovBins, moved_weights
from gammapy_accmaker.errors import InputError
from gammapy_accmaker.models.parametric.function import RateFunction
from gammapy_accmaker.utils.statistics import poisson_deviance

_ENERGY_PANEL, _ENERGY_NODES = 0.3, 3  # width in ln E, and nodes, of one panel: 1e-5 for a trigger threshold of power 6
_FOV_PANEL, _FOV_NODES = 0.42, 2  # the same in deg: 3e-4 for a Gaussian of sigma 0.5 deg, 1e-5 in pixels of 0.2 deg
_TINY = 1e-100  # least expected counts, so that a rate of 0 has a likelihood
_BARRIER = 1e3  # times the deviance of the start: where the likelihood is not finite
_MAX_CALLS = 20_000
_SLOPE_STEP = 1e-4  # relative
_LEAST_INFORMATION = 1e-10  # smallest eigenvalue, over that of independent parameters: below, rounding decides
_AT_LIMIT, _AT_LIMIT_IF_INVALID = 1e-6, 1e-3  # of the distance between two limits


def energy_nodes(energy_edges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Energies in TeV and weights in MeV that integrate over each energy bin, shapes (nbin, k)."""
    log_energy, weight = _panels(np.log(energy_edges), _ENERGY_PANEL, _ENERGY_NODES)
    energy = np.exp(log_energy)
    return energy, weight * energy * TEV_IN_MEV


def _panels(edges, width, n):
    """Nodes and weights of a Gauss-Legendre rule on equal panels of each bin, shapes (nbin, k)."""
    node, weight = np.polynomial.legendre.leggauss(n)
    edges = np.asarray(edges, dtype=float)
    panels = max(int(np.ceil(np.diff(edges).max() / width - 1e-9)), 1)
    half = 0.5 * np.diff(edges)[:, None, None] / panels
    middle = edges[:-1, None, None] + half * (2 * np.arange(panels)[:, None] + 1)
    shape = (len(edges) - 1, panels * n)
    return (middle + half * node).reshape(shape), np.broadcast_to(half * weight, (*half.shape[:1], panels, n)).reshape(
        shape
    )


@dataclass(frozen=True)
class BinNodes:
    """Nodes that integrate over energy bins and average over field-of-view bins.

    Attributes
    ----------
    energy, energy_weight : `~numpy.ndarray`, shape (nbin, k)
        TeV and MeV.
    fov_lon, fov_lat, fov_weight : `~numpy.ndarray`, shape (npixel, l)
        deg; the weights of a pixel sum to 1.
    """

    energy: np.ndarray
    energy_weight: np.ndarray
    fov_lon: np.ndarray
    fov_lat: np.ndarray
    fov_weight: np.ndarray

    @classmethod
    def of_bins(
        cls, energy_edges: np.ndarray, fov: FovBins, seen: np.ndarray, displacement: np.ndarray | None = None
    ) -> BinNodes:
        """Nodes of energy bins and of what was seen of those bins of a grid that were; see `moved_weights`."""
        lon, lon_weight = _panels(fov.edges[0], _FOV_PANEL, _FOV_NODES)
        # even in solid angle
        sin_lat, lat_weight = _panels(np.sin(np.radians(fov.edges[1])), np.radians(_FOV_PANEL), _FOV_NODES)
        lat = np.degrees(np.arcsin(sin_lat))
        shape = (len(lon), len(lat), lon.shape[1], lat.shape[1])
        weight = lon_weight[:, None, :, None] * lat_weight[None, :, None, :]
        fov_lon, fov_lat, fov_weight = (
            np.broadcast_to(x, shape).reshape(fov.size, -1)[seen]
            for x in (lon[:, None, :, None], lat[None, :, None, :], weight)
        )
        energy, energy_weight = energy_nodes(energy_edges)
        fov_weight = fov_weight / fov_weight.sum(1, keepdims=True)
        if displacement is not None:
            fov_weight = moved_weights(fov_weight, fov.positions(fov_lon, fov_lat), displacement[seen])
        return cls(energy, energy_weight, fov_lon, fov_lat, fov_weight)

    def integrate(self, factors: list[np.ndarray]) -> np.ndarray:
        """Integral of a product of factors of shapes (n, 1), (1, m) or (n, m) at the nodes, shape (nbin, npixel)."""
        of_energy, of_fov, of_both = np.ones((self.energy.size, 1)), np.ones((1, self.fov_lon.size)), None
        for values in factors:
            if values.shape[1] == 1:
                of_energy = of_energy * values
            elif values.shape[0] == 1:
                of_fov = of_fov * values
            else:
                of_both = values if of_both is None else of_both * values
        energy_part = of_energy.reshape(self.energy.shape) * self.energy_weight
        fov_part = of_fov.reshape(self.fov_lon.shape) * self.fov_weight
        if of_both is None:
            return np.outer(energy_part.sum(1), fov_part.sum(1))
        both = of_both.reshape(*self.energy.shape, *self.fov_lon.shape)
        return np.einsum("ek,ekpl,pl->ep", energy_part, both, fov_part, optimize=True)


@dataclass(frozen=True)
class Likelihood:
    """Poisson likelihood of a function's parameters for some energy bins.

    Attributes
    ----------
    function : `RateFunction`
    nodes : `BinNodes`
    counts : `~numpy.ndarray`, shape (nbin, npixel)
    volume : `~numpy.ndarray`, shape (npixel,)
        Exposure x solid angle in s sr, > 0.
    """

    function: RateFunction
    nodes: BinNodes
    counts: np.ndarray
    volume: np.ndarray

    def _factors(self, values):
        nodes = self.nodes
        at = nodes.energy.ravel(), nodes.fov_lon.ravel(), nodes.fov_lat.ravel()
        return [self.function.factor_grid(k, values, *at) for k in range(len(self.function.factors))], at

    def expected(self, values: np.ndarray) -> np.ndarray:
        """Expected counts at the values of all parameters, shape (nbin, npixel)."""
        return self.nodes.integrate(self._factors(values)[0]) * self.volume

    def deviance(self, values: np.ndarray) -> float:
        """Deviance from the saturated model; not finite where the function is not."""
        mu = self.expected(values)
        return float(poisson_deviance(self.counts, np.maximum(mu, _TINY)).sum()) if np.isfinite(mu).all() else np.nan

    @property
    def has_gradient(self) -> bool:
        """Whether every factor gives its derivatives."""
        function = self.function
        return not function.has_ties and all(function.has_slopes(function.factor_of(k)) for k in function.free)

    def gradient(self, values: np.ndarray) -> np.ndarray:
        """Derivatives of the deviance by the free parameters."""
        function = self.function
        factors, at = self._factors(values)
        mu = self.nodes.integrate(factors) * self.volume
        pull = np.where(mu > _TINY, 2 * (1 - self.counts / np.maximum(mu, _TINY)), 0) * self.volume
        slopes = {k: function.factor_slopes(k, values, *at) for k in {function.factor_of(p) for p in function.free}}
        out = np.empty(len(function.free))
        for i, p in enumerate(function.free):
            k = function.factor_of(p)
            changed = [*factors[:k], slopes[k][function.slot(p)], *factors[k + 1 :]]
            out[i] = np.sum(pull * self.nodes.integrate(changed))
        return out

    def information(self, values: np.ndarray) -> np.ndarray:
        """Expected information on the free parameters (Fisher), shape (n_free, n_free),
        from the slopes of the counts."""
        function, of_each = self.function, []
        for k in function.free:
            step = max(abs(values[k]), 1e-3) * _SLOPE_STEP
            pair = [np.clip(values[k] + sign * step, *function.bounds[k]) for sign in (1, -1)]
            above, below = (self.expected(function.tie(np.where(np.arange(len(values)) == k, v, values))) for v in pair)
            of_each.append((above - below).ravel() / (pair[0] - pair[1]))
        slopes, mu = np.array(of_each), np.maximum(self.expected(values).ravel(), _TINY)
        return (slopes / mu) @ slopes.T

    def start(self, guess: np.ndarray | None = None) -> np.ndarray:
        """Free parameters to start from: the first that the rate is proportional to makes the totals agree, unless
        given.

        ``guess``: free parameters near the minimum; without it, the start values of the function.
        """
        function = self.function
        values = function.start.copy() if guess is None else function.expand(guess)
        total = self.expected(values).sum()
        if not (np.isfinite(self.deviance(values)) and total > 0):
            raise InputError(
                f"parameters: at the start values {dict(zip(function.names, values.tolist(), strict=True))} the "
                f"likelihood of {function.description!r} is not finite, or its rate is 0; "
                "give others, or mend the function"
            )
        for k in function.free:
            changed = values.copy()
            changed[k] *= 1.01  # little: a large change could leave the limits
            scales = abs(self.expected(function.tie(changed)).sum() / total - 1.01) < 1e-9
            scaled = values[k] * self.counts.sum() / total
            low, high = function.bounds[k]
            given = guess is None and function.names[k] in function.given
            if values[k] != 0 and scales and not given and low <= scaled <= high:
                values[k] = scaled
                break
        return values[function.free]


def fit_likelihoods(
    likelihoods: list[Likelihood], which: np.ndarray, start: np.ndarray
) -> tuple[np.ndarray, np.ndarray, float, str]:
    """Joint fit of likelihoods of one function that have parameters in common.

    Parameters
    ----------
    likelihoods : list of `Likelihood`
    which : `~numpy.ndarray`, shape (likelihood, n_free)
        Number, in the vector that is fitted, of each free parameter of the function.
    start : `~numpy.ndarray`
        That vector.

    Returns
    -------
    values : `~numpy.ndarray`
        The vector at the minimum of the deviance.
    covariance : `~numpy.ndarray`
        Its covariance, from second derivatives; 0 for what stays at a limit, NaN where the fit failed.
    deviance : float
    problem : str
        Why the fit failed; empty if it did not.
    """
    function = likelihoods[0].function
    bounds = np.full((len(start), 2), np.nan)
    for row in which:
        bounds[row] = np.array(function.bounds)[function.free]

    # Minuit changes one or two parameters at a time: most groups were there before
    @lru_cache(maxsize=128 * len(likelihoods))
    def cost_of(k, own):
        return likelihoods[k].deviance(function.expand(np.frombuffer(own)))

    def cost(theta):
        value = sum(cost_of(k, theta[row].tobytes()) for k, row in enumerate(which))
        return value if np.isfinite(value) else barrier

    def gradient(theta):
        out = np.zeros(len(theta))
        for one, row in zip(likelihoods, which, strict=True):
            out[row] += one.gradient(function.expand(theta[row]))
        return np.nan_to_num(out)

    barrier = np.inf
    barrier = _BARRIER * (1 + cost(start))
    minuit = Minuit(cost, start, grad=gradient if all(one.has_gradient for one in likelihoods) else None)
    minuit.errordef, minuit.print_level = Minuit.LEAST_SQUARES, 0  # a deviance is twice a log-likelihood
    for k, (low, high) in enumerate(bounds):
        minuit.limits[k] = low, high
        width = high - low if np.isfinite(high - low) else np.inf
        minuit.errors[k] = min(max(0.05 * abs(start[k]), 1e-3 if start[k] == 0 else 0), 0.1 * width) or 1e-3
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", IMinuitWarning)  # its state is looked at below
        minuit.migrad(ncall=_MAX_CALLS)
        minuit.hesse()
        # at a limit the likelihood has no parabola in a parameter: it stays there, the others are fitted
        near = _AT_LIMIT if minuit.valid and minuit.accurate else _AT_LIMIT_IF_INVALID
        stuck = np.flatnonzero(
            [_is_at_limit(v, low, high, near) for v, (low, high) in zip(minuit.values, bounds, strict=True)]
        ).tolist()
        if stuck:
            for k in stuck:
                minuit.values[k] = bounds[k][np.argmin(np.abs(bounds[k] - minuit.values[k]))]
                minuit.fixed[k] = True
            minuit.migrad(ncall=_MAX_CALLS)
            minuit.hesse()
    values, covariance = np.array(minuit.values), np.full((len(start),) * 2, np.nan)
    problems = []
    if minuit.fmin.has_reached_call_limit:
        problems.append(f"no minimum in {_MAX_CALLS} calls")
    elif not minuit.valid:
        problems.append(f"no valid minimum (estimated distance {minuit.fmin.edm:.1e})")
    if minuit.covariance is None or not minuit.accurate or not np.isfinite(minuit.covariance).all():
        problems.append("no accurate covariance")
    blurred = _not_told_apart(likelihoods, which, values, np.array(minuit.fixed))
    if len(blurred):
        names = {function.names[function.free[i]] for k in blurred for i in np.flatnonzero((which == k).any(axis=0))}
        verb = "tell" if len(names) > 1 else "determine"
        problems.append(f"the counts do not {verb} {' from '.join(sorted(names))}")
    if not cost(values) < barrier:
        problems.append("the likelihood is not finite")
    if not problems:
        covariance = np.array(minuit.covariance)
    return values, covariance, float(cost(values)), ", ".join(problems)


def _not_told_apart(likelihoods, which, values, fixed):
    """Numbers of the parameters in which the likelihood is flat, alone or against each other."""
    information = np.zeros((len(values),) * 2)
    for one, row in zip(likelihoods, which, strict=True):
        information[np.ix_(row, row)] += one.information(one.function.expand(values[row]))
    information[fixed] = information[:, fixed] = 0
    information[fixed, fixed] = 1
    scale = np.sqrt(np.diag(information))
    if not np.all(scale > 0):
        return np.flatnonzero(~(scale > 0))
    eigenvalues, directions = np.linalg.eigh(information / np.outer(scale, scale))
    if eigenvalues[0] > _LEAST_INFORMATION:
        return np.zeros(0, dtype=int)
    return np.flatnonzero(np.abs(directions[:, 0]) > 0.1)


def _is_at_limit(value, low, high, near):
    width = high - low if np.isfinite(high - low) else 0.0
    return min(value - low, high - value) <= near * width
