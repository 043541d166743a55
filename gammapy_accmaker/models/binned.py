"""Binned acceptance, `radial` (energy, offset) and `grid` (energy, fov_lon, fov_lat).

The counts of a bin are Poisson with mean rate x exposure x solid angle, so the maximum likelihood rate of a bin is
its counts over the exposure that was not excluded. A rate that is read inside or between the
bins is the product of a smooth spectrum of all counts and, at each energy, their profile over the field of view: linear
between the bin centres, so that empty bins do no harm, with values there that give the counts of the bins back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np
from scipy.interpolate import griddata
from scipy.linalg import orth
from scipy.ndimage import uniform_filter1d
from scipy.sparse import csr_array

from gammapy_accmaker.camera.bins import TEV_IN_MEV, CountsBins, FovBins, moved_weights, offset
from gammapy_accmaker.errors import FitError
from gammapy_accmaker.models.alignment import AlignedRuns, ZenithScaling, align_runs, fit_spectra
from gammapy_accmaker.models.base import EffectSettings, ModelOnBins
from gammapy_accmaker.models.energy_drift import fit_drift, orthonormal_modes
from gammapy_accmaker.models.fit_counts import add_up, mean_displacement
from gammapy_accmaker.models.goodness import GoodnessOfFit, goodness_of_model
from gammapy_accmaker.models.norm_energy import (
    RunScatter,
    energies_between,
    find_scatter,
    given_or_chosen_energies,
    norm_spread,
)
from gammapy_accmaker.models.run_shape import shape_of_runs
from gammapy_accmaker.models.spectrum import SmoothSpectrum, kept_integrals, linear_weights

_ITERATIONS = 6  # of the nodes; enough for 1e-3, and few enough that noise from bin to bin is not amplified
# in log energy: rings drift slowly, sides fast at the threshold
_RING_STEP, _SIDE_STEP = 0.3 * np.log(10), 0.15 * np.log(10)
_ALIGNING_ROUNDS = 2  # of profiles at the energies of the mean run
_NORMS_CONVERGED = 1e-10  # largest relative change of a norm of a run
_SPREAD_ROUNDS = 6  # of the weights in the estimate of a spread
_GROUP_RINGS, _GROUP_SECTORS = 8, 8  # bins of a grid that errors of sums are found in
_LEADING_BANDS = 8  # of energy
_SUBPOINTS = 4  # along each side of a bin, to average the surface over it


@dataclass(frozen=True)
class BinnedModel(ModelOnBins):
    """Acceptance from counts in bins.

    Attributes
    ----------
    bin_edges : `~numpy.ndarray`
        Energy edges of the fit in TeV, shape (nbin + 1,).
    fov : `FovBins`
        Bins of the field of view.
    counts : `~numpy.ndarray`
        Counts of the fit, shape (nbin, fov.size).
    exposure : `~numpy.ndarray`
        Unexcluded ontime in s times the norms of the runs, shape (fov.size,).
    energy_edges : `~numpy.ndarray`
        Edges in TeV from the first to the last energy bin with counts, some of them left out where bins share a
        profile, shape (m + 1,).
    spectrum : `SmoothSpectrum`
        Counts per TeV of all of the fit.
    profile : `~numpy.ndarray`
        Rate per count in s-1 sr-1 at the centre of each bin, > 0, shape (m, fov.size).
    run_scatter : `RunScatter`, optional
        How the runs of the fit differ.
    goodness_of_fit : `GoodnessOfFit`, optional
        How well it gives the counts of the fit back, which it smooths where they are few.
    shift : float
        In log energy, of the spectrum and the profiles against those of the fit, see `shifted`; it is not stored.
    """

    bin_edges: np.ndarray
    fov: FovBins
    counts: np.ndarray
    exposure: np.ndarray
    energy_edges: np.ndarray
    spectrum: SmoothSpectrum
    profile: np.ndarray
    run_scatter: RunScatter | None = None
    goodness_of_fit: GoodnessOfFit | None = None
    shift: float = 0.0

    kind = "binned"
    zenith_range = None

    @cached_property
    def filled(self) -> np.ndarray:
        """Field-of-view bins without exposure, whose rate comes from their neighbours, shape (fov.size,)."""
        return self.exposure <= 0

    @property
    def _node_energy(self):
        return np.sqrt(self.energy_edges[1:] * self.energy_edges[:-1]) * np.exp(-self.shift)

    def integral_grid(self, energy_edges, fov_lon, fov_lat, cos_zenith=np.nan):
        return self._over_fov(
            self.spectrum.bin_weights(energy_edges, self._node_energy) @ self.profile, fov_lon, fov_lat
        )

    def shifted(self, shift, reach):
        return replace(self, spectrum=self.spectrum.shifted(shift, reach), shift=self.shift + shift)

    def rate_grid(self, energy, fov_lon, fov_lat, cos_zenith=np.nan):
        shares = linear_weights(np.log(self._node_energy), np.log(energy))
        density = self.spectrum(energy)[:, None] / TEV_IN_MEV * (shares @ self.profile)
        return self._over_fov(density, fov_lon, fov_lat)

    def _over_fov(self, values, fov_lon, fov_lat):
        inside = self.fov.within(fov_lon, fov_lat, self.fov.continued)
        return np.where(inside, (_fov_weights(self.fov, fov_lon, fov_lat) @ values.T).T, 0.0)

    @property
    def goodness(self):
        return () if self.goodness_of_fit is None else (self.goodness_of_fit,)

    def in_bins(self, bin_edges: np.ndarray) -> BinnedModel:
        """The same model, with its counts kept in wider energy bins; edges in TeV that are some of its own."""
        return replace(self, bin_edges=bin_edges, counts=_merged(self.counts, self.bin_edges, bin_edges))

    def relative_error_grid(self, energy, fov_lon, fov_lat, cos_zenith=np.nan):
        i, j = self._number(energy), self.fov.index(fov_lon, fov_lat)  # -1 beyond the last ring: the last ring
        # a filled bin knows no more than the least of its peers
        counts = np.where(self.filled, 0, self._profile_counts)
        return 1 / np.sqrt(counts[np.ix_(i, j)] + 1)

    def error_rows(self, energy, fov_lon, fov_lat, cos_zenith=np.nan):
        # 1 for the group that a bin lies in: counts of each were fitted apart
        i, n = self._number(energy), self._group_counts.shape
        j = self._fov_groups[self.fov.index(fov_lon, fov_lat)]
        shared = np.zeros((*n, len(i), len(j)))
        shared[i[:, None], j, np.arange(len(i))[:, None], np.arange(len(j))] = 1
        return shared.reshape(-1, len(i), len(j)), np.zeros((0, len(i), len(j)))

    def error_factor(self, cos_zenith, azimuth=np.nan, *, leading=False):
        return self._leading_factor if leading else np.diag(self._group_errors)

    @property
    def _group_errors(self):
        return 1 / np.sqrt(self._group_counts.ravel() + 1)

    @cached_property
    def _leading_factor(self):
        """Directions that hold the errors of the sums over the field at each energy, over each ring in bands of energy,
        and over each place.

        Errors of single groups are as large as those of these sums, in units of Poisson, but average out in them.
        """
        (n_energy, n_place), n_band = self._group_counts.shape, min(_LEADING_BANDS, len(self._group_counts))
        energy, place = (a.ravel() for a in np.indices((n_energy, n_place)))
        ring = np.zeros(n_place, dtype=int)
        ring[self._fov_groups] = np.arange(n_place) if self.is_radial else self._fov_rings
        in_ring = np.eye(n_band * (ring.max() + 1))[ring[place] * n_band + energy * n_band // n_energy]
        sums = np.hstack([np.eye(n_energy)[energy], in_ring, np.eye(n_place)[place]])
        return self._group_errors[:, None] * orth(sums / self._group_errors[:, None])

    def _number(self, energy):
        """Numbers of the bins between the energy edges that energies in TeV lie in."""
        scaled = np.exp(self.shift) * np.asarray(energy)
        return np.clip(np.searchsorted(self.energy_edges, scaled, side="right") - 1, 0, len(self.energy_edges) - 2)

    @cached_property
    def _fov_groups(self):
        """Number of the group of each bin of the field of view: rings, and in a grid parts of these."""
        if self.fov.is_radial:
            return np.arange(self.fov.size)
        turn = np.arctan2(self.fov.fov_lat, self.fov.fov_lon) / (2 * np.pi) % 1
        sector = (turn * _GROUP_SECTORS).astype(int)
        return np.unique(self._fov_rings * _GROUP_SECTORS + sector, return_inverse=True)[1]

    @property
    def _fov_rings(self):
        theta = offset(self.fov.fov_lon, self.fov.fov_lat)
        return np.minimum((theta / theta.max() * _GROUP_RINGS).astype(int), _GROUP_RINGS - 1)

    @cached_property
    def _group_counts(self):
        member = csr_array((np.ones(self.fov.size), (np.arange(self.fov.size), self._fov_groups)))
        counts = np.zeros((len(self.energy_edges) - 1, member.shape[1]))
        middle = np.sqrt(self.bin_edges[1:] * self.bin_edges[:-1])
        number = np.searchsorted(self.energy_edges, middle, side="right") - 1
        np.add.at(counts, np.clip(number, 0, len(counts) - 1), np.where(self.filled, 0, self.counts) @ member)
        return counts

    @cached_property
    def _profile_counts(self):
        """Counts between the energy edges, of which the first and the last may lie inside of a bin."""
        first, last = np.searchsorted(self.bin_edges, self.energy_edges[[0, -1]] * [1 + 1e-9, 1 - 1e-9])
        edges = np.concatenate([self.bin_edges[[first - 1]], self.energy_edges[1:-1], self.bin_edges[[last]]])
        return _merged(self.counts, self.bin_edges, edges)

    def to_arrays(self):
        own = {name: getattr(self, name) for name in ("bin_edges", "counts", "exposure", "energy_edges", "profile")}
        arrays = self.fov.to_arrays() | own
        arrays |= {} if self.run_scatter is None else {"run_scatter": self.run_scatter.to_array()}
        arrays |= {} if self.goodness_of_fit is None else self.goodness_of_fit.to_arrays()
        return arrays | self.spectrum.to_arrays()

    @classmethod
    def from_arrays(cls, arrays):
        names = ("bin_edges", "counts", "exposure", "energy_edges", "profile")
        spectrum = SmoothSpectrum.from_arrays(arrays)
        run_scatter = RunScatter.from_array(arrays["run_scatter"]) if "run_scatter" in arrays else None
        given = {name: arrays[name] for name in names} | {"goodness_of_fit": GoodnessOfFit.from_arrays(arrays)}
        return cls(fov=FovBins.from_arrays(arrays), spectrum=spectrum, run_scatter=run_scatter, **given)


@dataclass(frozen=True, eq=False)
class SummedRuns:
    """Runs that share one rate, up to a norm of each.

    Attributes
    ----------
    counts : `~numpy.ndarray`, shape (nbin, fov.size)
    exposure : `~numpy.ndarray`, shape (fov.size,)
        In s, times the norms.
    displacement : `~numpy.ndarray`, shape (fov.size, axis), or None
        See `fit_binned`.
    scatter : `RunScatter`
        How the runs differ.
    aligned : `AlignedRuns`, optional
        The runs one by one, where their energies are shifted.
    """

    counts: np.ndarray
    exposure: np.ndarray
    displacement: np.ndarray | None
    scatter: RunScatter
    aligned: AlignedRuns | None = None


def sum_runs(
    runs: Sequence, bins: CountsBins, effects: EffectSettings, scaling: ZenithScaling | None = None
) -> SummedRuns:
    """Sum of runs for the fit of one rate.

    Parameters
    ----------
    runs : list of `RunSlice`-like
        Each run as a whole: ``counts``, sparse, ``exposure`` and ``displacement`` in ``bins``.
    bins : `CountsBins`
    effects : `EffectSettings`
        With "norm" the exposure of each run counts by its norm, with "shift" also its energies are shifted.
    scaling : `ZenithScaling`, optional
        With which runs of different zenith angles are put together, as runs at their mean zenith angle.
    """
    exposure, norms, edges = np.array([run.exposure for run in runs]), np.ones(len(runs)), bins.energy_edges
    spectra = np.array([np.asarray(run.counts.sum(1)).ravel() for run in runs])
    shift, factor = np.zeros(len(runs)), np.ones(len(runs))
    if scaling is not None and scaling.energy:
        cos_zenith = np.array([run.cos_zenith for run in runs])
        reference = np.average(cos_zenith, weights=[run.ontime for run in runs])
        shift, factor = scaling.shift(cos_zenith, reference), scaling.factor(cos_zenith, reference)
        exposure = exposure * factor[:, None]
    scaled = np.log(edges) + shift[:, None]
    scatter = find_scatter(spectra, scaled)
    energies = float(edges[0]), float(edges[-1])
    if effects.kind == "norm":
        # of one range for all runs, or the rates that they share would not be comparable
        energies = given_or_chosen_energies(effects.norm_energy, [scatter], np.zeros(len(edges) - 1), edges)
    elif effects.kind == "shift":
        shift = shift - np.array([scatter.shift(*one) for one in zip(spectra, scaled, strict=True)])
    aligned, used = None, energies_between(edges, energies)
    if spectra.any() and np.any(shift != 0):
        fit_norms = None if effects.kind == "none" else fit_run_norms
        aligned, norms = align_runs(runs, exposure, shift, edges, fit_norms, energies)
    elif effects.kind != "none":
        norms = fit_run_norms(np.array([used @ run.counts for run in runs]), exposure)
    if effects.kind != "none":
        scatter = replace(scatter, norm_spread=norm_spread(norms, spectra[:, used].sum(1)))
    if spectra.any():
        shape = shape_of_runs([run.counts for run in runs], norms[:, None] * exposure, shift, edges, bins.fov)
        scatter = replace(scatter, shape=shape)
    displacement = mean_displacement(runs, norms * factor)
    return SummedRuns(add_up(runs), norms @ exposure, displacement, scatter, aligned)


def fit_run_norms(counts: np.ndarray, exposure: np.ndarray) -> np.ndarray:
    """Field-of-view rates that all runs share, up to a norm a run, by maximum likelihood.

    Parameters
    ----------
    counts : `~numpy.ndarray`
        Counts of each run in the field of view, summed over the energies of the norms, shape (run, bin).
    exposure : `~numpy.ndarray`
        Unexcluded ontime in s, shape (run, bin).

    Returns
    -------
    norm : `~numpy.ndarray`
        Norm of each run, of geometric mean 1, shape (run,); 1 for a run without counts.
    """
    norm = np.ones(len(counts))
    in_run, in_bin = counts.sum(1), counts.sum(0)
    used = in_run > 0
    for _ in range(200):
        seen = norm @ exposure
        rate = np.divide(in_bin, seen, out=np.zeros_like(seen), where=seen > 0)
        new = np.where(used, in_run / np.maximum(exposure @ rate, 1e-300), 1.0)
        new[used] /= np.exp(np.log(new[used]).mean())
        change = np.abs(new / norm - 1).max()
        norm = new
        if change < _NORMS_CONVERGED:
            return norm
    raise FitError(
        f"run norms: changed by {change:.1e} in the last of 200 rounds; "
        "are there runs that share no pixel with the others?"
    )


def fit_binned(
    counts: np.ndarray,
    exposure: np.ndarray,
    bin_edges: np.ndarray,
    fov: FovBins,
    *,
    profile_edges: np.ndarray | None = None,
    displacement: np.ndarray | None = None,
    aligned: AlignedRuns | None = None,
) -> BinnedModel:
    """Binned acceptance from the summed counts of all runs.

    Parameters
    ----------
    counts : `~numpy.ndarray`
        Unexcluded counts, shape (nbin, fov.size).
    exposure : `~numpy.ndarray`
        Unexcluded ontime (times the norms of the runs) in s, shape (fov.size,).
    bin_edges : `~numpy.ndarray`
        Energy edges in TeV, shape (nbin + 1,).
    fov : `FovBins`
        Bins of the field of view.
    profile_edges : `~numpy.ndarray`, optional
        Those of the energy edges between which the bins share one profile over the field of view; by default each has
        its own. The spectrum follows all bins, and its integrals between these edges are their counts.
    displacement : `~numpy.ndarray`, shape (fov.size, axis), optional
        How far the mean position of what was seen of each bin is from that of the bin, in deg.
    aligned : `AlignedRuns`, optional
        The runs, where their energies are shifted; the model is that of the mean run.
    """
    if not counts.sum() > 0:
        raise FitError("fit: there are no counts outside of the exclusion in the energy and offset range of the model")
    with_counts = np.flatnonzero(counts.sum(1))
    used = slice(with_counts[0], with_counts[-1] + 1)
    edges = bin_edges[used.start : used.stop + 1]
    spectrum, mixed = fit_spectra(counts, bin_edges, used, aligned)
    if profile_edges is not None:
        inside = (profile_edges > edges[0]) & (profile_edges < edges[-1])
        edges = np.concatenate([edges[:1], profile_edges[inside], edges[-1:]])
    centers, volume = np.sqrt(edges[1:] * edges[:-1]), exposure * fov.solid_angle
    shares = spectrum.bin_weights(edges, centers)

    def make(counts_of_mean):
        """Model with the profile over the field of counts at the energies of the mean run."""
        intensity = _expected(_merged(counts_of_mean, bin_edges, edges), volume, fov, np.log(centers))
        profile = _profile(intensity, volume, fov, shares / shares.sum(1, keepdims=True), displacement)
        return BinnedModel(bin_edges, fov, counts, exposure, edges, spectrum, profile)

    if aligned is None:
        model = make(counts)
    else:
        whole = spectrum.all_of_it()
        model = make(aligned.moved(lambda e: whole.bin_weights(e, np.ones(1)), bin_edges))
        for _ in range(_ALIGNING_ROUNDS):
            # off the axis the threshold is another one, so the counts of a bin are divided otherwise
            at_centers = partial(replace(model, spectrum=whole).integral_grid, fov_lon=fov.fov_lon, fov_lat=fov.fov_lat)
            model = make(aligned.moved(at_centers, bin_edges))
    if profile_edges is not None:
        kept = kept_integrals(_merged(counts, bin_edges, edges).sum(1), mixed.bin_weights(edges, centers))
        model = replace(model, profile=model.profile * kept[:, None])
    # the counts of the fit are those of runs with all their shifts
    judged = replace(model, spectrum=mixed)
    goodness = goodness_of_model(judged, counts, exposure, bin_edges, fov, displacement=displacement)
    return replace(model, goodness_of_fit=goodness)


def _merged(counts, bin_edges, edges):
    """Counts, shape (nbin, fov.size), summed between edges that are some of the edges of the bins."""
    first = np.searchsorted(bin_edges, edges)
    return np.add.reduceat(counts[: first[-1]], first[:-1], axis=0)


def _expected(counts, volume, fov, log_energy):
    """Expected counts over exposure and solid angle, > 0 everywhere: the counts, shrunk where they are few.

    A ring's mean is drawn from a gamma distribution around the product of spectrum and profile, and a bin's mean from
    one around the rings at the same energy, times the pattern over the field that all energies share. Profile and
    pattern drift smoothly with energy, see `fit_drift`. The relative spread of each is estimated from the counts, so
    that a bin with many counts keeps them, and one with few takes what its peers have.
    """
    seen = volume > 0
    theta = offset(fov.fov_lon, fov.fov_lat)
    ring = np.arange(fov.size) if fov.is_radial else (theta / np.diff(fov.edges[0]).min()).astype(int)
    member = csr_array((np.ones(fov.size), (np.arange(fov.size), ring)))
    ring_counts, ring_volume = counts @ member, volume @ member
    profile = _fill_1d((ring_counts.sum(0) + 1e-3) / np.where(ring_volume > 0, ring_volume, np.nan))
    total = np.maximum(counts.sum(1), 1)  # of an empty energy bin only the profile is used
    prior = np.outer(total / (ring_volume @ profile), profile)
    members = np.maximum(np.bincount(ring), 1)
    at = np.bincount(ring, theta) / members / theta.max()
    prior = _drifted(prior, ring_counts, ring_volume, np.stack([at, at**2, at**3], axis=1), log_energy, _RING_STEP)
    intensity = _shrink(ring_counts, ring_volume, prior)
    intensity = np.array([_fill_1d(row) for row in np.where(ring_volume > 0, intensity, np.nan)])
    if not fov.is_radial:
        rings = _between_rings(intensity, theta, ring)
        prior = rings * ((intensity @ ring_volume) / (rings @ volume))[:, None]
        every_energy = prior.sum(0, keepdims=True)
        prior *= _shrink(counts.sum(0, keepdims=True), volume, every_energy) / every_energy
        x, y = fov.fov_lon / theta.max(), fov.fov_lat / theta.max()
        # a tilt, one that grows to the edge of the field, and an ellipse
        sides = np.stack([x, y, x * (x**2 + y**2), y * (x**2 + y**2), x * y, x**2 - y**2], axis=1)
        prior = _drifted(prior, counts, volume, sides, log_energy, _SIDE_STEP)
        intensity = _shrink(counts, volume, prior)
        if not seen.all():
            # relative to the rings, whose profile a line across a hole would cut short
            around = _from_neighbours(np.log(intensity[:, seen] / rings[:, seen]), fov, seen)
            intensity[:, ~seen] = rings[:, ~seen] * around
    return intensity


def _drifted(prior, counts, volume, functions, log_energy, node_step):
    """The prior with a profile that drifts with energy, its totals kept."""
    mu = prior * volume
    factor = np.exp(fit_drift(counts, mu, orthonormal_modes(functions, mu.sum(0)), log_energy, node_step))
    return prior * factor * (mu.sum(1) / (mu * factor).sum(1))[:, None]


def _between_rings(values, theta, ring):
    """Values of rings, shape (n, ring), at offsets: within a ring the rate falls steeply
    towards the edge of the camera."""
    members = np.bincount(ring)
    known = members > 0
    at = np.bincount(ring, theta)[known] / members[known]
    return np.exp([np.interp(theta, at, row) for row in np.log(values[:, known])])


def _shrink(counts, volume, prior):
    """Posterior mean of gamma-distributed means around a prior.

    Their relative variance at each energy is found by moments from the energy bin and its two neighbours, weighted by
    the inverse square of the variance of the counts that it implies.
    """
    mu = prior * volume
    excess, size = (counts - mu) ** 2 - mu, mu**2
    variance = np.zeros((len(mu), 1))
    for _ in range(_SPREAD_ROUNDS):
        weight = (1 + variance * mu) ** -2
        variance = uniform_filter1d((weight * excess).sum(1), 3) / uniform_filter1d((weight * size).sum(1), 3)
        variance = np.clip(variance, 1e-6, 1)[:, None]
    return prior * (counts * variance + 1) / (mu * variance + 1)


def _fill_1d(values):
    i, known = np.arange(len(values)), np.isfinite(values)
    return np.exp(np.interp(i, i[known], np.log(values[known])))


def _from_neighbours(log_known, fov, seen):
    """Values of the bins of a grid that were never seen, interpolated between the others,
    and the nearest beyond them."""
    points = np.stack([fov.fov_lon, fov.fov_lat], axis=1)
    values = griddata(points[seen], log_known.T, points[~seen], method="nearest")
    if seen.sum() > 3:
        linear = griddata(points[seen], log_known.T, points[~seen], method="linear")
        values = np.where(np.isfinite(linear), linear, values)
    return np.exp(values.T)


def _profile(intensity, volume, fov, shares, displacement):
    """Values at the bin centres whose interpolation has the mean of the intensity over what was seen of each bin, per
    count.

    ``shares``, shape (nbin, nbin), are the parts that each bin's spectrum takes from the nodes in energy.
    """
    lon, lat = fov.subpoints(_SUBPOINTS)
    weights = np.full(lon.shape, 1 / lon.shape[1])
    if displacement is not None:
        weights = moved_weights(weights, fov.subpoint_positions(_SUBPOINTS), displacement)
    average = _block_sum(_fov_weights(fov, lon.ravel(), lat.ravel()), weights)
    target = intensity / (intensity @ volume)[:, None]
    nodes = target.copy()
    for _ in range(_ITERATIONS):
        nodes *= target / (average @ (shares @ nodes).T).T
        nodes /= ((average @ nodes.T).T @ volume)[:, None]
    return nodes


def _block_sum(rows, weights):
    """Weighted sums over consecutive blocks of the rows of a sparse matrix;
    weights of shape (block, row of the block)."""
    block = csr_array(
        (weights.ravel(), (np.repeat(np.arange(len(weights)), weights.shape[1]), np.arange(weights.size)))
    )
    return block @ rows


def _fov_weights(fov, fov_lon, fov_lat):
    """Linear interpolation from the bin centres to positions, flat beyond them."""
    return fov.weights_at(fov_lon, fov_lat, [centers[[0, -1]] for centers in fov.centers])
