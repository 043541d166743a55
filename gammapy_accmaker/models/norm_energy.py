"""Energies over which the norms of runs are fitted: where the spectra of model and runs agree in shape.

The trigger threshold moves from run to run, and most events lie near it: a norm that is fitted over all energies takes
a lower threshold for a higher rate. So norms are fitted above the energy where the slowest threshold of the runs has
passed, and no lower than where what is gained from more events is less than what is lost to the shape: the rate of a
run whose energies are shifted by s differs by s times the index, so by another factor where the index is another one.
Runs are compared by the lower quartile of their log energies, which many events fix well and which follows the
threshold; that of a run with few events is drawn to those of the others.

Energies are logarithms of E / TeV, those of a run *scaled* by what its zenith angle is known to move them, if that is
given.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np

from gammapy_accmaker.errors import FitError
from gammapy_accmaker.models.run_shape import RunShape
from gammapy_accmaker.models.spectrum import fit_spectrum

_STEEP = -1.5  # index of the counts per energy, below which the threshold has passed
_ENERGY_STEP = 0.1  # in log10 energy; finer bins are merged to see the index
_TAIL = 0.1  # share of the counts at the upper end, where the index tells of no threshold
# share of the counts below the energy that follows the threshold, and on both sides of it
_QUARTILE, _BESIDE = 0.25, 0.1
SD_SHIFT, SD_NORM = 0.1, 0.15  # spreads of thresholds and norms, in logarithms, before any run is seen
_PRIOR_RUNS = 5.0  # their weight
_ROUNDS = 30  # of the estimate of the spread
_LATE = 1.1  # times the energy from which on the norms of the others are fitted: a run is named
# of the counts; the slowest runs that hold so many hardly shape the mean, and take their own threshold alone
_SLOW_SHARE = 0.05
NO_ENERGIES = (np.nan, np.nan)


@dataclass(frozen=True)
class RunScatter:
    """How the runs of a fit differ in threshold and norm.

    Attributes
    ----------
    quartile : float
        Log energy below which a quarter of the counts of the mean run lies.
    passed : float
        Log energy above which its spectrum is steep; -inf where no threshold is seen.
    slowest : float
        How far above the mean run's the threshold of the slowest runs lies, >= 0.
    spread : float
        Standard deviation of the thresholds over the runs.
    event_spread : float
        Standard deviation of the quartile of a run with one event.
    best : float
        Log energy above which a norm has a small error, from counts and shape together; -inf where no threshold is
        seen.
    norm_spread : float
        Standard deviation of the log of the norm over the runs.
    shape : `RunShape`, optional
        How they differ in what is not fitted to each of them; None where it is not known, or all of it is fitted.
    """

    quartile: float
    passed: float
    slowest: float
    spread: float
    event_spread: float
    best: float = -np.inf
    norm_spread: float = SD_NORM
    shape: RunShape | None = None

    def to_array(self) -> np.ndarray:
        """Serial form, one-dimensional."""
        numbers = np.array([getattr(self, f.name) for f in fields(self) if f.name != "shape"])
        return numbers if self.shape is None else np.concatenate([numbers, self.shape.to_array()])

    @classmethod
    def from_array(cls, array) -> RunScatter:
        """The inverse of `to_array`."""
        n, array = len(fields(cls)) - 1, np.asarray(array, dtype=float)
        scatter = cls(*array[:n].tolist())
        return replace(scatter, shape=RunShape.from_array(array[n:])) if len(array) > n else scatter

    def moved(self, shift: float) -> RunScatter:
        """The same runs at energies that are scaled: with a threshold that is lower by a shift in log energy."""
        return replace(self, quartile=self.quartile - shift, passed=self.passed - shift, best=self.best - shift)

    def shift(self, counts: np.ndarray, log_edges: np.ndarray) -> float:
        """How far above the mean run's the threshold of a run lies; 0 without counts.

        Parameters
        ----------
        counts : `~numpy.ndarray`, shape (n_energy,)
        log_edges : `~numpy.ndarray`, shape (n_energy + 1,)
            Scaled log energy.
        """
        total = counts.sum()
        if not total > 0:
            return 0.0
        # posterior mean for a Gaussian spread of the thresholds: few events tell little, and move the run little
        shrink = self.spread**2 / (self.spread**2 + self.event_spread**2 / total)
        return float(shrink * (_quantile(counts, log_edges, _QUARTILE) - self.quartile))

    def above(self, counts: np.ndarray, log_edges: np.ndarray) -> float:
        """Scaled log energy above which a run and the mean run agree in shape; arguments as in `shift`."""
        return max(self.passed + max(self.slowest, self.shift(counts, log_edges)), self.best)


def find_scatter(counts: np.ndarray, log_edges: np.ndarray) -> RunScatter:
    """How runs differ in threshold, from their counts.

    Parameters
    ----------
    counts : `~numpy.ndarray`, shape (n_run, n_energy)
    log_edges : `~numpy.ndarray`, shape (n_energy + 1,) or (n_run, n_energy + 1)
        Scaled log energy, increasing.
    """
    seen = counts.sum(1) > 0
    if not seen.any():
        return RunScatter(0.0, -np.inf, 0.0, SD_SHIFT, 1.0)
    edges = np.broadcast_to(log_edges, (len(counts), counts.shape[1] + 1))[seen]
    counts = counts[seen]
    quartile, noise, mean_edges = _quartiles(counts, edges)
    total, variance = counts.sum(1), SD_SHIFT**2
    event_spread = np.sqrt(noise[0] * total[0])
    # EM for the spread of the thresholds: the shift of each run given the spread, and the spread given the shifts and
    # what each leaves open (`seconds`: second moments)
    for _ in range(_ROUNDS):
        mean = np.average(quartile, weights=1 / (variance + noise))
        shift = (quartile - mean) * variance / (variance + noise)
        seconds = shift**2 + variance * noise / (variance + noise)
        variance = (seconds.sum() + _PRIOR_RUNS * SD_SHIFT**2) / (len(shift) + _PRIOR_RUNS)
    aligned = sum(_moved(c, e - s, mean_edges) for c, e, s in zip(counts, edges, shift, strict=True))
    # the slowest runs down to a small share of the counts are passed over; the next one is the slowest that matters
    falling = np.argsort(-shift, kind="stable")
    first = np.searchsorted(np.cumsum(total[falling]), _SLOW_SHARE * total.sum(), side="right")
    slowest = max(float(shift[falling[min(first, len(shift) - 1)]]), 0.0)
    passed, best = _agreement(aligned, mean_edges, variance, float(np.median(total)))
    return RunScatter(float(mean), passed, slowest, float(np.sqrt(variance)), float(event_spread), best)


def find_quartiles(counts: np.ndarray, log_edges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scaled log energy below which a quarter of the counts of each run lies, and its variance, each of shape (n_run,);
    NaN without counts. Arguments as in `find_scatter`."""
    quartile, noise = np.full((2, len(counts)), np.nan)
    seen = counts.sum(1) > 0
    if seen.any():
        edges = np.broadcast_to(log_edges, (len(counts), counts.shape[1] + 1))[seen]
        quartile[seen], noise[seen], _ = _quartiles(counts[seen], edges)
    return quartile, noise


def _quartiles(counts, edges):
    """Quartiles of runs with counts, their variances, and the mean edges."""
    total, mean_edges = counts.sum(1), np.average(edges, axis=0, weights=counts.sum(1))
    quartile = np.array([_quantile(c, e, _QUARTILE) for c, e in zip(counts, edges, strict=True)])
    # of a mixture of thresholds the density is lower than that of one run, so the spread of a run's quartile is no less
    pooled = np.array([_moved(c, e, mean_edges) for c, e in zip(counts, edges, strict=True)]).sum(0)
    low, high = (_quantile(pooled, mean_edges, _QUARTILE + d) for d in (-_BESIDE, _BESIDE))
    event_spread = np.sqrt(_QUARTILE * (1 - _QUARTILE)) * max(high - low, 1e-3) / (2 * _BESIDE)
    return quartile, event_spread**2 / total, mean_edges


def norm_spread(norms: np.ndarray, counts: np.ndarray) -> float:
    """Standard deviation of the log of the norm over runs, without that of their counts.

    Parameters
    ----------
    norms, counts : `~numpy.ndarray`, shape (n_run,)
        Norms, and the counts that they were fitted to.
    """
    seen = counts > 0
    # the log of a norm from n counts has a variance of 1/n, which is no difference between runs
    variance = np.sum(np.log(norms[seen]) ** 2 - 1 / counts[seen])
    return float(np.sqrt((max(variance, 0.0) + _PRIOR_RUNS * SD_NORM**2) / (seen.sum() + _PRIOR_RUNS)))


def choose_energies(
    scatter: list[RunScatter], counts: np.ndarray, energy_edges: np.ndarray, scaling: float = 0.0
) -> tuple[float, float]:
    """Energies in TeV over which the norm of a run is fitted.

    Parameters
    ----------
    scatter : list of `RunScatter`
        Of the runs of each model that has a part in what is expected of the run.
    counts : `~numpy.ndarray`, shape (n_energy,)
        Of the run.
    energy_edges : `~numpy.ndarray`, shape (n_energy + 1,)
        In TeV.
    scaling : float
        Of the run's log energies.

    Returns
    -------
    low, high : float
        Edges of energy bins.
    """
    log_edges = np.log(energy_edges)
    above = max((s.above(counts, log_edges + scaling) - scaling for s in scatter), default=-np.inf)
    # a millionth is rounding; the last bin is left in any case
    first = min(int(np.searchsorted(log_edges, above - 1e-6)), len(energy_edges) - 2)
    return float(energy_edges[first]), float(energy_edges[-1])


def late_flags(
    energies: tuple[float, float], scatter: list[RunScatter], energy_edges: np.ndarray, scaling: float = 0.0
) -> list[str]:
    """What there is to say of the energies that `choose_energies` chose:
    that the run's threshold is above those of the fit."""
    others, _ = choose_energies(scatter, np.zeros(len(energy_edges) - 1), energy_edges, scaling)
    return ["threshold above those of the fit"] if energies[0] > _LATE * others else []


def given_energies(energy_edges: np.ndarray, low: float, high: float) -> tuple[float, float]:
    """The energy bins of a range that overlaps with them, as edges:
    those whose centre is inside, or else all that it touches."""
    used = energies_between(energy_edges, (low, high))
    if not used.any():
        used = (energy_edges[1:] > low) & (energy_edges[:-1] < high)
    inside = np.flatnonzero(used)
    return float(energy_edges[inside[0]]), float(energy_edges[inside[-1] + 1])


def given_or_chosen_energies(
    given: tuple[float, float] | None, scatter: list[RunScatter], counts: np.ndarray, energy_edges: np.ndarray
) -> tuple[float, float]:
    """Energies in TeV over which the norm of a run with these counts by energy is fitted: `given_energies`, or without
    them those of `choose_energies`."""
    if given is not None:
        return given_energies(energy_edges, *given)
    return choose_energies(scatter, counts, energy_edges)


def energies_between(energy_edges: np.ndarray, energies: tuple[float, float]) -> np.ndarray:
    """Whether the logarithmic centre of each energy bin lies in a range, in the same unit, shape (n_energy,)."""
    middle = np.sqrt(energy_edges[1:] * energy_edges[:-1])
    return (middle >= energies[0]) & (middle <= energies[1])


def _quantile(counts, log_edges, share):
    """Log energy below which a share of the counts lies; events are spread evenly over their bin."""
    below = np.concatenate([[0.0], np.cumsum(counts)])
    # of empty bins neither end is known better: the middle of the two
    target = share * below[-1]
    right = np.searchsorted(below, target, side="left")
    last = np.searchsorted(below, target, side="right") - 1
    if below[right] == target:
        return 0.5 * (log_edges[right] + log_edges[last])
    left = right - 1
    return log_edges[left] + (log_edges[right] - log_edges[left]) * (target - below[left]) / counts[left]


def _moved(counts, log_edges, new_edges):
    """Counts in other bins; what lies beyond them is lost."""
    below = np.concatenate([[0.0], np.cumsum(counts)])
    return np.diff(np.interp(new_edges, log_edges, below))


def _agreement(counts, log_edges, variance, size):
    """Log energies from which on the spectrum is steep, and the norm of a run of some counts has a small error."""
    # bins wide enough that the index is not noise
    group = max(int(round(_ENERGY_STEP * np.log(10) / np.diff(log_edges).mean())), 1)
    starts = np.arange(0, len(counts), group)
    counts, edges = np.add.reduceat(counts, starts), np.append(log_edges[starts], log_edges[-1])
    filled = np.flatnonzero(counts > 0)
    if len(filled) < 3:
        return -np.inf, -np.inf
    used = slice(filled[0], filled[-1] + 1)
    counts, edges = counts[used], edges[used.start : used.stop + 1]
    try:
        spectrum = fit_spectrum(counts, np.exp(edges))
    except FitError:  # a spectrum that is not understood shows no threshold
        return -np.inf, -np.inf
    x = np.arange(edges[0], edges[-1], 0.01)
    index = np.gradient(np.log(spectrum(np.exp(x))), x)
    flat = (index > _STEEP) & (x < _quantile(counts, edges, 1 - _TAIL))
    if not flat.any():
        return -np.inf, -np.inf
    last = np.flatnonzero(flat)[-1]
    if index[last + 1] > _STEEP:  # flat up to the tail: a hard spectrum, and no threshold
        return -np.inf, -np.inf
    x, index = x[last + 1 :], index[last + 1 :]
    density = spectrum(np.exp(x)) * np.exp(x)
    above, first, second = (np.cumsum((density * power)[::-1])[::-1] for power in (1.0, index, index**2))
    size = size * (1 - np.interp(x[0], edges, np.append(0, np.cumsum(counts))) / counts.sum()) / above[0]
    # variance of the log norm from the counts above x, plus that from thresholds that differ: a shift s changes the
    # log rate by s * index, which a common index would make a mere norm, so its variance above x is what is lost
    error = 1 / (size * above) + variance * (second / above - (first / above) ** 2)
    best = x[np.argmin(error[above > _TAIL * above[0]])]
    # there the rates of the range are best, and from the threshold on the sum of all above it: half way
    return float(x[0]), float(0.5 * (x[0] + best))
