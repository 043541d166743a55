"""Energy and field-of-view bins of a fit, and their solid angles."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import astropy.units as u
import erfa
import numpy as np
from gammapy.maps import MapAxis
from scipy.sparse import csr_array

from gammapy_accmaker.errors import InputError

TEV_IN_MEV = 1e6
FINE = 0.1  # deg; a bin that is no wider is one place
_FARTHEST = 0.9  # of the half width of a bin, that a part of it may be from its middle
_TILT_STEPS = 25
_SMALLEST_WIDTH = 1e-9  # deg


def as_values(quantity, unit: str, argument: str) -> np.ndarray:
    """Finite numbers in a unit, of a quantity or of text such as "1 TeV"; an `InputError` names the argument."""
    example = f"but a quantity such as 1 {unit} is needed"
    try:
        values = u.Quantity(quantity).to_value(unit)
    except (TypeError, ValueError, u.UnitConversionError) as error:
        raise InputError(f"{argument}: got {quantity!r}, {example} ({error})") from error
    if not np.isfinite(values).all():
        raise InputError(f"{argument}: got {quantity!r}, {example}, without NaN and infinity")
    return values


def as_edges(quantity, unit: str, argument: str) -> np.ndarray:
    """The same for edges of bins: two or more, positive and increasing."""
    edges = check_edges(argument, as_values(quantity, unit, argument))
    if edges[0] <= 0:
        raise InputError(f"{argument}: got {quantity!r}, but edges > 0 are needed")
    return edges


def as_number(quantity, unit: str, argument: str) -> float:
    """The same for one positive number."""
    values = as_values(quantity, unit, argument)
    if values.ndim or values <= 0:
        raise InputError(f"{argument}: got {quantity!r}, but one quantity > 0 is needed")
    return float(values)


def check_edges(name: str, edges) -> np.ndarray:
    """Return the edges as an increasing, finite float array, or say which argument is wrong."""
    edges = np.asarray(edges, dtype=float)
    if edges.ndim != 1 or len(edges) < 2 or not np.all(np.isfinite(edges)) or np.any(np.diff(edges) <= 0):
        raise InputError(f"{name}: got {edges}, but edges must be finite, increasing and at least two")
    return edges


def energy_edges_per_decade(energy_min: u.Quantity, energy_max: u.Quantity, nbins_per_decade: int) -> np.ndarray:
    """Logarithmic energy edges in TeV between two energies, with at least this many bins a decade."""
    axis = MapAxis.from_energy_bounds(energy_min, energy_max, nbin=nbins_per_decade, per_decade=True, unit="TeV")
    return axis.edges.to_value("TeV")


def energy_edges_from_axis(axis: MapAxis) -> np.ndarray:
    """Edges in TeV of a reconstructed energy axis, checked."""
    if axis.name != "energy":
        raise InputError(f"energy axis: got an axis named {axis.name!r}, but background needs one named 'energy'")
    try:
        edges = axis.edges.to_value("TeV")
    except u.UnitConversionError as error:
        raise InputError(f"energy axis: got the unit {axis.unit!r}, but an energy such as 'TeV' is needed") from error
    return check_edges("energy axis", edges)


def split_bins(edges: np.ndarray, max_width: float) -> np.ndarray:
    """Edges (> 0, shape (n + 1,)) and more between them, so that no bin is wider than a number of decades."""
    parts = np.ceil(np.diff(np.log10(edges)) / max_width - 1e-6).astype(int)
    pieces = [np.geomspace(low, high, n + 1)[:-1] for low, high, n in zip(edges[:-1], edges[1:], parts, strict=True)]
    # the edges themselves to the last digit
    return np.concatenate(
        [np.append(low, piece[1:]) for low, piece in zip(edges[:-1], pieces, strict=True)] + [edges[-1:]]
    )


def merge_bins(counts: np.ndarray, edges: np.ndarray, min_counts: float, max_width: float) -> np.ndarray:
    """Merge neighbouring energy bins until each holds a number of counts or is as wide as it may be.

    The bin with the fewest counts is joined to the poorer of its neighbours, again and again, as long as the two
    together are not too wide. A bin that stays below ``min_counts`` is one that no neighbour fits.

    Parameters
    ----------
    counts : `~numpy.ndarray`
        Counts of each bin, shape (n,).
    edges : `~numpy.ndarray`
        Edges of the bins, > 0, shape (n + 1,).
    min_counts : float
        Counts that each merged bin is to hold.
    max_width : float
        Largest width of a merged bin, in decades.

    Returns
    -------
    edges : `~numpy.ndarray`
        Those of the edges that are left, the first and the last among them.
    """
    counts, edges = np.asarray(counts, dtype=float), check_edges("edges", edges)
    if len(counts) != len(edges) - 1 or edges[0] <= 0:
        raise InputError(
            f"counts, edges: got {len(counts)} counts for edges {edges}, but one a bin and edges > 0 are needed"
        )
    while len(counts) > 1:
        # entry k is about joining bins k and k + 1
        fits = np.log10(edges[2:] / edges[:-2]) <= max_width * (1 + 1e-9)
        poor = np.minimum(counts[1:], counts[:-1])
        possible = np.flatnonzero(fits & (poor < min_counts))
        if len(possible) == 0:
            break
        k = min(possible, key=lambda k: (poor[k], counts[k] + counts[k + 1]))
        counts = np.concatenate([counts[:k], [counts[k] + counts[k + 1]], counts[k + 2 :]])
        edges = np.delete(edges, k + 1)
    return edges


@dataclass(frozen=True)
class FovBins:
    """Bins of the field of view: rings of offset, or a grid in FOV_LON and FOV_LAT.

    Parameters
    ----------
    edges : tuple of `~numpy.ndarray`
        Edges in deg: ``(offset,)`` for rings, ``(fov_lon, fov_lat)`` for a grid. Bins of a grid are numbered
        with fov_lat running fastest.
    """

    edges: tuple[np.ndarray, ...]

    def __post_init__(self):
        names = ("offset",) if len(self.edges) == 1 else ("fov_lon", "fov_lat")
        object.__setattr__(self, "edges", tuple(check_edges(n, e) for n, e in zip(names, self.edges, strict=True)))
        if self.is_radial and self.edges[0][0] < 0:
            raise InputError(f"offset edges: got {self.edges[0][0]} deg, but an offset is >= 0")

    @classmethod
    def rings(cls, offset_max: float, nbin: int) -> FovBins:
        """Rings of equal width from 0 to offset_max (deg)."""
        return cls((np.linspace(0, offset_max, nbin + 1),))

    @classmethod
    def grid(cls, offset_max: float, nbin: int) -> FovBins:
        """Square grid of nbin x nbin bins within +-offset_max (deg)."""
        edges = np.linspace(-offset_max, offset_max, nbin + 1)
        return cls((edges, edges))

    @property
    def is_radial(self) -> bool:
        return len(self.edges) == 1

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(len(e) - 1 for e in self.edges)

    @property
    def size(self) -> int:
        return int(np.prod(self.shape))

    @property
    def step(self) -> float:
        """Width in deg of the widest bin along an axis."""
        return float(max(np.diff(e).max() for e in self.edges))

    @cached_property
    def centers(self) -> tuple[np.ndarray, ...]:
        """Centre of each axis in deg."""
        return tuple(0.5 * (e[1:] + e[:-1]) for e in self.edges)

    @cached_property
    def solid_angle(self) -> np.ndarray:
        """Solid angle of each bin in sr, shape (size,); exact on the sphere."""
        first = np.radians(self.edges[0])
        if self.is_radial:
            return 2 * np.pi * -np.diff(np.cos(first))
        return np.outer(np.diff(first), np.diff(np.sin(np.radians(self.edges[1])))).ravel()

    @cached_property
    def fov_lon(self) -> np.ndarray:
        """FOV_LON of each bin centre in deg, shape (size,); of a ring: its mid offset."""
        return self.centers[0] if self.is_radial else np.repeat(self.centers[0], self.shape[1])

    @cached_property
    def fov_lat(self) -> np.ndarray:
        """FOV_LAT of each bin centre in deg, shape (size,)."""
        return np.zeros(self.size) if self.is_radial else np.tile(self.centers[1], self.shape[0])

    @property
    def offset_max(self) -> float:
        """Largest offset in deg that lies in some bin."""
        if self.is_radial:
            return float(self.edges[0][-1])
        lon, lat = (np.radians(np.abs(e).max()) for e in self.edges)
        return float(np.degrees(np.arccos(np.cos(lon) * np.cos(lat))))

    @cached_property
    def continued(self) -> np.ndarray:
        """First and last value of each axis in deg, one bin beyond the edges, shape (axis, 2)."""
        return np.array([(2 * e[0] - e[1], 2 * e[-1] - e[-2]) for e in self.edges])

    def within(self, fov_lon: np.ndarray, fov_lat: np.ndarray, ranges) -> np.ndarray:
        """Whether positions (deg) lie within a range of each axis, of which the end does not count."""
        axes = np.moveaxis(self.positions(fov_lon, fov_lat), -1, 0)
        return np.all([(x >= low) & (x < high) for x, (low, high) in zip(axes, ranges, strict=True)], axis=0)

    def weights_at(self, fov_lon: np.ndarray, fov_lat: np.ndarray, ends) -> csr_array:
        """Linear interpolation from the bin centres to n positions (deg) as a matrix, shape (n, size).

        ``ends``: of each axis, a range that positions are moved into; beyond the outer centres a line goes on.
        """
        n = len(fov_lon)
        columns, weights = np.zeros((n, 1), dtype=int), np.ones((n, 1))
        for x, c, (low, high) in zip(self.positions(fov_lon, fov_lat).T, self.centers, ends, strict=True):
            if len(c) == 1:
                continue
            x = np.clip(x, low, high)
            left = np.clip(np.searchsorted(c, x, side="right") - 1, 0, len(c) - 2)
            share = (x - c[left]) / (c[left + 1] - c[left])
            pair, shares = np.stack([left, left + 1], axis=1), np.stack([1 - share, share], axis=1)
            columns = (columns[:, :, None] * len(c) + pair[:, None, :]).reshape(n, -1)
            weights = (weights[:, :, None] * shares[:, None, :]).reshape(n, -1)
        starts = np.arange(n + 1) * columns.shape[1]
        return csr_array((weights.ravel(), columns.ravel(), starts), shape=(n, self.size))

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Serial form, for a model that has these bins."""
        return {f"fov_edges_{k}": edges for k, edges in enumerate(self.edges)}

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> FovBins:
        """The inverse of `to_arrays`."""
        return cls(tuple(arrays[k] for k in ("fov_edges_0", "fov_edges_1") if k in arrays))

    def index(self, fov_lon: np.ndarray, fov_lat: np.ndarray) -> np.ndarray:
        """Number of the bin that holds each position (deg), -1 outside; the last edge belongs to no bin."""
        if self.is_radial:
            return axis_index(self.edges[0], offset(fov_lon, fov_lat))
        i, j = axis_index(self.edges[0], fov_lon), axis_index(self.edges[1], fov_lat)
        return np.where((i < 0) | (j < 0), -1, i * self.shape[1] + j)

    def spread(self, fov_lon: np.ndarray, fov_lat: np.ndarray, width: float) -> list[tuple[np.ndarray, np.ndarray]]:
        """Bins that squares of a width (deg) around positions reach: some numbers for each square, -1 outside, and the
        share of it in them. In rings a square is as wide in offset."""
        half = 0.5 * width
        if self.is_radial:
            r = offset(fov_lon, fov_lat)
            return _spread_on_axis(self.edges[0], np.maximum(r - half, 0), r + half)
        positions = zip(self.edges, (fov_lon, fov_lat), strict=True)
        along, across = (_spread_on_axis(edges, x - half, x + half) for edges, x in positions)
        return [
            (np.where((i < 0) | (j < 0), -1, i * self.shape[1] + j), part * other)
            for i, part in along
            for j, other in across
        ]

    def subpoints(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Positions (deg) of points that fill each bin evenly in solid angle, shapes (size, number of points).

        Grid bins get n x n points; rings get points at n offsets and, at each, as many angles as keep their
        distance. They are not to be changed.
        """
        return _subpoints(n, *self._numbers)[:2]

    def subpoint_vectors(self, n: int) -> np.ndarray:
        """Unit vectors in the camera of `subpoints`, shape (size, number of points, 3)."""
        return _subpoints(n, *self._numbers)[2]

    def subpoint_positions(self, n: int) -> np.ndarray:
        """`positions` of `subpoints`, shape (size, number of points, number of axes)."""
        return _subpoints(n, *self._numbers)[3]

    @cached_property
    def _numbers(self):
        return tuple(tuple(edges.tolist()) for edges in self.edges)

    def _grid_subpoints(self, n):
        lon, lat = (e[:-1, None] + np.diff(e)[:, None] * (np.arange(n) + 0.5) / n for e in self.edges)
        shape = (*self.shape, n, n)
        lon = np.broadcast_to(lon[:, None, :, None], shape).reshape(self.size, -1)
        return lon, np.broadcast_to(lat[None, :, None, :], shape).reshape(self.size, -1)

    def _ring_subpoints(self, n):
        cos = np.cos(np.radians(self.edges[0]))
        fraction = (np.arange(n) + 0.5) / n
        theta = np.arccos(cos[:-1, None] + np.diff(cos)[:, None] * fraction)
        nphi = int(np.ceil(2 * np.pi * theta.max() / np.radians(np.diff(self.edges[0]).min() / n)))
        phi = 2 * np.pi * (np.arange(nphi) + 0.5) / nphi
        x = np.cos(theta)[:, :, None] * np.ones(nphi)
        y, z = np.sin(theta)[:, :, None] * np.cos(phi), np.sin(theta)[:, :, None] * np.sin(phi)
        lon, lat = np.degrees(np.arctan2(y, x)), np.degrees(np.arcsin(z))
        return lon.reshape(self.size, -1), lat.reshape(self.size, -1)

    def positions(self, fov_lon: np.ndarray, fov_lat: np.ndarray) -> np.ndarray:
        """Positions (deg) along the axes of the bins: an offset, or FOV_LON and FOV_LAT, behind all other axes."""
        return np.stack([offset(fov_lon, fov_lat)] if self.is_radial else [fov_lon, fov_lat], axis=-1)


@lru_cache(maxsize=8)
def _subpoints(n, *edges):
    """They are the same for all runs, and in all of the objects that are made of one configuration."""
    fov = FovBins(tuple(np.array(e) for e in edges))
    lon, lat = fov._ring_subpoints(n) if fov.is_radial else fov._grid_subpoints(n)
    found = lon, lat, erfa.s2c(np.radians(lon), np.radians(lat)), fov.positions(lon, lat)
    for values in found:
        values.flags.writeable = False
    return found


def moved_weights(weights: np.ndarray, positions: np.ndarray, displacement: np.ndarray) -> np.ndarray:
    """Weights of points that stand for the part of a bin that was seen: of those with its mean position the most even.

    Parameters
    ----------
    weights : `~numpy.ndarray`, shape (bin, point)
        Of the points of the whole bin, > 0 and with the sum 1.
    positions : `~numpy.ndarray`, shape (bin, point, axis)
    displacement : `~numpy.ndarray`, shape (bin, axis)
        How far the mean position of the part is from that of the bin.

    Returns
    -------
    weights : `~numpy.ndarray`, shape (bin, point)
        > 0 and with the sum 1; they fall or rise exponentially along a direction.
    """
    out, here = np.array(weights, dtype=float), np.any(displacement != 0, axis=1)
    x = positions[here] - np.einsum("bp,bpa->ba", weights[here], positions[here])[:, None]
    reach = np.maximum(np.abs(x).max(axis=1), 1e-12)
    target, tilt = np.clip(displacement[here], -_FARTHEST * reach, _FARTHEST * reach), np.zeros(reach.shape)
    for _ in range(_TILT_STEPS):  # Newton's method for a convex function
        moved = weights[here] * np.exp(np.einsum("bpa,ba->bp", x, tilt))
        moved /= moved.sum(axis=1, keepdims=True)
        mean = np.einsum("bp,bpa->ba", moved, x)
        covariance = np.einsum("bp,bpa,bpc->bac", moved, x, x) - mean[:, :, None] * mean[:, None]
        covariance += 1e-6 * reach[:, :, None] ** 2 * np.eye(reach.shape[1])
        step = np.linalg.solve(covariance, (target - mean)[:, :, None])[:, :, 0]
        tilt += np.clip(step, -1 / reach, 1 / reach)
    out[here] = moved
    return out


def axis_index(edges: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Number of the bin that holds each value, -1 outside and for NaN."""
    index = np.searchsorted(edges, values, side="right") - 1
    return np.where((index >= 0) & (values < edges[-1]), index, -1)


def _spread_on_axis(edges, start, stop):
    """The two bins of an axis that intervals, no wider than a bin, reach, -1 outside, and the share in each."""
    low, high = (np.searchsorted(edges, x, side="right") - 1 for x in (start, stop))
    beyond = (stop - edges[np.clip(high, 0, len(edges) - 1)]) / np.maximum(stop - start, _SMALLEST_WIDTH)
    upper = np.where(high > low, np.clip(beyond, 0, 1), 0)
    return [(np.where(k < len(edges) - 1, k, -1), share) for k, share in ((low, 1 - upper), (high, upper))]


def azimuth_sector(edges: np.ndarray, azimuth: np.ndarray) -> np.ndarray:
    """Number of the sector of each azimuth (deg), the last of which goes on from the last edge
    through 360 deg to the first."""
    return (np.searchsorted(edges, np.asarray(azimuth) % 360, side="right") - 1) % len(edges)


def offset(fov_lon: np.ndarray, fov_lat: np.ndarray) -> np.ndarray:
    """Angular distance from the pointing, in deg, of field-of-view coordinates in deg."""
    lon, lat = np.radians(fov_lon), np.radians(fov_lat)
    # haversine: exact near the centre, where arccos loses digits
    s = np.sin(0.5 * lat) ** 2 + np.cos(lat) * np.sin(0.5 * lon) ** 2
    return np.degrees(2 * np.arcsin(np.sqrt(s)))


@dataclass(frozen=True)
class CountsBins:
    """Bins of the counts of a reduced run.

    Attributes
    ----------
    energy_edges : `~numpy.ndarray`
        In TeV.
    fov : `FovBins`
    alignment : {"altaz", "radec"}
        Frame that the camera axes follow.
    offset_max : float
        In deg; field-of-view bins whose centre is not closer than this hold nothing. A fit that keeps the corners of a
        grid has no limit.
    """

    energy_edges: np.ndarray
    fov: FovBins
    alignment: str = "altaz"
    offset_max: float = np.inf

    def __post_init__(self):
        object.__setattr__(self, "energy_edges", check_edges("energy edges", self.energy_edges))
        if self.alignment not in ("altaz", "radec"):
            raise InputError(f"fov_alignment: got {self.alignment!r}, but 'altaz' or 'radec' is needed")

    @cached_property
    def inside(self) -> np.ndarray:
        """Field-of-view bins that may hold something, shape (fov.size,)."""
        return offset(self.fov.fov_lon, self.fov.fov_lat) < self.offset_max
