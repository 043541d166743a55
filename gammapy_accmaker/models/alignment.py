"""How the energies of runs are scaled so that their trigger thresholds lie on each other.

The threshold moves with the zenith angle, about as a power of cos zenith, and with the state of the instrument. Runs of
different thresholds that were simply added up would give a spectrum that none of them has. So a run has a *shift* s:
it has at the energy E the rate of the mean run at E exp(s), and s > 0 is a lower threshold.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar

from gammapy_accmaker.models.fit_counts import add_up
from gammapy_accmaker.models.norm_energy import SD_NORM, SD_SHIFT, energies_between, find_quartiles
from gammapy_accmaker.models.spectrum import MixedSpectrum, SmoothSpectrum, fit_spectrum

_ENERGY_POWER, _RATE_POWER, _SD_POWER = 2.5, 1.5, 1.0  # of cos zenith, and their spread, before any run is seen
_SHIFT_STEP = 0.01  # runs whose shifts differ by less count as one
_ROUNDS = 3  # of norms and spectrum
_MAX_SPREADS, _MAX_SHIFT = 5.0, 0.7  # of a shift: in spreads, and a factor of 2 in energy
_STEP = 0.02  # in the shift, of derivatives
_LEAST = 1e-9  # of all expected counts, in an energy bin: one event where none is expected must not decide


@dataclass(frozen=True)
class ZenithScaling:
    """How spectra go over into each other from one zenith angle to another.

    Attributes
    ----------
    energy : float
        Power of cos zenith by which energies are scaled: thresholds go as cos zenith to the power -energy.
    rate : float
        Power of cos zenith of the rate, per log energy, at a scaled energy.
    """

    energy: float = 0.0
    rate: float = 0.0

    def shift(self, cos_zenith, reference):
        """Shift of runs at a zenith angle against those at a reference."""
        return self.energy * np.log(cos_zenith / reference)

    def factor(self, cos_zenith, reference):
        """Their rate over that of the others."""
        return (cos_zenith / reference) ** self.rate

    def to_array(self) -> np.ndarray:
        return np.array([self.energy, self.rate])


def find_zenith_scaling(
    counts: np.ndarray, exposure: np.ndarray, log_edges: np.ndarray, log_cos_zenith: np.ndarray
) -> ZenithScaling:
    """Zenith scaling of runs, for a threshold that each of them shows by the lower quartile of its energies.

    Above the thresholds a spectrum has no scale, its quartile does not move, and no energy is scaled.

    Parameters
    ----------
    counts : `~numpy.ndarray`, shape (n_run, n_energy)
    exposure : `~numpy.ndarray`, shape (n_run,)
        Counts that are expected of each run if the rates of all are the same, up to a factor.
    log_edges : `~numpy.ndarray`, shape (n_energy + 1,)
        Log energy.
    log_cos_zenith : `~numpy.ndarray`, shape (n_run,)
    """
    used = (counts.sum(1) > 0) & (exposure > 0)
    if used.sum() < 2:
        return ZenithScaling()
    counts, x = counts[used], log_cos_zenith[used]
    quartile, noise = find_quartiles(counts, log_edges)
    energy = -_slope(x, quartile, SD_SHIFT**2 + noise, -_ENERGY_POWER)
    # counts at the scaled energies that all runs have
    scaled = log_edges + energy * (x - x.mean())[:, None]
    ends = scaled[:, 0].max(), scaled[:, -1].min()
    below = np.concatenate([np.zeros((len(counts), 1)), np.cumsum(counts, axis=1)], axis=1)
    inside = np.array([np.diff(np.interp(ends, *one))[0] for one in zip(scaled, below, strict=True)])
    if ends[1] <= ends[0] or not np.all(inside > 0):
        return ZenithScaling(energy, 0.0)
    log_rate = np.log(inside / exposure[used])
    return ZenithScaling(energy, _slope(x, log_rate, SD_NORM**2 + SD_SHIFT**2 + 1 / inside, _RATE_POWER))


def _slope(x, y, variance, prior):
    """Slope of y by weighted least squares, with a Gaussian prior."""
    x, weight = x - np.average(x, weights=1 / variance), 1 / variance
    return float(((x * y * weight).sum() + prior / _SD_POWER**2) / ((x**2 * weight).sum() + 1 / _SD_POWER**2))


@dataclass(frozen=True)
class AlignedRuns:
    """Runs whose energies are shifted.

    Attributes
    ----------
    counts : `~numpy.ndarray`
        Of all runs with one shift, shape (n, n_energy, field-of-view bin).
    shift, weight : `~numpy.ndarray`
        Shape (n,), see `MixedSpectrum`.
    """

    counts: np.ndarray
    shift: np.ndarray
    weight: np.ndarray

    def fit_spectrum(self, energy_edges: np.ndarray, used: slice) -> tuple[SmoothSpectrum, MixedSpectrum]:
        """Spectrum of the mean run, from some energy bins, and the sum of those of all runs."""
        counts, edges = self.counts[:, used].sum(2), energy_edges[used.start : used.stop + 1]
        spectrum = fit_spectrum(counts, edges, self.shift, self.weight)
        return spectrum, MixedSpectrum(spectrum, self.shift, self.weight)

    def moved(self, integral, energy_edges: np.ndarray) -> np.ndarray:
        """Counts of all runs at the energies of the mean run, shape (n_energy, field-of-view bin): those of a bin that
        lies over several go to them as the mean run's are divided, and what leaves the bins is lost.

        ``integral``: counts of the mean run in energy bins of given edges, up to a factor for each bin of the field of
        view, shape (n, 1) or (n, field-of-view bin).
        """
        log_edges, moved = np.log(energy_edges), np.zeros(self.counts.shape[1:])
        for counts, shift in zip(self.counts, self.shift, strict=True):
            fine = np.unique(np.concatenate([log_edges, log_edges + shift]))
            in_fine, middle = integral(np.exp(fine)), 0.5 * (fine[1:] + fine[:-1])
            source, target = (np.searchsorted(edges, middle) - 1 for edges in (log_edges + shift, log_edges))
            total = np.zeros((len(log_edges) + 1, in_fine.shape[1]))
            np.add.at(total, source, in_fine)
            known = (np.minimum(source, target) >= 0) & (np.maximum(source, target) < len(counts))
            share = in_fine[known] / np.maximum(total[source[known]], 1e-300)
            np.add.at(moved, target[known], share * counts[source[known]])
        return moved


def fit_spectra(
    counts: np.ndarray, energy_edges: np.ndarray, used: slice, aligned: AlignedRuns | None
) -> tuple[SmoothSpectrum, SmoothSpectrum | MixedSpectrum]:
    """Spectrum of the mean run, from some energy bins of the counts (n_energy, field-of-view bin) of all runs, and the
    sum of the spectra of all of them."""
    if aligned is not None:
        return aligned.fit_spectrum(energy_edges, used)
    spectrum = fit_spectrum(counts[used].sum(1), energy_edges[used.start : used.stop + 1])
    return spectrum, spectrum


def align_runs(
    runs, exposure: np.ndarray, shift: np.ndarray, energy_edges: np.ndarray, fit_norms, energies
) -> tuple[AlignedRuns, np.ndarray]:
    """Spectra of runs with shifts, and the norms of the runs.

    Parameters
    ----------
    runs : list of `RunCounts`-like
        With ``counts``.
    exposure : `~numpy.ndarray`, shape (n_run, bin)
        In s, times what their zenith angle makes of the rate.
    shift : `~numpy.ndarray`, shape (n_run,)
    energy_edges : `~numpy.ndarray`, shape (n_energy + 1,)
        In TeV.
    fit_norms : callable or None
        Norms of runs from counts and exposure in the field of view, each of shape (run, bin); without it all are 1.
    energies : tuple of float
        Over which they are fitted, in TeV, of the mean run.
    """
    norms = np.ones(len(runs))
    steps, of_run = np.unique(np.round(shift / _SHIFT_STEP), return_inverse=True)
    shift = steps * _SHIFT_STEP
    counts = np.array([add_up(run for run, k in zip(runs, of_run, strict=True) if k == n) for n in range(len(steps))])
    in_field = counts.sum((0, 1))
    used = np.array([energies_between(energy_edges * np.exp(s), energies) for s in shift])
    in_range = (
        None if fit_norms is None else np.array([used[k] @ run.counts for k, run in zip(of_run, runs, strict=True)])
    )
    with_counts = np.flatnonzero(counts.sum((0, 2)))
    inside = slice(with_counts[0], with_counts[-1] + 1)
    for round_ in range(_ROUNDS):
        expected = norms * seen_in_field(in_field, exposure, norms)
        weight = np.bincount(of_run, expected / expected.sum())
        if fit_norms is None or round_ == _ROUNDS - 1:
            break
        spectrum, _ = AlignedRuns(counts, shift, weight).fit_spectrum(energy_edges, inside)
        # what is expected of a run of norm 1 in the bins that are used of it
        share = np.array(
            [_counts_in(spectrum, energy_edges * np.exp(s), bins) for s, bins in zip(shift, used, strict=True)]
        )
        norms = fit_norms(in_range, exposure * (share / share.max())[of_run, None])
    return AlignedRuns(counts, shift, weight), norms


def seen_in_field(in_field: np.ndarray, exposure: np.ndarray, norms: np.ndarray) -> np.ndarray:
    """Counts that are expected of runs of norm 1, shape (n_run,), from all counts in the field of view."""
    seen = norms @ exposure
    return exposure @ np.divide(in_field, seen, out=np.zeros_like(seen), where=seen > 0)


def _counts_in(spectrum: SmoothSpectrum, energy_edges, used):
    inside = np.flatnonzero(used)
    if not len(inside):
        return 0.0
    return spectrum.all_of_it().bin_weights(energy_edges[[inside[0], inside[-1] + 1]], np.ones(1)).sum()


def fit_shift(counts: np.ndarray, expected, spread: float) -> tuple[float, float, float]:
    """Shift of a run by its spectrum, whatever its norm.

    Parameters
    ----------
    counts : `~numpy.ndarray`, shape (n,)
        By energy.
    expected : callable
        Expected counts for a shift, up to a norm, shape (n,).
    spread : float
        Standard deviation of the shifts of runs, around 0.

    Returns
    -------
    shift, error : float
    slope : float
        Of the log of the sum of the expected counts, by the shift.
    """

    def cost(shift):
        mu = expected(shift)
        log_share = np.log(np.maximum(mu, _LEAST * mu.sum()) / max(mu.sum(), 1e-300))
        return 0.5 * (shift / spread) ** 2 - counts @ np.where(counts > 0, log_share, 0)

    limit = min(_MAX_SPREADS * spread, _MAX_SHIFT)
    shift = minimize_scalar(cost, bounds=(-limit, limit), method="bounded", options={"xatol": 1e-3}).x
    below, here, above = (cost(shift + d) for d in (-_STEP, 0, _STEP))
    curvature = max((below - 2 * here + above) / _STEP**2, 1 / spread**2)
    low, high = (max(expected(shift + d).sum(), 1e-300) for d in (-_STEP, _STEP))
    return float(shift), float(1 / np.sqrt(curvature)), float(np.log(high / low) / (2 * _STEP))
