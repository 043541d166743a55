"""Parametric acceptance: a fitted function of energy and position in the field of view."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, fields, replace
from functools import cached_property

import numpy as np
from scipy.interpolate import RegularGridInterpolator

from gammapy_accmaker.camera.bins import TEV_IN_MEV, FovBins
from gammapy_accmaker.models.base import ModelOnBins
from gammapy_accmaker.models.goodness import GoodnessOfFit
from gammapy_accmaker.models.norm_energy import RunScatter
from gammapy_accmaker.models.parametric.function import PYTHON, RateFunction, rate_function
from gammapy_accmaker.models.parametric.likelihood import energy_nodes
from gammapy_accmaker.models.parametric.log_table import LogTable, table_nodes
from gammapy_accmaker.models.spectrum import SmoothSpectrum, linear_weights

log = logging.getLogger(__name__)

_ENERGY_STEP, _FOV_STEP = np.log(10) / 40, 0.1  # of a table, in ln E and deg
_ERROR_ENERGIES, _ERROR_POSITIONS = 12, 11  # nodes of the errors
_TABLE_TOLERANCE = 1e-3


@dataclass(frozen=True, eq=False)
class ParametricResult:
    """Result of a parametric fit.

    Attributes
    ----------
    names : tuple of str
        Parameters; one that was fitted in each energy group has its number, as in "sigma[3]".
    values, errors : `~numpy.ndarray`
        Errors are 0 for parameters that are fixed or end at a limit, and follow the tie for tied ones; NaN where the
        fit failed.
    covariance : `~numpy.ndarray`, shape (n, n)
    deviance : float
        Poisson deviance from the saturated model.
    dof : int
        Degrees of freedom: bins less free parameters. Many bins have few counts, so this is no chi-square.
    valid : bool
        Whether the fit converged with a covariance.
    message : str
        Status in words: why it is not valid, or which parameters ended at a limit.
    goodness : `GoodnessOfFit` or None
        Whether the function describes the counts over field of view and energy: a fit can converge to the wrong shape.
    """

    names: tuple[str, ...]
    values: np.ndarray
    errors: np.ndarray
    covariance: np.ndarray
    deviance: float
    dof: int
    valid: bool
    message: str
    goodness: GoodnessOfFit | None = None

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Serial form."""
        arrays = {f"result_{name}": np.array(getattr(self, name)) for name in self._stored()}
        return arrays if self.goodness is None else arrays | self.goodness.to_arrays()

    @classmethod
    def _stored(cls):
        return [f.name for f in fields(cls) if f.name != "goodness"]

    @classmethod
    def from_arrays(cls, arrays) -> ParametricResult:
        """The inverse of `to_arrays`."""
        given = {name: arrays[f"result_{name}"] for name in cls._stored()}
        given["names"] = tuple(str(name) for name in given["names"])
        for name, kind in (("deviance", float), ("dof", int), ("valid", bool), ("message", str)):
            given[name] = kind(given[name])
        return cls(**given, goodness=GoodnessOfFit.from_arrays(arrays))


@dataclass(frozen=True, eq=False)
class ParametricModel(ModelOnBins):
    """Acceptance from a fitted function.

    It holds no code. A ready function is kept by its name and values. A function that was given in Python is kept as
    tables of the logarithm of its factors (40 a decade, 0.1 deg; cubic splines), within 0.1 % of it where it is smooth
    and > 0: these are what predicts, in the process of the fit too, so that a file, a worker and the fit agree exactly.
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
    error_directions : `~numpy.ndarray`, shape (k, energy, fov_lon, fov_lat)
        Change of the log of the rate on a coarse grid by one standard deviation along independent directions of the
        parameters; float32. That of an older file is the standard deviation itself, as if all of it went together.
    spectrum : `SmoothSpectrum` or None
        Counts per TeV of all of the fit, for a function of position alone.
    group_energy, group_counts : `~numpy.ndarray`
        For such a function, mean energy in TeV of each group, and the counts per s-1 sr-1 of its shape; else empty.
    run_scatter : `RunScatter`, optional
        How the runs of the fit differ.
    shift : float
        Of the energies, see `RateModel.shifted`; it is not stored.
    """

    bin_edges: np.ndarray
    fov: FovBins
    energy_edges: np.ndarray
    description: str
    shapes: tuple
    result: ParametricResult
    error_directions: np.ndarray
    spectrum: SmoothSpectrum | None = None
    group_energy: np.ndarray = field(default_factory=lambda: np.zeros(0))
    group_counts: np.ndarray = field(default_factory=lambda: np.zeros(0))
    run_scatter: RunScatter | None = None
    shift: float = 0.0

    kind = "parametric"
    zenith_range = None

    @cached_property
    def _function(self):
        return None if self.description.startswith(PYTHON) else rate_function(self.description)

    def rate_grid(self, energy, fov_lon, fov_lat, cos_zenith=np.nan):
        energy = np.asarray(energy, dtype=float)
        low, high = self.energy_edges[[0, -1]]
        inside = (energy >= low * (1 - 1e-9)) & (energy <= high * (1 + 1e-9))
        if self.spectrum is None:
            rate = inside[:, None] * self._product(0, np.clip(energy, low, high), fov_lon, fov_lat)
        else:
            shares = linear_weights(np.log(self.group_energy), np.log(energy))
            rate = (self.spectrum(energy) / TEV_IN_MEV)[:, None] * (shares @ self.profiles(fov_lon, fov_lat))
        return np.where(self.fov.within(fov_lon, fov_lat, self.fov.continued), rate, 0)

    def integral_grid(self, energy_edges, fov_lon, fov_lat, cos_zenith=np.nan):
        edges = np.asarray(energy_edges, dtype=float)
        if self.spectrum is None:
            edges = np.clip(edges, *self.energy_edges[[0, -1]])
            energy, weight = energy_nodes(edges)
            rate = self._product(0, energy.ravel(), fov_lon, fov_lat)
            total = np.einsum("ek,ekp->ep", weight, rate.reshape(*energy.shape, -1))
        else:
            total = self.spectrum.bin_weights(edges, self.group_energy) @ self.profiles(fov_lon, fov_lat)
        return np.where(self.fov.within(fov_lon, fov_lat, self.fov.continued), total, 0)

    def shifted(self, shift, reach):
        moved = replace(self, shift=self.shift + shift)
        if self.spectrum is None:
            # the function itself has no ends: it is read at other energies, within the same edges
            return moved
        spectrum = self.spectrum.shifted(shift, reach)
        return replace(moved, spectrum=spectrum, group_energy=self.group_energy * np.exp(-shift))

    @property
    def convergence(self) -> str:
        return self.result.message

    @property
    def goodness(self):
        return () if self.result.goodness is None else (self.result.goodness,)

    def in_bins(self, bin_edges: np.ndarray) -> ParametricModel:
        """The same model, with wider energy bins of the fit; edges in TeV."""
        return replace(self, bin_edges=bin_edges)

    def relative_error_grid(self, energy, fov_lon, fov_lat, cos_zenith=np.nan):
        return np.sqrt((self.error_rows(energy, fov_lon, fov_lat)[0] ** 2).sum(0))

    def error_rows(self, energy, fov_lon, fov_lat, cos_zenith=np.nan):
        lon, lat = self._clipped(fov_lon, fov_lat)
        x = np.clip(np.log(energy) + self.shift, *np.log(self.energy_edges[[0, -1]]))
        points = np.stack([np.repeat(x, len(lon)), np.tile(lon, len(x)), np.tile(lat, len(x))], axis=1)
        nodes = error_nodes(self.energy_edges, self.fov)
        rows = RegularGridInterpolator(nodes, np.moveaxis(self.error_directions, 0, -1))(points)
        return rows.T.reshape(-1, len(x), len(lon)), np.zeros((0, len(x), len(lon)))

    def error_factor(self, cos_zenith, azimuth=np.nan, *, leading=False):
        return np.eye(len(self.error_directions))

    def _clipped(self, fov_lon, fov_lat):
        return [np.clip(x, *e[[0, -1]]) for x, e in zip((fov_lon, fov_lat), self.fov.edges, strict=True)]

    def _product(self, group, energy, fov_lon, fov_lat):
        """Rate of one group's shape at energies and positions, shape (n, m)."""
        lon, lat = self._clipped(fov_lon, fov_lat)
        # of a function of position alone the spectrum is moved
        scale = np.exp(self.shift) if self.spectrum is None else 1.0
        if self._function is not None:
            return scale * self._function.grid(self.shapes[group], scale * energy, lon, lat)
        return scale * _table_product(self.shapes[group], scale * energy, lon, lat)

    def profiles(self, fov_lon, fov_lat):
        """Rate per count in s-1 sr-1 of each group, shape (group, m)."""
        shapes = [self._product(g, np.ones(1), fov_lon, fov_lat)[0] for g in range(len(self.shapes))]
        return np.array(shapes) / self.group_counts[:, None]

    def to_arrays(self):
        own = {name: getattr(self, name) for name in ("bin_edges", "energy_edges", "error_directions")}
        arrays = self.fov.to_arrays() | own | {"description": np.array(self.description), **self.result.to_arrays()}
        if self.run_scatter is not None:
            arrays["run_scatter"] = self.run_scatter.to_array()
        if self.spectrum is not None:
            arrays |= self.spectrum.to_arrays() | {
                "group_energy": self.group_energy,
                "group_counts": self.group_counts,
            }
        if self._function is not None:
            return arrays | {"values": np.array(self.shapes)}
        for k, tables in enumerate(zip(*self.shapes, strict=True)):
            arrays |= {f"table_{k}": np.array([t.log_values for t in tables])}
            arrays |= {f"table_{k}_nodes_{i}": x for i, x in enumerate(tables[0].nodes)}
        return arrays

    @classmethod
    def from_arrays(cls, arrays):
        given = {name: arrays[name] for name in ("bin_edges", "energy_edges")}
        older = "relative_error" in arrays
        given["error_directions"] = arrays["relative_error"][None] if older else arrays["error_directions"]
        if "run_scatter" in arrays:
            given["run_scatter"] = RunScatter.from_array(arrays["run_scatter"])
        if "spectrum" in arrays:
            given["spectrum"] = SmoothSpectrum.from_arrays(arrays)
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
        if not result.valid:
            log.warning(f"the parametric model {arrays['description']} comes from a fit that failed: {result.message}")
        given |= {"fov": FovBins.from_arrays(arrays), "description": str(arrays["description"])}
        return cls(shapes=shapes, result=result, **given)


def _table_product(tables, energy, lon, lat):
    rate = np.ones((len(energy), len(lon)))
    for table in tables:
        rate = rate * table.grid(np.log(energy), lon, lat)
    return rate


def shape_of(function: RateFunction, values, energy_edges, fov):
    """What the model keeps of the function: the values of a ready one, else tables of its factors."""
    if not function.description.startswith(PYTHON):
        return values
    low, high = np.log(energy_edges[[0, -1]])
    x = table_nodes(low, high, _ENERGY_STEP)
    lon, lat = (table_nodes(e[0], e[-1], _FOV_STEP) for e in fov.edges)
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
    if worst > _TABLE_TOLERANCE:
        log.warning(
            f"{function.description}: the table that stands for the function is up to {100 * worst:.2g} % off between "
            "its nodes; make the function smoother"
        )


def error_nodes(energy_edges, fov):
    lon, lat = (np.linspace(e[0], e[-1], _ERROR_POSITIONS) for e in fov.edges)
    low, high = np.log(energy_edges[[0, -1]])
    return np.linspace(low, high, _ERROR_ENERGIES), lon, lat
