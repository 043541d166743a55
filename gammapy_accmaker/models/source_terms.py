"""Counts of gamma-ray sources beside the background, on arrays: what they add to the bins, and their amplitudes.

The expected counts of a run are mu = b + s, with b of the acceptance and s = sum of A x S over the sources: S is what a
source adds with the flux of its model, and A is a factor on it, one for each of a few bands of energy. For given s the
likelihood of b is that of the counts n with weights w = b / mu: its gradient by log b is n w - b, and its information
(Fisher's, of the expected counts) is b w.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.sparse import csc_array

_MUCH_ALIKE = 10.0  # variance of an amplitude over that with the others known
_SMALLEST_SHARE = 1e-4  # of the information on amplitudes; less is none
_NORM_STEPS, _NORM_TOLERANCE = 100, 1e-9
TINY = 1e-30  # counts; keeps a bin that nothing is expected in from a division by zero


@dataclass(frozen=True)
class CountsPatch:
    """Expected counts at all energies in some bins of the field of view; 0 in all others.

    Attributes
    ----------
    columns : `~numpy.ndarray`, shape (n,)
        Numbers of these bins, increasing.
    values : `~numpy.ndarray`, float32, shape (n_energy, n)
    size : int
        Number of all bins of the field of view.
    """

    columns: np.ndarray
    values: np.ndarray
    size: int

    @classmethod
    def of(cls, counts: np.ndarray) -> CountsPatch:
        """From counts in all bins, shape (n_energy, size)."""
        columns = np.flatnonzero(counts.any(axis=0)).astype(np.int32)
        return cls(columns, counts[:, columns].astype(np.float32), counts.shape[1])

    @classmethod
    def spread(cls, counts: np.ndarray, parts, size: int) -> CountsPatch:
        """Counts, shape (n_energy, n), spread over bins: by parts, each of which column of them goes, to which bin, and
        what share of it."""
        column, here, share = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        moved = csc_array((share, (column, here)), shape=(counts.shape[1], size))
        columns = np.flatnonzero(np.diff(moved.indptr)).astype(np.int32)
        return cls(columns, (moved[:, columns].T @ counts.T).T.astype(np.float32), size)

    @classmethod
    def nothing(cls, shape: tuple[int, int]) -> CountsPatch:
        """No counts, shape (n_energy, size)."""
        return cls(np.zeros(0, dtype=np.int32), np.zeros((shape[0], 0), dtype=np.float32), shape[1])

    @property
    def shape(self) -> tuple[int, int]:
        """(n_energy, size)."""
        return len(self.values), self.size

    def toarray(self) -> np.ndarray:
        """In all bins, shape (n_energy, size)."""
        out = np.zeros((len(self.values), self.size))
        out[:, self.columns] = self.values
        return out

    def by_energy(self) -> np.ndarray:
        """Sum over the field of view, shape (n_energy,)."""
        return self.values.sum(axis=1, dtype=float)

    def in_one_bin(self) -> CountsPatch:
        """Summed over the field of view, with all digits."""
        return CountsPatch(np.zeros(1, dtype=np.int32), self.by_energy()[:, None], 1)

    def scaled(self, factors: np.ndarray) -> CountsPatch:
        """Times a factor for each energy, shape (n_energy,)."""
        return replace(self, values=(self.values * factors[:, None]).astype(np.float32))

    def gathered(self, membership) -> CountsPatch:
        """Summed over what a sparse matrix, shape (size, n_new), makes of the bins."""
        part = membership[self.columns]
        return CountsPatch.of(np.asarray(part.T @ self.values.T.astype(float)).T)

    def inside(self, mask: np.ndarray) -> CountsPatch:
        """In the bins of a mask alone, shape (size,), which are numbered anew."""
        keep = mask[self.columns]
        number = np.cumsum(mask) - 1
        return CountsPatch(number[self.columns[keep]].astype(np.int32), self.values[:, keep], int(mask.sum()))


def add_patches(patches: Sequence[CountsPatch | None]) -> CountsPatch | None:
    """Sum of patches over the same bins; None is nothing."""
    some = [patch for patch in patches if patch is not None and len(patch.columns)]
    if len(some) < 2:
        return some[0] if some else None
    columns = np.unique(np.concatenate([patch.columns for patch in some]))
    values = np.zeros((len(some[0].values), len(columns)))
    for patch in some:
        values[:, np.searchsorted(columns, patch.columns)] += patch.values
    return CountsPatch(columns, values.astype(np.float32), some[0].size)


def sum_patches(patches: Sequence[CountsPatch]) -> CountsPatch:
    """Sum of at least one patch over the same bins."""
    total = add_patches(patches)
    return patches[0] if total is None else total


def background_weights(background: np.ndarray, sources: np.ndarray) -> np.ndarray:
    """Share b / (b + s) of the background in the expected counts."""
    return background / np.maximum(background + sources, TINY)


def norm_beside(counts: np.ndarray, background: np.ndarray, sources: np.ndarray) -> tuple[float, float]:
    """Norm of a background by maximum likelihood beside known counts of sources, and its error; arrays of one shape."""
    total = background.sum()
    norm = float(max(counts.sum() - sources.sum(), 0.5) / total)
    for _ in range(_NORM_STEPS):  # of the EM algorithm, which never overshoots
        weights = background_weights(norm * background, sources)
        last, norm = norm, float((counts * weights).sum() / total)
        if abs(norm - last) < _NORM_TOLERANCE * last:
            break
    informing = (norm * background * background_weights(norm * background, sources)).sum()
    return norm, norm / np.sqrt(max(informing, 1.0))


class AmplitudeEquations:
    """Information and gradient of the amplitudes of sources, beside coefficients of the background, summed over runs.

    Parameters
    ----------
    shape : tuple of int
        Of the coefficients of the background.
    n : int
        Number of amplitudes.
    """

    def __init__(self, shape: tuple[int, ...], n: int):
        self.gradient, self.information, self.cross = np.zeros(n), np.zeros((n, n)), np.zeros((*shape, n))

    def add(self, zenith: np.ndarray, gradient: np.ndarray, information: np.ndarray, cross: np.ndarray) -> None:
        """Add a run that sees these splines in zenith angle, with ``cross`` of the coefficients there, (n_space, n)."""
        self.gradient += gradient
        self.information += information
        self.cross += cross[:, None] * zenith[:, None]

    def add_all(self, other: AmplitudeEquations) -> None:
        """Add the runs of others."""
        self.gradient += other.gradient
        self.information += other.information
        self.cross += other.cross


@dataclass(frozen=True)
class AmplitudeFit:
    """Fitted amplitudes.

    Attributes
    ----------
    bands : `SourceBands`
    values, covariance : `~numpy.ndarray`, shapes (n,), (n, n)
        Factors on the fluxes of the models, and their covariance once the background is fitted with them.
    share : `~numpy.ndarray`, shape (n,)
        Share of the information on each that is left once the background is fitted with it: 1 for a source that no
        background looks like, 0 for one that cannot be told from it.
    alike : `~numpy.ndarray`, bool, shape (n,)
        Whether other amplitudes can make good for most of it.
    converged : bool
    """

    bands: SourceBands
    values: np.ndarray
    covariance: np.ndarray
    share: np.ndarray
    alike: np.ndarray
    converged: bool

    @classmethod
    def of(cls, bands: SourceBands, values, total, left, converged) -> AmplitudeFit:
        """From the information on them with the background known, ``total``, and fitted with them, ``left``."""
        whole = np.maximum(np.diag(total), TINY)
        share = np.clip(np.diag(left) / whole, 0, 1)
        # what nothing is known of, or what cannot be told apart, gets an error that says so
        scale = 1 / np.sqrt(whole)
        value, vector = np.linalg.eigh(left * scale * scale[:, None])
        inverse = (vector / np.maximum(value, _SMALLEST_SHARE)) @ vector.T
        alike = np.diag(inverse) * np.maximum(share, _SMALLEST_SHARE) > _MUCH_ALIKE
        return cls(bands, values, inverse * scale * scale[:, None], share, alike, converged)

    def on(self, energy_edges: np.ndarray, edges: np.ndarray) -> AmplitudeFit:
        """The same in other energy bins, see `SourceBands.on`."""
        return replace(self, bands=self.bands.on(energy_edges, edges))

    @property
    def errors(self) -> np.ndarray:
        """Standard deviations, shape (n,)."""
        return np.sqrt(np.diag(self.covariance))


def step_amplitudes(values: np.ndarray, gradient: np.ndarray, information: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Newton step of amplitudes that stay >= 0.

    Parameters
    ----------
    values, gradient : `~numpy.ndarray`, shape (n,)
    information, total : `~numpy.ndarray`, shape (n, n)
        With the background fitted with them, and with it known.
    """
    # a little of the information with the background known keeps steps short where nothing is left
    matrix = information + _SMALLEST_SHARE * np.diag(np.maximum(np.diag(total), TINY))
    free = (values > 0) | (gradient > 0)
    step = np.zeros(len(values))
    while free.any():
        step[:] = 0
        step[free] = np.linalg.solve(matrix[np.ix_(free, free)], gradient[free])
        # at 0 there is no way down: those that would go there stay, and the others are solved for without them
        stuck = free & (values <= 0) & (step < 0)
        if not stuck.any():
            break
        free &= ~stuck
    return np.maximum(step, -values)


@dataclass(frozen=True)
class SourceBands:
    """Which amplitude multiplies a source in each energy bin of a fit.

    Attributes
    ----------
    number : `~numpy.ndarray`, int, shape (n_source, n_energy)
        Of the amplitude; those of a source follow each other.
    """

    number: np.ndarray

    @classmethod
    def choose(cls, spectra: np.ndarray, n_band: int) -> SourceBands:
        """Bands in which a source has about the same expected counts.

        Parameters
        ----------
        spectra : `~numpy.ndarray`, shape (n_source, n_energy)
            Expected counts of each source in all runs.
        n_band : int
            Most bands of each; one with counts in few bins has less.
        """
        number, first = np.zeros(spectra.shape, dtype=int), 0
        for k, spectrum in enumerate(spectra):
            # the share of the counts below the middle of each bin
            total = max(float(spectrum.sum()), TINY)
            share = (np.cumsum(spectrum) - 0.5 * spectrum) / total
            band = np.minimum((share * n_band).astype(int), n_band - 1)
            # no band without counts: energies without are in that of those below
            filled = np.where(spectrum > 0, np.arange(len(spectrum)), np.argmax(spectrum > 0))
            _, own = np.unique(band[np.maximum.accumulate(filled)], return_inverse=True)
            number[k] = first + own
            first += own.max() + 1
        return cls(number)

    @classmethod
    def of_parts(cls, parts, n_energy: int, n_band: int) -> SourceBands:
        """The same for the ``sources`` of slices of runs, as many for each that has some."""
        spectra = np.zeros((max(len(part.sources) for part in parts), n_energy))
        for part in parts:
            for spectrum, source in zip(spectra, part.sources, strict=False):
                spectrum += source.by_energy()
        return cls.choose(spectra, n_band)

    @property
    def n(self) -> int:
        """Number of amplitudes."""
        return int(self.number.max()) + 1 if self.number.size else 0

    def edges(self, k: int, energy_edges: np.ndarray) -> np.ndarray:
        """Energies between which the amplitudes of a source hold, from the edges of the energy bins."""
        starts = np.flatnonzero(np.diff(self.number[k], prepend=-1))
        return np.append(energy_edges[starts], energy_edges[-1])

    def amplitudes_of(self, k: int) -> slice:
        """Numbers of the amplitudes of a source."""
        return slice(int(self.number[k, 0]), int(self.number[k, -1]) + 1)

    def on(self, energy_edges: np.ndarray, edges: np.ndarray) -> SourceBands:
        """The same amplitudes in other energy bins, each by its middle; ``energy_edges``: of the present ones."""
        middle = np.sqrt(edges[1:] * edges[:-1])
        own = np.clip(np.searchsorted(energy_edges, middle) - 1, 0, self.number.shape[1] - 1)
        return SourceBands(self.number[:, own])

    def factors(self, amplitudes: np.ndarray) -> np.ndarray:
        """Factor on each source at each energy, shape (n_source, n_energy)."""
        return amplitudes[self.number]

    def signal(
        self, known: CountsPatch | None, units: Sequence[CountsPatch], amplitudes: np.ndarray
    ) -> CountsPatch | None:
        """What sources add together: those of known flux, and others, which add ``units``, at these amplitudes."""
        if not len(units):
            return known
        free = [unit.scaled(own) for unit, own in zip(units, self.factors(amplitudes), strict=True)]
        return add_patches([known, *free])

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Sums over the energies of each amplitude, shape (n_source, n_energy, ...) to (n, ...)."""
        out = np.zeros((self.n, *values.shape[2:]))
        np.add.at(out, self.number, values)
        return out

    def pair_sums(self, values: np.ndarray) -> np.ndarray:
        """The same of products of two sources at one energy, shape (n_source, n_source, n_energy) to (n, n)."""
        out = np.zeros((self.n, self.n))
        np.add.at(out, (self.number[:, None], self.number[None]), values)
        return out
