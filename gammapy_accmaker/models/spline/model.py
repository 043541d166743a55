"""The spline model: a smooth rate in energy, offset and zenith angle, an asymmetry, and the effects of runs.

    log rate = f(log E + scaling + shift, offset, cos zenith) + g(log E, fov_lon, fov_lat) + additive effects of the run

It is fitted by `~gammapy_accmaker.models.spline.fit.fit_spline` and adapted to one run by
`~gammapy_accmaker.models.spline.adapt.fit_run`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from functools import cached_property, lru_cache

import numpy as np
from scipy.linalg import block_diag, eigh
from scipy.sparse import csr_array

from gammapy_accmaker.models.bsplines import BSplineAxis, row_tensor
from gammapy_accmaker.models.norm_energy import RunScatter, find_scatter
from gammapy_accmaker.models.run_shape import root_of
from gammapy_accmaker.models.spline.cells import AsymmetryCells, FovCells, asymmetry_basis
from gammapy_accmaker.models.spline.covariates import CovariateScale
from gammapy_accmaker.models.spline.effects import EffectBasis, RunEffect, RunPopulation
from gammapy_accmaker.models.spline.equations import reaction_variance
from gammapy_accmaker.models.spline.likelihood import RunDesign
from gammapy_accmaker.models.spline.scaled_energy import ScaledEnergyAxis
from gammapy_accmaker.models.spline.serial import pack, unpack

# Reference bins for whose sums the leading directions of the errors are found: numbers of bands of energy, rings and
# position angles; bands and rings are divided into FINER parts. What the counts of a run of _REFERENCE_COUNTS fix is
# taken into account.
_REFERENCE_BINS = 8, 5, 16
_FINER = 3
_REFERENCE_COUNTS = 2e4
_REFERENCE_SHARES = 1e-3, 0.9995  # of the counts, between which the energies lie
_MAX_DIRECTIONS = 160, 48  # of rate and asymmetry
_KEPT_SHARE = 0.99  # of the variance of the sums, in units of that of Poisson

_BLOCK = 2048  # positions of a rate that are worked out together: what is in between stays in the processor's cache


def zenith_splines(axis: BSplineAxis, cos_zenith: float) -> np.ndarray:
    """Values of the splines in zenith angle, shape (axis.n,)."""
    return axis.basis([np.log(cos_zenith)])[0]


@lru_cache(maxsize=16)
def _bases(lon: bytes, lat: bytes, offset_axis: BSplineAxis, asymmetry_axis: BSplineAxis):
    """Splines of the offset, shape (n_t, m), and `asymmetry_basis`, shape (n_b, m), at m positions in deg.

    They are a third of the work for a rate, and the same for all runs at the nodes of the polar grid of a background.
    """
    at = np.frombuffer(lon), np.frombuffer(lat)
    return offset_axis.basis(np.hypot(*at)).T, asymmetry_basis(*at, asymmetry_axis).T


@dataclass(frozen=True)
class _ErrorDirections:
    """Leading directions of the errors that all runs share, each one standard deviation long.

    Attributes
    ----------
    rate : `~numpy.ndarray`, shape (p, k)
        Of the coefficients of the rate.
    asymmetry : `~numpy.ndarray`, shape (q, j)
        Of those of the asymmetry.
    """

    rate: np.ndarray
    asymmetry: np.ndarray

    @classmethod
    def of(cls, model: SplineModel) -> _ErrorDirections:
        """Find those that change the counts most, in units of their Poisson error.

        They are the leading eigenvectors of the covariance of sums of the expected counts, over bands of energy and
        rings, of runs over the range of zenith angles: before and after the effects of each run have followed the rate,
        so that the norm, which is known less well than all else until a run's own counts fix it, is not all that they
        hold. Sums, since what is known from counts is known to about the same Poisson error in every direction: of
        single points most of the variance is that of many narrow wiggles, which average out.
        """
        n_energy, n_offset, n_angle = _REFERENCE_BINS
        log_energy, band = _reference_energies(model, n_energy)
        offset = (np.arange(_FINER * n_offset) + 0.5) / (_FINER * n_offset) * model.offset_max
        ring = np.arange(len(offset)) // _FINER
        number = (band[:, None] * n_offset + ring).ravel()
        rows = []
        for cos_zenith in _reference_zeniths(model):
            rate = model.rate_grid(np.exp(log_energy), offset, 0 * offset, cos_zenith)
            share = rate * offset * np.exp(log_energy)[:, None]
            share = (share / share.sum()).ravel()
            at_energy, at_offset, zenith, effects = model._derivatives(
                log_energy, offset, 0 * offset, cos_zenith, None, None
            )
            by_rate = np.einsum("ne,mt->nmet", at_energy, at_offset).reshape(len(share), -1)
            parts = [by_rate]
            if effects.shape[2]:
                effects = effects.reshape(len(share), -1)
                # a run's own counts take from a change of the rate what its effects can make good
                counted = _REFERENCE_COUNTS * share[:, None] * effects
                information = effects.T @ counted + np.linalg.pinv(model.population.covariance)
                parts.append(by_rate - effects @ np.linalg.solve(information, counted.T @ by_rate))
            summed = csr_array((share, (number, np.arange(len(share)))), shape=(n_energy * n_offset, len(share)))
            in_bin = np.maximum(np.bincount(number, share, n_energy * n_offset), 1e-12)[:, None]
            rate_rows = model.rate_rows(zenith)
            rows += [(summed @ part) @ rate_rows / np.sqrt(in_bin) for part in parts]
        along = _leading(np.concatenate(rows), _MAX_DIRECTIONS[0])
        angle = 2 * np.pi * np.arange(n_angle) / n_angle
        lon, lat = (np.outer(offset[1::_FINER], wave(angle)).ravel() for wave in (np.cos, np.sin))
        at_energy = model.asymmetry_energy_axis.basis(log_energy[_FINER // 2 :: _FINER])
        space = asymmetry_basis(lon, lat, model.asymmetry_offset_axis)
        weights = np.sqrt(np.repeat(in_bin.reshape(n_energy, n_offset) / n_angle, n_angle, axis=1))
        by_asymmetry = np.einsum("nm,na,mb->nmab", weights, at_energy, space).reshape(weights.size, -1)
        root = model._asymmetry_root
        return cls(model._factor @ along, root @ _leading(by_asymmetry @ root, _MAX_DIRECTIONS[1]))


def _reference_energies(model, n_band):
    """Log energies, and the numbers of the bands of equal width that they are in, over most of the counts."""
    total = np.cumsum(model.spectrum_weights)
    lo, hi = np.interp(_REFERENCE_SHARES, total, model.design.log_energy)
    return lo + (np.arange(_FINER * n_band) + 0.5) / (_FINER * n_band) * (hi - lo), np.repeat(np.arange(n_band), _FINER)


def _reference_zeniths(model):
    axis = model.zenith_axis
    if axis.n == 1:
        return [model.clamp_zenith(np.nan)]
    low, high = model.zenith_range
    return [model.clamp_zenith(z) for z in np.geomspace(low, high, axis.n)]


def _leading(rows: np.ndarray, most: int) -> np.ndarray:
    """Orthonormal directions that hold most of the sum of squares of rows, shape (n, k)."""
    few, many = sorted(rows.shape)
    gram = rows @ rows.T if len(rows) == few else rows.T @ rows
    values, vectors = eigh(gram, subset_by_index=[max(few - most, 0), few - 1])
    values, vectors = values[::-1], vectors[:, ::-1]
    enough = np.searchsorted(np.cumsum(values), _KEPT_SHARE * np.trace(gram)) + 1
    keep = slice(0, min(enough, int((values > 1e-12 * values[0]).sum())))
    values, vectors = values[keep], vectors[:, keep]
    return rows.T @ vectors / np.sqrt(values) if len(rows) == few else vectors


@dataclass(frozen=True)
class SplineModel:
    """Fitted acceptance, see the module.

    Outside the trained range, energy, offset and zenith angle are clamped to it; the rate is finite and >= 0.

    Attributes
    ----------
    energy_edges : `~numpy.ndarray`, shape (n_energy + 1,)
        TeV; fine bins of the fit.
    fov_lon, fov_lat, solid_angle : `~numpy.ndarray`, shape (n_fov,)
        Pixels of the fit, deg and sr.
    zenith_range : tuple of float
        Trained range of cos zenith.
    covariates : `CovariateScale`
    energy_axis : `ScaledEnergyAxis`
    offset_axis, zenith_axis : `BSplineAxis`
        Of f, in deg and in the log of cos zenith, in which a power law is a straight line.
    asymmetry_energy_axis, asymmetry_offset_axis : `BSplineAxis`
        Of g, in log(E / TeV) and deg.
    coefficients : `~numpy.ndarray`, shape (n_e, n_t, n_z)
        Of f.
    covariance_factor : `~numpy.ndarray`, shape (p (p + 1) / 2,)
        Upper triangle of R, covariance of the coefficients = R R', p = n_e * n_t * n_z; float32.
    asymmetry : `~numpy.ndarray`, shape (n_a, n_b)
        Coefficients of g.
    asymmetry_covariance : `~numpy.ndarray`, shape (n_a n_b, n_a n_b)
        float32.
    smoothing : `~numpy.ndarray`, shape (n,)
        Smoothing parameters of f, see `RatePenalty`.
    population : `RunPopulation`
        Of the effects of runs.
    effects : tuple of `RunEffect`
        Of the training runs.
    converged : bool
    run_scatter : tuple of float
        How the training runs differ, see `RunScatter.to_array`; empty in an older file.
    rounds : int
        Rounds of the fit; 0 in an older file.
    mean_reaction : `~numpy.ndarray`, shape (n_e * n_t, n_z, 2)
        By how much the norms and the shifts of the training runs fall, in the mean, as a coefficient of f rises;
        float32; empty without run effects and in an older file.
    """

    energy_edges: np.ndarray
    fov_lon: np.ndarray
    fov_lat: np.ndarray
    solid_angle: np.ndarray
    zenith_range: tuple[float, float]
    covariates: CovariateScale
    energy_axis: ScaledEnergyAxis
    offset_axis: BSplineAxis
    zenith_axis: BSplineAxis
    asymmetry_energy_axis: BSplineAxis
    asymmetry_offset_axis: BSplineAxis
    coefficients: np.ndarray
    covariance_factor: np.ndarray
    asymmetry: np.ndarray
    asymmetry_covariance: np.ndarray
    smoothing: np.ndarray
    population: RunPopulation
    effects: tuple[RunEffect, ...]
    converged: bool
    run_scatter: tuple[float, ...] = ()
    rounds: int = 0
    mean_reaction: np.ndarray = field(default_factory=lambda: np.zeros((0, 0, 2), dtype=np.float32))

    def __getstate__(self):
        # tables that are computed on demand need not travel to worker processes
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def __setstate__(self, state):
        self.__dict__.update(state)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Serial form, exact, made of arrays alone."""
        return pack(self)

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> SplineModel:
        """The inverse of `to_arrays`."""
        return unpack(cls, arrays)

    @property
    def offset_max(self) -> float:
        """Largest trained offset in deg."""
        return self.offset_axis.hi

    @cached_property
    def design(self) -> RunDesign:
        """Bins, cells and bases shared by all runs."""
        return self.design_for(self.population.basis)

    def design_for(self, basis: EffectBasis) -> RunDesign:
        """The same with another basis of run effects."""
        cells = FovCells(self.fov_lon, self.fov_lat, self.solid_angle)
        return RunDesign(self.energy_edges, cells, self.energy_axis, self.offset_axis, basis)

    @cached_property
    def asymmetry_cells(self) -> np.ndarray:
        """Log asymmetry g in the cells, see `AsymmetryCells.log_mean`, shape (3, n_energy, n_cell)."""
        design = self.design
        bases = AsymmetryCells(design.cells, design.log_energy, self.asymmetry_energy_axis, self.asymmetry_offset_axis)
        return bases.log_mean(self.asymmetry)

    @cached_property
    def spectrum_weights(self) -> np.ndarray:
        """Share of the fitted counts in each energy bin at the middle of the trained zenith range,
        shape (n_energy,)."""
        rate = self.rate_grid(np.exp(self.design.log_energy), self.fov_lon, self.fov_lat, np.nan)
        counts = (rate @ self.solid_angle) * np.exp(self.design.log_width)
        return counts / counts.sum()

    @cached_property
    def mean_slope(self) -> np.ndarray:
        """Derivative of the log rate by the energy shift at half the largest offset, shape (n_energy,)."""
        profile = self.coefficients @ zenith_splines(self.zenith_axis, self.clamp_zenith(np.nan))
        u = self.design.log_energy + sum(self.covariates.scaling(self.clamp_zenith(np.nan), None))
        return self.energy_axis.derivative(u) @ profile @ self.offset_axis.basis([0.5 * self.offset_max])[0]

    @cached_property
    def scatter(self) -> RunScatter:
        """How the training runs differ; where it is not known, the threshold is that of the rate."""
        if self.run_scatter:
            return RunScatter.from_array(self.run_scatter)
        scaling = sum(self.covariates.scaling(self.clamp_zenith(np.nan), None))
        return find_scatter(1e5 * self.spectrum_weights[None], np.log(self.energy_edges) + scaling)

    def mean_effects(self, cos_zenith: float, azimuth: float | None = None, covariates=None) -> np.ndarray:
        """Mean effects of runs under these conditions, shape (n_effect,)."""
        return self.population.mean(self.covariates.regressors(self.clamp_zenith(cos_zenith), azimuth, covariates))

    def clamp_zenith(self, cos_zenith: float) -> float:
        """Cos zenith within the trained range; its middle where it is not known."""
        if not np.isfinite(cos_zenith):
            cos_zenith = 0.5 * sum(self.zenith_range)
        return float(np.clip(cos_zenith, *self.zenith_range))

    def _clamped(self, energy, fov_lon, fov_lat):
        """Log energy and positions within the trained range; positions beyond it are pulled in along the radius."""
        log_energy = np.log(np.clip(energy, self.energy_edges[0], self.energy_edges[-1]))
        lon, lat = np.asarray(fov_lon, dtype=float), np.asarray(fov_lat, dtype=float)
        pull = np.minimum(1, self.offset_max / np.maximum(np.hypot(lon, lat), 1e-12))
        return log_energy, lon * pull, lat * pull

    def _conditions(self, cos_zenith, azimuth, covariates, effect):
        """Basis and values of the run effects, and the scaling of log energy."""
        by_zenith, by_others = self.covariates.scaling(cos_zenith, covariates)
        if effect is None:
            return self.population.basis, self.mean_effects(cos_zenith, azimuth, covariates), by_zenith + by_others
        return effect.basis, effect.coefficients, by_zenith + effect.scaling

    def log_rate_grid(
        self, energy, fov_lon, fov_lat, cos_zenith: float, *, azimuth=None, covariates=None, effect=None
    ) -> np.ndarray:
        """Log of the rate in s-1 MeV-1 sr-1, see `rate_grid`."""
        given = energy, fov_lon, fov_lat, cos_zenith, azimuth, covariates, effect
        return np.hstack([np.zeros((len(energy), 0)), *self._log_rates(*given)])

    def _log_rates(self, energy, fov_lon, fov_lat, cos_zenith, azimuth, covariates, effect):
        """Log of the rate at the energies and _BLOCK positions, or fewer at last, after the other."""
        cos_zenith = self.clamp_zenith(cos_zenith)
        basis, values, scaling = self._conditions(cos_zenith, azimuth, covariates, effect)
        log_energy, lon, lat = self._clamped(energy, fov_lon, fov_lat)
        by_offset = self.coefficients @ zenith_splines(self.zenith_axis, cos_zenith)
        nodes = self.energy_axis.grid_basis @ by_offset
        at_energy = self.asymmetry_energy_axis.basis(log_energy)
        by_mode = basis.by_mode(basis.energy_columns(log_energy), values)
        for start in range(0, len(lon), _BLOCK):
            here = lon[start : start + _BLOCK], lat[start : start + _BLOCK]
            at_offset, asymmetry = _bases(*(x.tobytes() for x in here), self.offset_axis, self.asymmetry_offset_axis)
            shift = basis.shift_values(*here) @ values[: basis.n_shift]
            log_rate = self._at_shifted(log_energy + scaling, shift, nodes, at_offset)
            # products of few rows first
            log_rate += at_energy @ (self.asymmetry @ asymmetry)
            log_rate += by_mode @ basis.mode_values(*here).T
            yield log_rate

    def _at_shifted(self, log_energy, shift, nodes, at_offset):
        """Rows between those at the nodes of the energy axis, times columns, each at an energy shift of its own."""
        node, fraction = self.energy_axis.locate(log_energy[:, None], shift)
        if np.ptp(shift) == 0:
            node, fraction = node[:, 0], fraction[:, :1]
            return (nodes[node] * (1 - fraction) + nodes[node + 1] * fraction) @ at_offset
        first, last = node.min(), node.max() + 2
        table = nodes[first:last] @ at_offset
        # where each is in the table as one row: taken in this way, and in place, at half the time
        node -= first
        node *= len(shift)
        node += np.arange(len(shift))
        low, out = table.take(node), table[1:].take(node)
        out -= low
        out *= fraction
        out += low
        return out

    def rate_grid(
        self, energy, fov_lon, fov_lat, cos_zenith: float, *, azimuth=None, covariates=None, effect=None
    ) -> np.ndarray:
        """Rate at each of n energies and m positions.

        Parameters
        ----------
        energy : array_like, shape (n,)
            TeV.
        fov_lon, fov_lat : array_like, shape (m,)
            Deg.
        cos_zenith : float
        azimuth : float, optional
            Deg; without it the mean over azimuths.
        covariates : dict of float, optional
            Those of the run; what is missing counts as the mean of the training runs.
        effect : `RunEffect`, optional
            Of the run that the rate is for; without it the mean of runs under these conditions.

        Returns
        -------
        rate : `~numpy.ndarray`, shape (n, m)
            In s-1 MeV-1 sr-1, per ontime.
        """
        rate, start = np.empty((len(energy), len(fov_lon))), 0
        for log_rate in self._log_rates(energy, fov_lon, fov_lat, cos_zenith, azimuth, covariates, effect):
            end = start + log_rate.shape[1]
            np.exp(np.clip(log_rate, -300, 300, out=log_rate), out=rate[:, start:end])
            start = end
        return rate

    @cached_property
    def _factor(self):
        p = self.coefficients.size
        out = np.zeros((p, p))
        out[np.triu_indices(p)] = self.covariance_factor
        return out

    def relative_error_grid(
        self, energy, fov_lon, fov_lat, cos_zenith: float, *, azimuth=None, effect=None, part: str = "both"
    ) -> np.ndarray:
        """Standard deviation of the log rate at each of n energies and m positions.

        Parameters
        ----------
        energy, fov_lon, fov_lat, cos_zenith, azimuth, effect
            As in `rate_grid`.
        part : str
            ``coefficients``: of f and g, once the effects of the run, if given, have followed them. ``run``: of the
            effects, posterior with an effect, else the spread of the population. ``both``: the root of the sum of
            squares.

        Returns
        -------
        error : `~numpy.ndarray`, shape (n, m)
        """
        if part not in ("coefficients", "run", "both"):
            raise ValueError(f"part: got {part!r}, but 'coefficients', 'run' or 'both' is needed")
        log_energy, lon, lat = self._clamped(energy, fov_lon, fov_lat)
        at_energy, offset, zenith, of_effects = self._derivatives(
            log_energy, lon, lat, self.clamp_zenith(cos_zenith), azimuth, effect
        )
        variance = np.zeros((len(log_energy), len(lon)))
        if part != "run":
            variance += self._rate_variance(at_energy, offset, zenith)
            variance += self._asymmetry_variance(log_energy, lon, lat)
            if effect is not None:
                variance += self._followed(at_energy, offset, zenith, of_effects, effect)
        if part != "coefficients":
            covariance = self.population.covariance if effect is None else effect.covariance
            variance += np.einsum("emd,emd->em", of_effects @ covariance, of_effects)
        return np.sqrt(np.maximum(variance, 0))

    def _derivatives(self, log_energy, lon, lat, cos_zenith, azimuth, effect):
        """What the log rate is made of: splines in energy, shape (n, n_e), offset, (m, n_t), and zenith angle, (n_z,),
        and its derivatives by the effects of the run, (n, m, n_effect)."""
        basis, values, scaling = self._conditions(cos_zenith, azimuth, None, effect)
        offset = self.offset_axis.basis(np.hypot(lon, lat))
        zenith = zenith_splines(self.zenith_axis, cos_zenith)
        shift = values[0] if basis.n_shift else 0.0
        u = log_energy + scaling + shift
        # a shift moves the run along the spectrum: by as much as the spectrum is steep there
        slope = self.energy_axis.derivative(u) @ (self.coefficients @ zenith) @ offset.T
        columns, modes = basis.energy_columns(log_energy), basis.mode_values(lon, lat)[:, basis.mode_of_column]
        by_shift = slope[:, :, None] * basis.shift_values(lon, lat)
        return (
            self.energy_axis.basis(u),
            offset,
            zenith,
            np.concatenate([by_shift, columns[:, None, :] * modes], axis=2),
        )

    @cached_property
    def directions(self) -> _ErrorDirections:
        """The leading directions in which rate and asymmetry are uncertain, the same for all runs."""
        return _ErrorDirections.of(self)

    def error_rows(
        self, energy, fov_lon, fov_lat, cos_zenith: float, *, azimuth=None, effect=None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Derivatives of the log rate by what is uncertain: by what all runs share, and along the effects of the run.

        Parameters
        ----------
        energy, fov_lon, fov_lat, cos_zenith, azimuth, effect
            As in `rate_grid`.

        Returns
        -------
        shared : `~numpy.ndarray`, shape (k, n, m)
            By the coefficients of the rate at this zenith angle and by those of the asymmetry, see `error_factor`; once
            the effects of the run, if given, have followed: a change that the run's own counts do not allow, of its
            norm above all, its effects make good again.
        run : `~numpy.ndarray`, shape (n_effect, n, m)
            By one standard deviation along independent directions of the effects: posterior with an effect, else their
            spread over the population.
        """
        log_energy, lon, lat = self._clamped(energy, fov_lon, fov_lat)
        at_energy, offset, _, of_effects = self._derivatives(
            log_energy, lon, lat, self.clamp_zenith(cos_zenith), azimuth, effect
        )
        shape = len(log_energy), len(lon)
        rate = np.einsum("ne,mt->etnm", at_energy, offset).reshape(-1, *shape)
        if effect is not None and len(effect.response):
            rate -= np.tensordot(effect.response.astype(float), of_effects, axes=(1, 2))
        space = asymmetry_basis(lon, lat, self.asymmetry_offset_axis)
        at_energy = self.asymmetry_energy_axis.basis(log_energy)
        asymmetry = np.einsum("na,mb->abnm", at_energy, space).reshape(-1, *shape)
        covariance = self.population.covariance if effect is None else effect.covariance
        run = [np.tensordot(root_of(covariance).T, of_effects, axes=(1, 2))]
        left = self.scatter.shape
        if left is not None:  # what effects that cannot follow a threshold leave out, less what they make good of it
            values = left.values(np.exp(log_energy), lon, lat)
            if effect is not None and effect.shape_response.size:
                values = values - np.tensordot(effect.shape_response, of_effects, axes=(1, 2))
            run.append(np.tensordot(left.root.T, values, axes=1))
        return np.concatenate([rate, asymmetry]), np.concatenate(run)

    def error_factor(self, cos_zenith: float, *, leading: bool = False) -> np.ndarray:
        """Matrix from independent directions of unit variance, the same for all runs, to what `error_rows` derives by.

        Parameters
        ----------
        cos_zenith : float
        leading : bool
            Only along `directions`.

        Returns
        -------
        factor : `~numpy.ndarray`, shape (k, n_direction)
        """
        zenith = zenith_splines(self.zenith_axis, self.clamp_zenith(cos_zenith))
        if leading:
            of_rate = self.directions.rate.reshape(-1, len(zenith), self.directions.rate.shape[1])
            return block_diag(np.einsum("tzk,z->tk", of_rate, zenith), self.directions.asymmetry)
        return block_diag(self.rate_rows(zenith), self._asymmetry_root)

    @cached_property
    def _asymmetry_root(self):
        return root_of(self.asymmetry_covariance.astype(float))

    def rate_rows(self, zenith: np.ndarray) -> np.ndarray:
        """Rows R of the coefficients in energy and offset at one zenith angle: their covariance is R R'.

        Parameters
        ----------
        zenith : `~numpy.ndarray`, shape (n_z,)
            Splines in zenith angle.

        Returns
        -------
        rows : `~numpy.ndarray`, shape (n_e * n_t, n_e * n_t * n_z)
        """
        near = np.flatnonzero(zenith)
        n_e, n_t, n_z = self.coefficients.shape
        factor = self._factor.reshape(n_e * n_t, n_z, -1)
        return sum(zenith[k] * factor[:, k] for k in near)

    def reaction_variance(self, own: np.ndarray, zenith: np.ndarray) -> np.ndarray:
        """`~gammapy_accmaker.models.spline.equations.reaction_variance` of the norm and the shift of a run."""
        n_e, n_t, n_z = self.coefficients.shape
        factor = self._factor.reshape(n_e * n_t, n_z, -1)
        return reaction_variance(own[None], zenith[None], self.mean_reaction.astype(float), factor)[0]

    def _rate_variance(self, at_energy, at_offset, zenith):
        n_e, n_t = self.coefficients.shape[:2]
        rows = self.rate_rows(zenith)
        covariance = (rows @ rows.T).reshape(n_e, n_t, n_e, n_t).transpose(0, 2, 1, 3).reshape(n_e * n_e, n_t * n_t)
        return row_tensor(at_energy) @ covariance @ row_tensor(at_offset).T

    def _followed(self, at_energy, at_offset, zenith, of_effects, effect):
        """What it takes off the variance of the rate that the effects of the run have followed it."""
        if not len(effect.response):
            return np.einsum("emd,emd->em", of_effects @ effect.covariance_of_rate, of_effects)
        rows, response = self.rate_rows(zenith), effect.response.astype(float)
        by_rate = rows.T @ response
        together = (rows @ by_rate).reshape(*self.coefficients.shape[:2], -1)
        together = np.einsum("ei,ita,mt->ema", at_energy, together, at_offset, optimize=True)
        return np.einsum("emd,emd->em", of_effects @ (by_rate.T @ by_rate) - 2 * together, of_effects)

    def _asymmetry_variance(self, log_energy, lon, lat):
        at_energy = self.asymmetry_energy_axis.basis(log_energy)
        space = asymmetry_basis(lon, lat, self.asymmetry_offset_axis)
        n_a, n_b = self.asymmetry.shape
        covariance = self.asymmetry_covariance.astype(float).reshape(n_a, n_b, n_a, n_b)
        out = np.empty((len(log_energy), len(space)))
        for k, row in enumerate(at_energy):
            at = np.einsum("abcd,a,c->bd", covariance, row, row, optimize=True)
            out[k] = np.einsum("mb,mb->m", space @ at, space)
        return out
