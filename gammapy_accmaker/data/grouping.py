"""Which parts of runs are pooled: bins of cos zenith that grow until they hold enough, and wobble positions.

Pure arrays.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import KDTree

from gammapy_accmaker.camera.track import unit_vectors

_ROUNDING = 1e-9


@dataclass(frozen=True)
class BinMinimum:
    """What a bin must hold: livetime in s, number of observations, and whether in each wobble position that it has."""

    livetime: float = 0.0
    observations: float = 0.0
    per_wobble: bool = False

    def holds(self, livetime, observations, counts, wobble) -> bool:
        """Whether the parts of a bin, arrays of shape (n,), reach it; a bin without counts never does."""
        groups = [wobble == w for w in np.unique(wobble)] if self.per_wobble else [np.ones(len(wobble), dtype=bool)]
        return counts.sum() > 0 and all(
            livetime[g].sum() >= self.livetime * (1 - _ROUNDING)
            and observations[g].sum() >= self.observations * (1 - _ROUNDING)
            for g in groups
        )


def zenith_cells(width: float) -> np.ndarray:
    """Cos zenith of the edges, increasing, that bins can have: in steps of a width down from 1."""
    return 1 - width * np.arange(int(np.ceil(1 / width - _ROUNDING)), -1, -1)


def grow_zenith_bins(
    cos_zenith, livetime, observations, counts, wobble, width: float, minimum: BinMinimum
) -> np.ndarray:
    """Edges of bins of cos zenith that each hold a minimum.

    Where the zenith angles of all parts differ by no more than a cell, they are one bin. Else, from the zenith down, a
    bin grows by one cell of `zenith_cells` until it holds the minimum; what is left at the end is merged with its
    neighbour. Between two bins with a gap, the edge is in its middle.

    Parameters
    ----------
    cos_zenith, livetime, observations, counts, wobble : `~numpy.ndarray`
        Of each part of a run, shape (n,): livetime in s, its share of an observation, unexcluded counts, number of its
        wobble position.
    width : float
        Of a cell.
    minimum : `BinMinimum`

    Returns
    -------
    edges : `~numpy.ndarray`
        Increasing, shape (bins + 1,). With one bin the minimum may be missed.
    """
    possible = zenith_cells(width)
    # a zenith angle at an edge belongs to the cell above it, as it does to the bin above an edge
    cell = np.maximum(len(possible) - 1 - np.searchsorted(possible, cos_zenith, side="right"), 0)
    if np.ptp(cos_zenith) <= width * (1 + _ROUNDING):
        # an edge of the cells that happens to lie between them would halve the counts of what does not differ
        return 1 - width * np.array([cell.max() + 1, cell.min()])
    bins, grown = [], []
    for k in np.unique(cell):
        grown.append(k)
        inside = np.isin(cell, grown)
        if minimum.holds(*(x[inside] for x in (livetime, observations, counts, wobble))):
            bins.append(grown)
            grown = []
    if grown:
        bins.append(grown)
    while len(bins) > 1:
        # a merger can bring a wobble position of which there is too little
        inside = np.isin(cell, bins[-1])
        if minimum.holds(*(x[inside] for x in (livetime, observations, counts, wobble))):
            break
        bins[-2:] = [bins[-2] + bins[-1]]
    upper = np.array([1 - width * cells[0] for cells in bins])
    lower = np.array([1 - width * (cells[-1] + 1) for cells in bins])
    return np.concatenate([upper[:1], 0.5 * (lower[:-1] + upper[1:]), lower[-1:]])[::-1]


def wobble_positions(ra: np.ndarray, dec: np.ndarray, max_separation: float) -> tuple[np.ndarray, np.ndarray]:
    """Positions around which pointings cluster.

    Parameters
    ----------
    ra, dec : `~numpy.ndarray`
        Of the pointings in deg, shape (n,).
    max_separation : float
        In deg; pointings that are closer, or linked by others that are, are one position.

    Returns
    -------
    number : `~numpy.ndarray`
        Of the position of each pointing, shape (n,), from 0 in the order of right ascension.
    positions : `~numpy.ndarray`
        Mean right ascension and declination of each in deg, shape (m, 2).
    """
    known = np.isfinite(ra) & np.isfinite(dec)
    points, which = np.unique(np.round(np.stack([ra[known], dec[known]], axis=1), 4), axis=0, return_inverse=True)
    if len(points) == 0:
        return np.zeros(len(ra), dtype=int), np.zeros((0, 2))
    xyz = unit_vectors(*np.radians(points).T)
    near = KDTree(xyz).query_pairs(2 * np.sin(0.5 * np.radians(max_separation)), output_type="ndarray")
    graph = coo_array((np.ones(len(near)), (near[:, 0], near[:, 1])), shape=2 * (len(points),))
    count, label = connected_components(graph, directed=False)
    mean = np.array([xyz[label == k].mean(0) for k in range(count)])
    lonlat = np.stack(
        [
            np.degrees(np.arctan2(mean[:, 1], mean[:, 0])) % 360,
            np.degrees(np.arctan2(mean[:, 2], np.hypot(*mean[:, :2].T))),
        ],
        axis=1,
    )
    order = np.lexsort(lonlat.T[::-1])
    number = np.full(len(ra), -1)
    number[known] = np.argsort(order)[label[which.ravel()]]
    return number, lonlat[order]
