"""Counts and exposure of runs in the polar cells: all that a fit of the spline model keeps of a run."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from gammapy_accmaker.models.spline.cells import FovCells
from gammapy_accmaker.utils.run_key import RunKey

__all__ = ["CellCounts", "RunCells", "gather_counts"]


@dataclass(frozen=True)
class CellCounts:
    """A slice of a run in the cells.

    Attributes
    ----------
    key : `RunKey`
        Of the run.
    index, counts : `~numpy.ndarray`, shape (n_filled,)
        Flat number (energy bin x cell), increasing, and content of the bins with counts.
    exposure : `~numpy.ndarray`, shape (n_cell,)
        In s sr.
    cos_zenith, azimuth : float
        Mean values, azimuth in deg.
    cos_zenith_range : tuple of float
        Smallest and largest cos zenith within the slice.
    covariates : dict of float
    """

    key: RunKey
    index: np.ndarray
    counts: np.ndarray
    exposure: np.ndarray
    cos_zenith: float
    azimuth: float
    cos_zenith_range: tuple[float, float]
    covariates: dict[str, float] = field(default_factory=dict)

    def spectrum(self, n_energy: int) -> np.ndarray:
        """Counts in each of all energy bins."""
        return np.bincount(self.index // len(self.exposure), self.counts, n_energy)


def gather_counts(cells: FovCells, n_energy: int, run) -> CellCounts:
    """Sum a slice of a run over the pixels of each cell.

    Parameters
    ----------
    cells : `FovCells`
    n_energy : int
        Number of energy bins.
    run : `RunCounts`-like
        With ``key``, ``counts`` (n_energy, n_fov), sparse, and ``exposure`` (n_fov,) in s, in the pixels of the cells.
    """
    n_fov = len(cells.fov_lon)
    if run.counts.shape != (n_energy, n_fov) or run.exposure.shape != (n_fov,):
        raise ValueError(
            f"run {run.key.obs_id}: counts {run.counts.shape} and exposure {run.exposure.shape} do not fit the bins of the "
            f"model, ({n_energy}, {n_fov}) and ({n_fov},); reduce the run with the bins of the fit"
        )
    counts = (run.counts @ cells.membership).tocoo()
    # of many runs this is what takes the memory: numbers of bins, and counts, fit into four bytes
    index = (counts.coords[0] * cells.n_cell + counts.coords[1]).astype(np.int32)
    order = np.argsort(index)
    order = order[counts.data[order] > 0]
    exposure = cells.membership.T @ (run.exposure * cells.solid_angle)
    return CellCounts(
        run.key, index[order], counts.data[order].astype(np.float32), exposure, run.cos_zenith, run.azimuth,
        run.cos_zenith_range, run.covariates,
    )  # fmt: skip


@dataclass(frozen=True)
class RunCells:
    """Counts and exposure of a slice of a run in the cells.

    Attributes
    ----------
    index, counts : `~numpy.ndarray`, shape (n_filled,)
        Flat number (energy bin x cell) and content of the bins with counts.
    exposure : `~numpy.ndarray`, shape (n_cell,)
        In s sr.
    zenith_basis : `~numpy.ndarray`, shape (n_zenith,)
    scaled_energy : `~numpy.ndarray`, shape (n_energy,)
        Scaled log energy of the bins before the run's own shift.
    additive_counts : `~numpy.ndarray`, shape (n_additive,)
        Sum of the counts times each additive effect.
    energies : `~numpy.ndarray`, shape (n_energy,), optional
        1 for the energy bins that count and 0 for those left out of counts and exposure; all by default.
    effect_energies : `~numpy.ndarray`, shape (n_energy,), optional
        1 for the energy bins that tell of the effects of the run, else 0; those tell of the rate alone.
    """

    index: np.ndarray
    counts: np.ndarray
    exposure: np.ndarray
    zenith_basis: np.ndarray
    scaled_energy: np.ndarray
    additive_counts: np.ndarray
    energies: np.ndarray | None = None
    effect_energies: np.ndarray | None = None

    def on_rings(self, n_sector: int) -> RunCells:
        """The sectors of each ring taken together, without effects of the run."""
        index, first = np.unique(self.index // n_sector, return_index=True)
        return RunCells(
            index,
            np.add.reduceat(self.counts, first) if len(first) else self.counts,
            self.exposure.reshape(-1, n_sector).sum(axis=1),
            self.zenith_basis,
            self.scaled_energy,
            np.zeros(0),
        )
