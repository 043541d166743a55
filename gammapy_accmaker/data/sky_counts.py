"""Counts of a run on the sky: what an acceptance that is fixed in the camera cannot follow is seen there.

They are kept with the reduced run, in a few energy bands and pixels of 0.1 deg, so that the residuals of a fit on the
sky cost no second reading of the events.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from gammapy_accmaker.camera.bins import FovBins, axis_index
from gammapy_accmaker.camera.track import FovTrack, time_nodes, unit_vectors, vectors_to_lonlat
from gammapy_accmaker.models.source_terms import AmplitudeFit, CountsPatch
from gammapy_accmaker.utils.few_bytes import in_few_bytes

SKY_PIXEL = 0.1  # deg
_BAND_WIDTH = 0.25  # dex, about
_FEWEST_POINTS = 4  # along each side of a pixel
_STEP, _TURN = 300.0, np.radians(8)  # s, over which a turn of the field is measured; between nodes that follow it


def sky_bands(energy_edges: np.ndarray) -> np.ndarray:
    """Those of the energy edges in TeV, about a quarter of a decade apart, between which counts are kept on the sky."""
    log = np.log10(energy_edges)
    n = max(round((log[-1] - log[0]) / _BAND_WIDTH), 1)
    chosen = np.abs(log[:, None] - np.linspace(log[0], log[-1], n + 1)).argmin(0)
    return energy_edges[np.unique(chosen)]


@dataclass(frozen=True)
class SkyCounts:
    """Counts of a run on a grid around its pointing, north up; what is excluded is counted too.

    Attributes
    ----------
    index, counts : `~numpy.ndarray`, shape (n,)
        Band and pixel with counts, ``(band * side + row) * side + column``, and its counts, in few bytes.
    side : int
        Pixels along each side of the grid, see `pixels`.
    matrix : `~numpy.ndarray`, shape (3, 3)
        From ICRS unit vectors to the axes of the grid: to the pointing, to FOV_LON and to FOV_LAT of
        ``FoVICRSFrame``.
    slices : `~numpy.ndarray`, int8, shape (m,)
        Slice of the run that each node in time belongs to.
    seconds : `~numpy.ndarray`, shape (m,)
        Good time that each node stands for.
    turns : `~numpy.ndarray`, shape (m, 3, 3)
        From the axes of the grid to those of the camera.
    signal : `CountsPatch` or None
        Counts that gamma-ray sources of known flux add, in the energy bins of the run and the pixels.
    sources : tuple of `CountsPatch`
        Those of each source whose amplitude is fitted, with the flux of its model.
    """

    index: np.ndarray
    counts: np.ndarray
    side: int
    matrix: np.ndarray
    slices: np.ndarray
    seconds: np.ndarray
    turns: np.ndarray
    signal: CountsPatch | None = None
    sources: tuple[CountsPatch, ...] = ()

    @classmethod
    def of(
        cls,
        track: FovTrack,
        parts: list[FovTrack],
        xyz: np.ndarray,
        energy_bin: np.ndarray,
        energy_edges: np.ndarray,
        offset_max: float,
    ) -> SkyCounts:
        """Count events.

        Parameters
        ----------
        track : `FovTrack`
            Of the run.
        parts : list of `FovTrack`
            Of its slices.
        xyz, energy_bin : `~numpy.ndarray`, shapes (n, 3), (n,)
            ICRS unit vectors of its events, and the energy bins that hold them, -1 for none.
        energy_edges : `~numpy.ndarray`
            Of these bins, in TeV; they are taken together to `sky_bands`.
        offset_max : float
            In deg; the grid reaches so far.
        """
        matrix, side = track.radec_matrix, 2 * int(np.ceil((offset_max + track.pointing_drift) / SKY_PIXEL))
        of_bin = axis_index(sky_bands(energy_edges), energy_edges)
        pixel, band = _pixel_of(xyz, matrix, side), of_bin[energy_bin]  # -1 at the last edge, which is no bin
        inside = (band >= 0) & (pixel >= 0)
        index, counts = np.unique(band[inside] * side**2 + pixel[inside], return_counts=True)
        number, seconds, turns = [], [], []
        for k, part in enumerate(parts):
            turn = np.linalg.norm(np.diff(part.matrices_at(time_nodes(part.intervals, _STEP)[0]), axis=0), axis=(1, 2))
            turn = turn.sum() / np.sqrt(2)
            nodes, weights = time_nodes(part.intervals, part.ontime * _TURN / turn if turn > _TURN else None)
            number.append(np.full(len(nodes), k))
            seconds.append(weights)
            turns.append(part.matrices_at(nodes) @ matrix.T)
        return cls(
            index=in_few_bytes(index),
            counts=in_few_bytes(counts),
            side=side,
            matrix=matrix,
            slices=np.concatenate(number).astype(np.int8),
            seconds=np.concatenate(seconds),
            turns=np.concatenate(turns),
        )

    def binned(self, xyz: np.ndarray, counts: np.ndarray, width: float) -> CountsPatch:
        """Counts of squares of a width (deg) around positions, ICRS unit vectors of shape (n, 3), in the pixels; counts
        of shape (n_energy, n)."""
        edges = (np.arange(self.side + 1) - self.side // 2) * SKY_PIXEL
        grid = FovBins((edges, edges))
        lon, lat = np.degrees(vectors_to_lonlat(xyz @ self.matrix.T))
        parts = []
        for pixel, share in grid.spread(lat, lon, width):
            here = np.flatnonzero((pixel >= 0) & (share > 0))
            parts.append((here, pixel[here], share[here]))
        return CountsPatch.spread(counts, parts, self.side**2)

    def with_amplitudes(self, fit: AmplitudeFit) -> SkyCounts:
        """The same with what the sources add at fitted amplitudes in the signal."""
        return replace(self, signal=fit.bands.signal(self.signal, self.sources, fit.values), sources=())

    def image(self, n_band: int) -> np.ndarray:
        """Counts in the pixels, shape (n_band, side ** 2)."""
        out = np.zeros(n_band * self.side**2)
        out[self.index] = self.counts
        return out.reshape(n_band, -1)

    def points(self, patch: CountsPatch, step: float) -> tuple[np.ndarray, np.ndarray]:
        """Counts in pixels as counts at points, no more than ``step`` deg from each other: ICRS unit vectors of shape
        (n, 3), and counts of shape (n_energy, n)."""
        n = max(int(np.ceil(SKY_PIXEL / step)), _FEWEST_POINTS)
        within = (np.arange(n) + 0.5) / n
        row, column = np.divmod(patch.columns, self.side)
        lat = (row[:, None, None] + within[:, None] - self.side // 2) * SKY_PIXEL
        lon = (column[:, None, None] + within - self.side // 2) * SKY_PIXEL
        lon, lat = (np.radians(a).ravel() for a in np.broadcast_arrays(lon, lat))
        return unit_vectors(lon, lat) @ self.matrix, np.repeat(patch.values / n**2, n**2, axis=1)

    @property
    def pixels(self) -> np.ndarray:
        """Unit vectors, along the axes of the grid, of the centres of the pixels, shape (side ** 2, 3)."""
        return _pixels(self.side)


@lru_cache(maxsize=4)
def _pixels(side):
    at = np.radians((np.arange(side) + 0.5 - side // 2) * SKY_PIXEL)
    lat, lon = (a.ravel() for a in np.meshgrid(at, at, indexing="ij"))
    return unit_vectors(lon, lat)


def _pixel_of(xyz, matrix, side):
    """Number of the pixel of each ICRS unit vector, -1 outside of the grid."""
    lon, lat = np.degrees(vectors_to_lonlat(xyz @ matrix.T))
    column, row = (np.floor(a / SKY_PIXEL).astype(int) + side // 2 for a in (lon, lat))
    inside = (column >= 0) & (column < side) & (row >= 0) & (row < side)
    return np.where(inside, row * side + column, -1)
