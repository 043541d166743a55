"""What every acceptance model offers, on plain arrays.

Energies are in TeV, field-of-view coordinates in deg, rates in s-1 MeV-1 sr-1 per ontime.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from scipy.sparse import csr_array

from gammapy_accmaker.camera.bins import FINE, CountsBins, FovBins, moved_weights
from gammapy_accmaker.models.alignment import fit_shift
from gammapy_accmaker.models.fit_counts import add_up
from gammapy_accmaker.models.goodness import POOR_FIT, GoodnessOfFit, group_scores
from gammapy_accmaker.models.norm_energy import (
    NO_ENERGIES,
    SD_NORM,
    SD_SHIFT,
    RunScatter,
    energies_between,
    find_scatter,
    given_or_chosen_energies,
    late_flags,
)
from gammapy_accmaker.models.run_shape import RunShape
from gammapy_accmaker.models.source_terms import add_patches, norm_beside
from gammapy_accmaker.utils.model_file import numbered
from gammapy_accmaker.utils.run_key import RunKey

_SHIFT_STEP = 0.02  # in log energy, of a derivative
NOT_CONVERGED = "not converged"  # flag of a run whose effects are not at their maximum


@dataclass(frozen=True)
class EffectSettings:
    """What is fitted to each run.

    Attributes
    ----------
    kind : {"none", "norm", "tilt", "shift"}
    gradient : bool
        Whether a shift comes with gradients over the field of view.
    min_counts : int
        A run is adapted to by the energies in which it has so many counts.
    norm_energy : tuple of float, optional
        In TeV, to which a norm or a tilt is fitted; chosen by default.
    """

    kind: str = "none"
    gradient: bool = True
    min_counts: int = 0
    norm_energy: tuple[float, float] | None = None


@dataclass(frozen=True, eq=False)
class AdaptedRun:
    """A model with the effects of one run, and what they are.

    Attributes
    ----------
    model : `RateModel`
        Of the run.
    expected : float
        Counts in the bins of the fit, outside of the exclusion, those of known sources included.
    norm, norm_error : float
    deviance : float
        Largest excess of the deviance over the field in any group of energies, in standard deviations.
    flags : tuple of str
        Why to look at the run.
    norm_energy : tuple of float
        In TeV, to which the norm was fitted; NaN where it was not.
    shift, shift_error : float
        In ln(energy).
    """

    model: RateModel
    expected: float
    norm: float
    norm_error: float
    deviance: float
    flags: tuple[str, ...]
    norm_energy: tuple[float, float] = NO_ENERGIES
    shift: float = 0.0
    shift_error: float = 0.0


def describe_cos_zenith(zenith_range: tuple[float, float]) -> str:
    """A range of cos zenith in words."""
    low, high = np.degrees(np.arccos(np.clip(zenith_range[::-1], -1, 1)))
    return f"zenith angle {low:.1f} to {high:.1f} deg" if high - low >= 0.05 else f"zenith angle {high:.1f} deg"


MODEL_KINDS: dict[str, type[RateModel]] = {}  # every class that has a serial form, by its `kind`


class RateModel(ABC):
    """Fitted acceptance: the background rate over energy and field of view.

    Attributes
    ----------
    kind : str
        Name of the class in a file; empty where it is not stored.
    energy_edges : `~numpy.ndarray`
        Edges in TeV within which the model was trained; the rate outside is 0.
    offset_max : float
        Offset in deg beyond which the rate is 0.
    half_width : float
        Offset in deg that a radial model covers, half the side of the square that another one covers.
    is_radial : bool
        Whether the rate depends on the offset alone.
    zenith_range : tuple of float, or None
        Range of cos zenith that the fit has seen; None where the model does not depend on it.
    zenith_edges, azimuth_edges : `~numpy.ndarray`
        Cos zenith and azimuth in deg at which the rate jumps; empty where it does not.
    run_scatter : `RunScatter`, optional
        How the runs of the fit differ; None where it is not known, or depends on the zenith angle.
    differs_by_run : bool
        Whether `for_run` gives other models to other runs.
    """

    if TYPE_CHECKING:  # for those who read them; a kind stores them, or computes them

        @property
        def energy_edges(self) -> np.ndarray: ...

        @property
        def offset_max(self) -> float: ...

        @property
        def half_width(self) -> float: ...

        @property
        def is_radial(self) -> bool: ...

        @property
        def zenith_range(self) -> tuple[float, float] | None: ...

    kind: str = ""
    zenith_edges: np.ndarray = np.zeros(0)
    azimuth_edges: np.ndarray = np.zeros(0)
    run_scatter: RunScatter | None = None
    differs_by_run: bool = False

    def __init_subclass__(cls):
        if cls.kind:
            MODEL_KINDS[cls.kind] = cls

    @property
    def norm_spread(self) -> float:
        """Relative error of the norm, for the model of one run; NaN for others."""
        return np.nan

    @property
    def tilt_spread(self) -> float:
        """Error of the spectral index, for the model of one run; NaN where it is not fitted."""
        return np.nan

    @property
    def covariate_names(self) -> tuple[str, ...]:
        """Keywords of the event header that the rate of a run depends on."""
        return ()

    def at_azimuth(self, azimuth: float) -> RateModel:
        """The model of runs that point to an azimuth in deg."""
        return self

    @property
    def middle_cos_zenith(self) -> float:
        """Middle of the trained range, for what is shown of no certain run;
        NaN where the model does not depend on it."""
        return np.nan if self.zenith_range is None else 0.5 * sum(self.zenith_range)

    @abstractmethod
    def rate_grid(self, energy: np.ndarray, fov_lon: np.ndarray, fov_lat: np.ndarray, cos_zenith: float) -> np.ndarray:
        """Rate at each of n energies and m positions, shape (n, m);
        at the middle of the trained range where cos zenith is NaN."""

    @abstractmethod
    def integral_grid(
        self, energy_edges: np.ndarray, fov_lon: np.ndarray, fov_lat: np.ndarray, cos_zenith: float
    ) -> np.ndarray:
        """Rate integrated over each of n energy bins, in s-1 sr-1, shape (n, m); what is not covered adds nothing."""

    def expected_counts(self, slices, energy_edges: np.ndarray, fov: FovBins) -> np.ndarray:
        """Counts that the model expects of a reduced run, outside of its exclusion: the one forward model.

        The rate of each slice is taken at its mean zenith angle and azimuth, integrated over the energy bins, averaged
        over the part of each bin of the field of view that was seen, and multiplied by its exposure. A map of the run
        is the same integral over its own pixels (`~gammapy_accmaker.products.background.expected_counts`).

        Parameters
        ----------
        slices : list of `RunSlice`-like
            Slices of the run, with ``exposure`` in s in the bins of ``fov``, shape (fov.size,), ``displacement`` (see
            `~gammapy_accmaker.data.reduced_run.RunSlice`), ``cos_zenith``, and ``azimuth`` in deg.
        energy_edges : `~numpy.ndarray`, shape (n + 1,)
            In TeV.
        fov : `FovBins`
            In the alignment of the model.

        Returns
        -------
        counts : `~numpy.ndarray`, shape (n, fov.size)
            0 without exposure, and where the model does not reach.
        """
        counts = np.zeros((len(energy_edges) - 1, fov.size))
        across = max(int(np.ceil(fov.step / FINE - 1e-6)), 1)
        lon, lat = fov.subpoints(across)
        if fov.is_radial and self.is_radial:  # of the points around each of some offsets one does
            lon, lat = (a.reshape(fov.size, across, -1)[:, :, 0] for a in (lon, lat))
        for part in slices:
            seen = part.exposure > 0
            if not seen.any():
                continue
            at = lon[seen].ravel(), lat[seen].ravel()
            rate = self.at_azimuth(part.azimuth).integral_grid(energy_edges, *at, part.cos_zenith)
            rate = rate.reshape(len(counts), seen.sum(), lon.shape[1])
            if part.displacement is None:
                mean = rate.mean(2)
            else:
                even, positions = np.full(lon.shape, 1 / lon.shape[1]), fov.positions(lon, lat)
                mean = np.einsum("ebp,bp->eb", rate, moved_weights(even, positions, part.displacement)[seen])
            counts[:, seen] += mean * (part.exposure * fov.solid_angle)[seen]
        return counts

    def expected_spectrum(self, slices, energy_edges: np.ndarray, fov: FovBins) -> np.ndarray:
        """`expected_counts` summed over the field of view, shape (n,), from the rate in the middle of its bins: fast,
        and good for the shape of the spectrum."""
        counts = np.zeros(len(energy_edges) - 1)
        for part in slices:
            seen = part.exposure > 0
            at = fov.fov_lon[seen], fov.fov_lat[seen]
            rate = self.at_azimuth(part.azimuth).integral_grid(energy_edges, *at, part.cos_zenith)
            counts += rate @ (part.exposure * fov.solid_angle)[seen]
        return counts

    @abstractmethod
    def relative_error_grid(
        self, energy: np.ndarray, fov_lon: np.ndarray, fov_lat: np.ndarray, cos_zenith: float
    ) -> np.ndarray:
        """One standard deviation of the logarithm of the rate, from the counts of the fit, shape (n, m)."""

    def fit_error_grid(
        self, energy: np.ndarray, fov_lon: np.ndarray, fov_lat: np.ndarray, cos_zenith: float
    ) -> np.ndarray:
        """The part of `relative_error_grid` that more runs would make smaller: that of the fit, without the spread from
        run to run, shape (n, m)."""
        return self.relative_error_grid(energy, fov_lon, fov_lat, cos_zenith)

    def error_rows(
        self, energy: np.ndarray, fov_lon: np.ndarray, fov_lat: np.ndarray, cos_zenith: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Derivatives of the log of the rate by what is uncertain.

        Returns
        -------
        shared : `~numpy.ndarray`, shape (k, n, m)
            By the quantities that runs share; their covariance is F F' with F of `error_factor`.
        run : `~numpy.ndarray`, shape (j, n, m)
            By one standard deviation along each of some independent directions of this run alone.
        """
        error = self.relative_error_grid(energy, fov_lon, fov_lat, cos_zenith)
        return error[None], np.zeros((0, *error.shape))

    def error_factor(self, cos_zenith: float, azimuth: float = np.nan, *, leading: bool = False) -> np.ndarray:
        """Matrix F from independent directions of unit variance, which are the same for all runs, to the shared
        quantities of `error_rows`, shape (k, n); ``leading``: only the directions that change the counts most."""
        return np.ones((1, 1))

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Serial form, exact, made of arrays alone, of a model that has one."""
        raise TypeError(f"{type(self).__name__}: it has no serial form")

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> RateModel:
        """The inverse of `to_arrays`."""
        raise TypeError(f"{cls.__name__}: it has no serial form")

    @property
    def goodness(self) -> tuple[GoodnessOfFit, ...]:
        """Goodness of each fit that the model is made of, where it is known."""
        return ()

    def describe_zenith(self) -> str:
        """How the rate follows the zenith angle, in words."""
        return "not followed" if self.zenith_range is None else f"followed, {describe_cos_zenith(self.zenith_range)}"

    @property
    def convergence(self) -> str:
        """How the fit ended, in words; empty where there was nothing to iterate."""
        return self.not_converged

    @property
    def not_converged(self) -> str:
        """What of the fit did not converge, and what to do; empty where all of it did."""
        return ""

    def goodness_at(self, cos_zenith: float) -> tuple[GoodnessOfFit, ...]:
        """Goodness of the fits that the rate at a zenith angle comes from."""
        return self.goodness

    def run_scatter_at(self, cos_zenith: float) -> list[RunScatter]:
        """How the runs differ that the rate at a zenith angle comes from."""
        return [] if self.run_scatter is None else [self.run_scatter]

    def number_for_run(self, key: RunKey) -> int:
        """Number of the model that `for_run` gives; 0 where there is one for all."""
        return 0

    def run_shape_at(self, cos_zenith: float) -> RunShape | None:
        """How runs differ there in more than what is fitted to each of them, where it is known."""
        shapes = [scatter.shape for scatter in self.run_scatter_at(cos_zenith) if scatter.shape is not None]
        return shapes[0] if shapes else None

    def for_run(self, key: RunKey) -> RateModel:
        """The model of a run that is recognised by its key, for models that differ by run."""
        return self

    def depends_on_run(self, effects: EffectSettings) -> bool:
        """Whether a run has to be read for the model to be adapted to it."""
        return effects.kind != "none"

    def adapt(self, run, bins: CountsBins, effects: EffectSettings, place: int | None = None) -> AdaptedRun:
        """The model with the effects of a run, from the run's own counts.

        Parameters
        ----------
        run : `ReducedRun`-like
            Its ``slices``, see `expected_counts`, their ``counts``, shape (energy, fov.size), sparse, and ``signal``,
            what sources add to them (`CountsPatch` or None).
        bins : `CountsBins`
            Of the run.
        effects : `EffectSettings`
        place : int, optional
            Of the run among those of the fit, for one of them: what the fit has found of it need not be found again.
        """
        counted, slices = add_up(run.slices), run.slices
        signal = add_patches([part.signal for part in slices])
        sources = None if signal is None else signal.toarray()
        model, shift, shift_error, slope = self.fit_threshold(run, bins, effects, sources)
        in_bins = model.expected_counts(slices, bins.energy_edges, bins.fov)
        norm, error, energies, flags, used = self.fit_norm(run, bins, effects, in_bins, sources)
        judged = slice(None)
        if used.any():  # below the energies of the norm runs have thresholds of their own
            judged = slice(np.flatnonzero(used)[0], np.flatnonzero(used)[-1] + 1)
        edges = bins.energy_edges[judged.start : None if judged.stop is None else judged.stop + 1]
        # what has no exposure was not seen
        seen, expected = in_bins > 0, norm * in_bins
        if sources is not None:
            expected += np.where(seen, sources, 0)
        score = group_scores(np.where(seen, counted, 0)[judged], expected[judged], edges, bins.fov)
        if score.max() > POOR_FIT:
            flags.append("poor fit")
        if any(fit.is_poor for p in slices for fit in self.at_azimuth(p.azimuth).goodness_at(p.cos_zenith)):
            flags.append("poor fit of the model")
        shape = self.at_azimuth(slices[0].azimuth).run_shape_at(slices[0].cos_zenith)
        in_norm = _shape_in_norm(shape, bins, in_bins, used)
        return AdaptedRun(
            ScaledModel(model, norm, error, shift_error, slope, shape, in_norm),
            expected.sum(),
            norm,
            float(np.hypot(error, norm * slope * shift_error)),
            score.max(),
            tuple(flags),
            energies,
            shift,
            shift_error,
        )

    def fit_threshold(
        self, run, bins: CountsBins, effects: EffectSettings, sources: np.ndarray | None
    ) -> tuple[RateModel, float, float, float]:
        """The model with the shift of a run in log energy, where one is to be fitted and energies can be scaled.

        Parameters
        ----------
        run, bins, effects
            As for `adapt`.
        sources : `~numpy.ndarray`, shape (energy, fov.size), or None
            Counts of known sources.

        Returns
        -------
        model : `RateModel`
        shift, error, slope : float
            See `ScaledModel`; 0 without a shift.
        """
        return self, 0.0, 0.0, 0.0

    def _scatter_of(self, run):
        """How the runs differ that the rate of a run comes from."""
        return [s for p in run.slices for s in self.at_azimuth(p.azimuth).run_scatter_at(p.cos_zenith)]

    def fit_norm(
        self, run, bins: CountsBins, effects: EffectSettings, in_bins: np.ndarray, sources: np.ndarray | None
    ) -> tuple[float, float, tuple[float, float], list[str], np.ndarray]:
        """Norm of a run beside known counts of sources, where one is to be fitted.

        Parameters
        ----------
        run, bins, effects
            As for `adapt`.
        in_bins, sources : `~numpy.ndarray`, shape (energy, fov.size)
            Counts that the model expects at norm 1, and those of sources, or None.

        Returns
        -------
        norm, error : float
        energies : tuple of float
            In TeV, that a norm alone was fitted to; NaN without one.
        flags : list of str
        used : `~numpy.ndarray`, bool, shape (energy,)
            Energy bins that it was fitted to.
        """
        if effects.kind not in ("norm", "shift"):
            return 1.0, 0.0, NO_ENERGIES, [], np.zeros(len(in_bins), dtype=bool)
        counted, expected, energies = add_up(run.slices), in_bins.sum(1), NO_ENERGIES
        counts, flags, scatter = counted.sum(1), [], self._scatter_of(run)
        used = counts >= effects.min_counts
        if effects.kind == "norm":
            # a model that was made elsewhere knows of no runs, but it has a threshold as well
            scatter = scatter or [find_scatter(expected[None], np.log(bins.energy_edges))]
            energies = given_or_chosen_energies(effects.norm_energy, scatter, counts, bins.energy_edges)
            if effects.norm_energy is None:
                flags += late_flags(energies, scatter, bins.energy_edges)
            used &= energies_between(bins.energy_edges, energies)
        total = expected[used].sum()
        if not (total > 0 and counts[used].any()):
            error = max((s.norm_spread for s in scatter), default=SD_NORM)
            return 1.0, error, energies, [*flags, "no counts for the norm"], used
        norm, error = counts[used].sum() / total, np.sqrt(counts[used].sum()) / total
        if sources is not None:
            norm, error = norm_beside(counted[used], in_bins[used], sources[used])
        return norm, error, energies, flags, used

    def without(
        self, adapted: AdaptedRun, run, bins: CountsBins, effects: EffectSettings, held, *, of_fit: bool
    ) -> tuple[RateModel, np.ndarray | None]:
        """The model of a run with the errors that it has without some of the run's counts.

        Parameters
        ----------
        adapted : `AdaptedRun`
            From `adapt`.
        run, bins, effects
            As for `adapt`.
        held : sequence of tuple of `~numpy.ndarray`, shapes (fov.size,) and (n_energy,)
            Exposure and energies, from 0 to 1, of the counts of each slice that are left out.
        of_fit : bool
            Whether the model was fitted to the run.

        Returns
        -------
        model : `RateModel`
            Its rate is that with all counts.
        removed : `~numpy.ndarray`, shape (n, n), or None
            What these counts tell of the leading directions of `error_factor`, by whose errors, one standard deviation
            with all counts, they are counted; None where the model was fitted without the run.
        """
        of_run = adapted.model
        used, fits_norm = np.ones(len(bins.energy_edges) - 1, dtype=bool), effects.kind in ("norm", "shift")
        if effects.kind == "norm":
            used = energies_between(bins.energy_edges, adapted.norm_energy)
        model = of_run.model if isinstance(of_run, ScaledModel) else self
        counts, gone = [], []
        for part, (exposure, energies) in zip(run.slices, held, strict=True):
            everything, seen = (
                adapted.norm * model.expected_counts([replace(part, exposure=of)], bins.energy_edges, bins.fov)
                for of in (part.exposure, np.minimum(exposure, part.exposure))
            )
            counts.append(everything)
            gone.append(seen * energies[:, None])
        kept = [np.maximum(a - b, 0) for a, b in zip(counts, gone, strict=True)]
        scatter = self._scatter_of(run)
        spread = max((s.norm_spread for s in scatter), default=SD_NORM) if fits_norm else 0.0
        removed = None
        if of_fit:
            told, of_rest = (model._told_of_rate(run.slices, bins, mu, spread, used) for mu in (counts, kept))
            removed = told - of_rest
        if not fits_norm:
            return of_run, removed
        total, left = (sum(mu[used].sum() for mu in part) for part in (counts, kept))
        error, shift_error = adapted.norm / np.sqrt(1 / spread**2 + left), 0.0
        if adapted.shift_error > 0:
            # what the counts tell of the shift goes with their number
            prior = 1 / max((s.spread for s in scatter), default=SD_SHIFT) ** 2
            told = max(1 / adapted.shift_error**2 - prior, 0.0) * left / max(total, 1e-300)
            shift_error = 1 / np.sqrt(prior + told)
        own = (of_run.slope, of_run.shape, of_run.shape_in_norm) if isinstance(of_run, ScaledModel) else ()
        return ScaledModel(model, adapted.norm, error, shift_error, *own), removed

    def _told_of_rate(self, slices, bins: CountsBins, counts, norm_spread: float, used: np.ndarray) -> np.ndarray:
        """What counts that are expected, shape (energy, fov.size) of each slice, tell of the leading directions of
        `error_factor` beside a norm that is fitted to some energies of them."""
        energy = np.sqrt(bins.energy_edges[1:] * bins.energy_edges[:-1])
        information, cross, of_norm = np.zeros(()), np.zeros(()), 0.0
        for part, mu in zip(slices, counts, strict=True):
            here = self.at_azimuth(part.azimuth)
            factor = self.error_factor(part.cos_zenith, part.azimuth, leading=True)
            for k in np.flatnonzero(mu.sum(1)):
                seen = np.flatnonzero(mu[k])
                rows, _ = here.error_rows(energy[[k]], bins.fov.fov_lon[seen], bins.fov.fov_lat[seen], part.cos_zenith)
                along = (csr_array(rows[:, 0]).T @ factor).T  # of groups of bins, most are 0
                weighted = along * mu[k, seen]
                information = information + weighted @ along.T
                cross, of_norm = cross + used[k] * weighted.sum(1), of_norm + used[k] * mu[k].sum()
        if norm_spread > 0 and of_norm > 0:
            information = information - np.outer(cross, cross) / (of_norm + 1 / norm_spread**2)
        return information

    def rate(self, energy, fov_lon, fov_lat, cos_zenith=np.nan, azimuth=None) -> np.ndarray:
        """Rate at positions that broadcast against each other; without an azimuth, or where it is NaN, the mean over
        all."""
        if azimuth is not None and len(self.azimuth_edges):
            arrays = np.broadcast_arrays(energy, fov_lon, fov_lat, cos_zenith, azimuth)
            *given, azimuth = (np.ravel(a).astype(float) for a in arrays)
            out = np.empty(azimuth.shape)
            sectors, number = np.unique(azimuth, return_inverse=True)  # NaN is one of them where it is not known
            for k, a in enumerate(sectors):
                here = number == k
                model = self if np.isnan(a) else self.at_azimuth(float(a))
                out[here] = model.rate(*(x[here] for x in given))
            return out.reshape(arrays[0].shape)
        arrays = np.broadcast_arrays(energy, fov_lon, fov_lat, cos_zenith)
        energy, lon, lat, cos_zenith = (np.ravel(a).astype(float) for a in arrays)
        out = np.empty(energy.shape)
        angles, angle = np.unique(cos_zenith, return_inverse=True)  # NaN is one of them where it is not known
        for i, z in enumerate(angles):
            here = np.flatnonzero(angle == i)
            energies, row = np.unique(energy[here], return_inverse=True)
            places, column = np.unique(np.stack([lon[here], lat[here]]), axis=1, return_inverse=True)
            if len(energies) * places.shape[1] <= 4 * len(here):
                out[here] = self.rate_grid(energies, places[0], places[1], float(z))[row, column.ravel()]
                continue
            for k in range(len(energies)):  # most pairs of an energy and a place were not asked for
                some = here[row == k]
                out[some] = self.rate_grid(energies[k : k + 1], lon[some], lat[some], float(z))[0]
        return out.reshape(arrays[0].shape)


def _shape_in_norm(shape, bins, in_bins, used):
    """What each coefficient of the shape of a run adds to the log of its norm; None where none is fitted."""
    total = in_bins[used].sum()
    if shape is None or not total > 0:
        return None
    energy = np.sqrt(bins.energy_edges[1:] * bins.energy_edges[:-1])
    by_mode = in_bins @ shape.modes(bins.fov.fov_lon, bins.fov.fov_lat)
    columns = shape.columns(np.log(energy)) * by_mode[:, shape.mode_of_column]
    return columns[used].sum(0) / total


class ScalableModel(RateModel):
    """A model whose energies can be scaled, so that it is adapted to a run by a shift too."""

    @abstractmethod
    def shifted(self, shift: float, reach: tuple[float, float]) -> ScalableModel:
        """The model of runs whose energies are scaled: it has at E the rate of this one, per log energy, at
        E exp(shift), within a range in TeV."""

    def fit_threshold(self, run, bins, effects, sources):
        if effects.kind != "shift":
            return super().fit_threshold(run, bins, effects, sources)
        counts = add_up(run.slices).sum(1)
        used = counts >= effects.min_counts
        if sources is not None:
            counts = np.maximum(counts - sources.sum(1), 0)
        reach = float(self.energy_edges[0]), float(self.energy_edges[-1])
        shift, error, slope = fit_shift(
            counts[used],
            lambda s: self.shifted(s, reach).expected_spectrum(run.slices, bins.energy_edges, bins.fov)[used],
            max((scatter.spread for scatter in self._scatter_of(run)), default=SD_SHIFT),
        )
        return self.shifted(shift, reach), shift, error, slope


class ModelOnBins(ScalableModel):
    """A model that is read in bins of the field of view, and for one bin beyond them, as gammapy continues a
    Background2D: datasets are cut out as squares that the field turns in, and the rim would be lost without."""

    fov: FovBins

    @property
    def is_radial(self) -> bool:
        return self.fov.is_radial

    @property
    def half_width(self) -> float:
        return float(self.fov.continued[0, 1] if self.is_radial else np.abs(self.fov.continued).max())

    @property
    def offset_max(self) -> float:
        corner = np.radians(self.half_width)
        return self.half_width if self.is_radial else float(np.degrees(np.arccos(np.cos(corner) ** 2)))


class ScaledModel(RateModel):
    """A model with the norm, and the shift in energy, of one run.

    Attributes
    ----------
    model : `RateModel`
        With the shift.
    norm, norm_error : float
        The error is that for a given shift.
    shift_error : float
        Standard deviation of the shift in log energy.
    slope : float
        By which the log of the expected counts of the run, without the norm, changes with the shift: the norm makes
        up for it.
    """

    energy_edges: np.ndarray
    offset_max: float
    half_width: float
    is_radial: bool
    zenith_range: tuple[float, float] | None

    def __init__(
        self,
        model: RateModel,
        norm: float,
        norm_error: float = 0.0,
        shift_error: float = 0.0,
        slope: float = 0.0,
        shape: RunShape | None = None,
        shape_in_norm: np.ndarray | None = None,
    ):
        self.model, self.norm, self.norm_error = model, norm, norm_error
        self.shift_error, self.slope = shift_error, slope
        # what is not fitted to the run, and what each of its coefficients adds to the log of the norm that is
        self.shape, self.shape_in_norm = shape, shape_in_norm
        self.energy_edges, self.offset_max = model.energy_edges, model.offset_max
        self.half_width, self.is_radial, self.zenith_range = model.half_width, model.is_radial, model.zenith_range
        self.zenith_edges, self.azimuth_edges = model.zenith_edges, model.azimuth_edges

    def at_azimuth(self, azimuth):
        model, own = self.model.at_azimuth(azimuth), (self.shift_error, self.slope, self.shape, self.shape_in_norm)
        return ScaledModel(model, self.norm, self.norm_error, *own)

    @property
    def norm_spread(self) -> float:
        return self.norm_error / self.norm

    def rate_grid(self, energy, fov_lon, fov_lat, cos_zenith=np.nan):
        return self.norm * self.model.rate_grid(energy, fov_lon, fov_lat, cos_zenith)

    def integral_grid(self, energy_edges, fov_lon, fov_lat, cos_zenith=np.nan):
        return self.norm * self.model.integral_grid(energy_edges, fov_lon, fov_lat, cos_zenith)

    def relative_error_grid(self, energy, fov_lon, fov_lat, cos_zenith=np.nan):
        of_model = self.model.relative_error_grid(energy, fov_lon, fov_lat, cos_zenith)
        return np.sqrt(of_model**2 + sum(row**2 for row in self._run_rows(energy, fov_lon, fov_lat, cos_zenith)))

    def error_rows(self, energy, fov_lon, fov_lat, cos_zenith=np.nan):
        shared, run = self.model.error_rows(energy, fov_lon, fov_lat, cos_zenith)
        rows = [run, self._run_rows(energy, fov_lon, fov_lat, cos_zenith)]
        if self.shape is not None:
            values = self.shape.values(np.asarray(energy), np.asarray(fov_lon), np.asarray(fov_lat))
            if self.shape_in_norm is not None:  # what the norm makes good
                values = values - self.shape_in_norm[:, None, None]
            rows.append(np.tensordot(self.shape.root.T, values, axes=1))
        return shared, np.concatenate(rows)

    def _run_rows(self, energy, fov_lon, fov_lat, cos_zenith):
        """What one standard deviation of the norm, and of the shift, changes in the log of the rate, (1 or 2, n, m)."""
        of_norm = np.full((len(energy), len(fov_lon)), self.norm_spread)
        if not (self.shift_error > 0 and isinstance(self.model, ScalableModel)):
            return of_norm[None]
        reach = float(self.energy_edges[0]), float(self.energy_edges[-1])
        low, high = (
            self.model.shifted(step, reach).rate_grid(energy, fov_lon, fov_lat, cos_zenith)
            for step in (-_SHIFT_STEP, _SHIFT_STEP)
        )
        both = (low > 0) & (high > 0)
        slope = np.log(np.where(both, high, 1) / np.where(both, low, 1)) / (2 * _SHIFT_STEP)
        return np.stack([of_norm, np.where(both, slope - self.slope, 0) * self.shift_error])

    def error_factor(self, cos_zenith, azimuth=np.nan, *, leading=False):
        return self.model.error_factor(cos_zenith, azimuth, leading=leading)


def goodness_of_parts(models: Sequence[RateModel]) -> tuple[GoodnessOfFit, ...]:
    """Goodness of each fit of models that are parts of another one."""
    return tuple(goodness for model in models for goodness in model.goodness)


def nested_arrays(models: Sequence[RateModel]) -> dict[str, np.ndarray]:
    """Serial form of models that are parts of another one: their arrays, behind the number of the part."""
    arrays: dict[str, np.ndarray] = {}
    for k, model in enumerate(models):
        if not model.kind:
            raise TypeError(f"{type(model).__name__}: it has no serial form, but the parts of a stored model need one")
        arrays |= {f"{k}/{name}": values for name, values in model.to_arrays().items()}
        arrays[f"{k}/kind"] = np.array(model.kind)
    return arrays


def nested_models(arrays: dict[str, np.ndarray]) -> list[RateModel]:
    """The inverse of `nested_arrays`."""
    return [MODEL_KINDS[str(own.pop("kind"))].from_arrays(own) for own in numbered(arrays, "kind")]
