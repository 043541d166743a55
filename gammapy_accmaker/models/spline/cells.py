"""Field-of-view pixels gathered into polar cells, and smooth functions of the camera frame.

A model's rate falls steeply with offset and slowly with position angle, so thin rings cut into sectors keep what a
fit needs in a tenth of the pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.sparse import csr_array

from gammapy_accmaker.models.bsplines import BSplineAxis

__all__ = ["CAMERA_MODES", "FovCells", "asymmetry_basis", "asymmetry_orders", "camera_modes"]

RING_WIDTH = 0.1  # deg
N_SECTOR = 12
ASYMMETRY_ORDER = 4  # highest harmonic of the position angle

# functions of (x, y), the offset in units of the largest one; "radial" has about zero mean over the counts
CAMERA_MODES = {
    "flat": lambda x, y: np.ones_like(x),
    "radial": lambda x, y: x * x + y * y - 0.4,
    "lon": lambda x, y: x,
    "lat": lambda x, y: y,
}


def camera_modes(fov_lon, fov_lat, offset_max: float, names) -> np.ndarray:
    """Values of the named `CAMERA_MODES` at positions in deg, shape (n, len(names))."""
    x, y = np.asarray(fov_lon) / offset_max, np.asarray(fov_lat) / offset_max
    return np.stack([CAMERA_MODES[name](x, y) for name in names], axis=-1) if len(names) else np.zeros((len(x), 0))


def asymmetry_basis(fov_lon, fov_lat, axis: BSplineAxis) -> np.ndarray:
    """Harmonics of the position angle times B-splines of the offset: zero mean over every ring.

    Parameters
    ----------
    fov_lon, fov_lat : array_like, shape (n,)
        Positions in deg.
    axis : `BSplineAxis`
        Of the offset in deg.

    Returns
    -------
    basis : `~numpy.ndarray`, shape (n, 2 * ASYMMETRY_ORDER * axis.n)
    """
    offset, angle = np.hypot(fov_lon, fov_lat), np.arctan2(fov_lat, fov_lon)
    radial = axis.basis(offset)
    # a harmonic of order m vanishes like offset ** m at the centre, or it would jump there
    rise = np.minimum(offset / (0.3 * axis.hi), 1)
    columns = [
        radial * (rise**m * wave(m * angle))[:, None]
        for m in range(1, ASYMMETRY_ORDER + 1)
        for wave in (np.cos, np.sin)
    ]
    return np.hstack(columns)


def asymmetry_orders(axis: BSplineAxis) -> np.ndarray:
    """Order of the harmonic of each column of `asymmetry_basis`."""
    return np.repeat(np.arange(1, ASYMMETRY_ORDER + 1), 2 * axis.n)


@dataclass(frozen=True)
class FovCells:
    """Polar cells that hold field-of-view pixels; the number of a cell is ``ring * n_sector + sector``.

    Parameters
    ----------
    fov_lon, fov_lat : `~numpy.ndarray`, shape (n_fov,)
        Pixel centres in deg.
    solid_angle : `~numpy.ndarray`, shape (n_fov,)
        In sr.
    """

    fov_lon: np.ndarray
    fov_lat: np.ndarray
    solid_angle: np.ndarray
    n_sector: int = N_SECTOR

    @cached_property
    def offset(self) -> np.ndarray:
        """Offset of each pixel in deg."""
        return np.hypot(self.fov_lon, self.fov_lat)

    @cached_property
    def offset_max(self) -> float:
        """Largest offset of a pixel in deg."""
        return float(max(self.offset.max(), 1e-3))

    @cached_property
    def n_ring(self) -> int:
        return max(int(np.ceil(self.offset_max / RING_WIDTH)), 1)

    @property
    def n_cell(self) -> int:
        return self.n_ring * self.n_sector

    @cached_property
    def ring_of_cell(self) -> np.ndarray:
        return np.repeat(np.arange(self.n_ring), self.n_sector)

    @cached_property
    def membership(self) -> csr_array:
        """1 where a pixel lies in a cell, shape (n_fov, n_cell)."""
        ring = np.minimum((self.offset / self.offset_max * self.n_ring).astype(int), self.n_ring - 1)
        angle = np.arctan2(self.fov_lat, self.fov_lon) % (2 * np.pi)
        sector = (angle / (2 * np.pi) * self.n_sector).astype(int) % self.n_sector
        rows = np.arange(len(ring))
        return csr_array((np.ones(len(ring)), (rows, ring * self.n_sector + sector)), shape=(len(ring), self.n_cell))

    def mean(self, values: np.ndarray) -> np.ndarray:
        """Mean over the pixels of each cell, shapes (n_fov, k) to (n_cell, k); 0 in cells without pixels."""
        pixels = np.maximum(self.membership.sum(axis=0), 1)
        return (self.membership.T @ values) / pixels[:, None]

    def asymmetry(self, axis: BSplineAxis) -> np.ndarray:
        """`asymmetry_basis` averaged over the pixels of each cell."""
        return self.mean(asymmetry_basis(self.fov_lon, self.fov_lat, axis))

    def ring_mean(self, values: np.ndarray, default: np.ndarray) -> np.ndarray:
        """Mean over the pixels of each ring, shapes (n_fov, k) to (n_ring, k); ``default`` in rings without pixels."""
        pixels = self._rings(self.membership.sum(axis=0)[:, None])
        return np.where(pixels > 0, self._rings(self.membership.T @ values) / np.maximum(pixels, 1), default)

    def _rings(self, cells):
        return cells.reshape(self.n_ring, self.n_sector, -1).sum(axis=1)

    @cached_property
    def ring_offset(self) -> np.ndarray:
        """Middle of each ring in deg."""
        return (np.arange(self.n_ring) + 0.5) * self.offset_max / self.n_ring
