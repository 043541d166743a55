"""What went into a fit, in few bins: counts over energy and field of view, and unexcluded ontime.

Small enough to keep.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gammapy_accmaker.camera.bins import FovBins, offset

_BINS_PER_DECADE = 10  # at most, of what is kept
_ROUNDING = 1e-12  # of a share


@dataclass(frozen=True)
class FitCounts:
    """Counts and exposure of all runs of a fit.

    Attributes
    ----------
    energy_edges : `~numpy.ndarray`
        In TeV, shape (n + 1,).
    fov : `FovBins`
    counts : `~numpy.ndarray`
        Unexcluded counts, shape (n, fov.size).
    exposure : `~numpy.ndarray`
        Unexcluded ontime in s, shape (fov.size,).
    """

    energy_edges: np.ndarray
    fov: FovBins
    counts: np.ndarray
    exposure: np.ndarray

    @property
    def energy_range(self) -> tuple[float, float] | None:
        """Edges in TeV of the lowest and the highest bin with an event; None without events."""
        seen = np.flatnonzero(self.counts.sum(1))
        return (float(self.energy_edges[seen[0]]), float(self.energy_edges[seen[-1] + 1])) if len(seen) else None

    @property
    def offset_range(self) -> tuple[float, float] | None:
        """Smallest and largest offset in deg of the bins with an event, to half a bin; None without events."""
        seen = self._offsets[self.counts.sum(0) > 0]
        half = 0.5 * self.fov.step
        return (max(float(seen.min()) - half, 0.0), float(seen.max()) + half) if len(seen) else None

    @property
    def _offsets(self):
        return offset(self.fov.fov_lon, self.fov.fov_lat)

    def excluded_share(self, ontime: float, offset_max: float) -> float:
        """Part of the ontime (of all runs, in s) and of the solid angle within an offset that is excluded."""
        inside = self._offsets < offset_max
        share = 1 - float(np.average(self.exposure[inside], weights=self.fov.solid_angle[inside])) / ontime
        return share if share > _ROUNDING else 0.0

    def to_arrays(self) -> dict[str, np.ndarray]:
        own = {"energy_edges": self.energy_edges, "counts": self.counts, "exposure": self.exposure}
        return self.fov.to_arrays() | own

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> FitCounts:
        return cls(arrays["energy_edges"], FovBins.from_arrays(arrays), arrays["counts"], arrays["exposure"])


def add_up(parts) -> np.ndarray:
    """Sum of the ``counts`` of reduced runs, or slices of runs, shape (energy, field-of-view bin)."""
    total = np.zeros(())
    for part in parts:
        counts = part.counts
        if not total.ndim:
            total = np.zeros(counts.shape)
        row = np.repeat(np.arange(counts.shape[0]), np.diff(counts.indptr))
        # a bin is there once; in a dense sum the time of a run does not grow with the runs before it
        total[row, counts.indices] += counts.data
    return total


def zenith_range(parts) -> tuple[float, float]:
    """Smallest and largest cos zenith in reduced runs, or slices of runs."""
    low, high = np.array([part.cos_zenith_range for part in parts]).T
    return float(low.min()), float(high.max())


def mean_displacement(parts, norms=None) -> np.ndarray | None:
    """Mean ``displacement`` of reduced runs, or slices of runs, in each bin, weighted by ``exposure`` and norms."""
    norms = np.ones(len(parts)) if norms is None else norms
    if all(part.displacement is None for part in parts):
        return None
    total = np.asarray(sum(norm * part.exposure for norm, part in zip(norms, parts, strict=True)))
    moment = sum(
        norm * part.exposure[:, None] * part.displacement
        for norm, part in zip(norms, parts, strict=True)
        if part.displacement is not None
    )
    return moment / np.where(total > 0, total, np.inf)[:, None]


def sum_counts(parts, energy_edges: np.ndarray, fov: FovBins) -> FitCounts:
    """Sum over reduced runs, or slices of runs, which have ``counts`` and ``exposure``; fine energy bins are merged."""
    counts = add_up(parts)
    exposure = sum(part.exposure for part in parts)
    decades = np.log10(energy_edges[-1] / energy_edges[0])
    group = max(int(round((len(energy_edges) - 1) / decades / _BINS_PER_DECADE)), 1)
    starts = np.arange(0, len(energy_edges) - 1, group)
    edges = np.append(energy_edges[starts], energy_edges[-1])
    return FitCounts(edges, fov, np.add.reduceat(counts, starts, axis=0), np.asarray(exposure, dtype=float))
