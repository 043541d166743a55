"""The parts of an exclusion: sky regions and mask maps made into one question, whether they hold a position.

Each region is projected on a plane of its own, so that regions may lie anywhere on the sky, and circles, by far the
most common, are answered by one scalar product.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import astropy.units as u
import numpy as np
from astropy.coordinates import SkyCoord
from astropy.wcs import WCS
from gammapy.maps import Map, WcsGeom
from regions import CircleSkyRegion, CompoundSkyRegion, LineSkyRegion, PixCoord, PixelRegion, PointSkyRegion
from scipy.linalg import null_space
from scipy.ndimage import binary_erosion
from scipy.spatial import KDTree

from gammapy_accmaker.camera.track import unit_vectors, vectors_to_lonlat
from gammapy_accmaker.data.exclusion_data import MaskData, region_from_text
from gammapy_accmaker.errors import InputError

__all__ = ["Circle", "make_part", "separation"]

RASTER = 0.01  # deg; between the points of a region that is widened by a margin
RASTER_SIZE = 1000  # points across the largest regions


# Each part of an exclusion has `contains`, and a circle around it: `center` (ICRS vector) and `radius` (deg).
@dataclass(frozen=True)
class Circle:
    """All closer than a radius (deg) to an ICRS unit vector; half of the sky at 90 deg."""

    center: np.ndarray
    radius: float

    def contains(self, xyz):
        return _in_circle(xyz, self)


@dataclass(frozen=True)
class _PlaneRegion:
    """A region on the tangential plane around its own centre."""

    pixel_region: PixelRegion
    wcs: WCS
    center: np.ndarray
    radius: float

    def contains(self, xyz):
        inside = _in_circle(xyz, self)
        lon, lat = vectors_to_lonlat(xyz[inside])
        x, y = self.wcs.wcs_world2pix(np.degrees(lon), np.degrees(lat), 0)
        inside[inside] = self.pixel_region.contains(PixCoord(x, y))
        return inside


@dataclass(frozen=True)
class _Compound:
    """Two parts, each on a plane of its own, and how they are combined."""

    first: object
    second: object
    operator: Callable
    center: np.ndarray
    radius: float

    def contains(self, xyz):
        return self.operator(self.first.contains(xyz), self.second.contains(xyz))


@dataclass(frozen=True)
class _Mask:
    """A map that is False where the sky is excluded; what lies outside of the map is not excluded."""

    data: MaskData
    to_frame: np.ndarray  # ICRS vectors -> vectors of the map's frame
    center: np.ndarray
    radius: float

    @cached_property
    def mask(self) -> Map:
        return self.data.to_map()

    def __getstate__(self):
        # a map of the whole sky is large, and its data are not
        return {name: value for name, value in vars(self).items() if name != "mask"}

    def contains(self, xyz):
        lon, lat = vectors_to_lonlat(xyz @ self.to_frame.T)
        value = self.mask.get_by_coord((np.degrees(lon) * u.deg, np.degrees(lat) * u.deg))
        return np.asarray(value) == 0


@dataclass(frozen=True)
class _Widened:
    """A part and everything closer than a distance to its points."""

    part: object
    points: KDTree
    distance: float  # chord on the unit sphere
    center: np.ndarray
    radius: float

    def contains(self, xyz):
        inside = _in_circle(xyz, self)
        distance, _ = self.points.query(xyz[inside], distance_upper_bound=self.distance)
        inside[inside] = np.isfinite(distance) | self.part.contains(xyz[inside])
        return inside


def _in_circle(xyz, circle):
    return xyz @ circle.center > np.cos(np.radians(min(circle.radius, 180.0)))


def separation(a, b):
    """Angle in deg between unit vectors, shapes (..., 3) and (3,)."""
    return np.degrees(np.arctan2(np.linalg.norm(np.cross(a, b), axis=-1), a @ b))


def make_part(data: str | MaskData, margin: float):
    """The part that the data of a sky region or of a mask make, widened by a margin (deg)."""
    if isinstance(data, MaskData):
        return _mask_part(data, margin)
    return _region_part(region_from_text(data), margin)


def _region_part(item, margin):
    if isinstance(item, (CircleSkyRegion, PointSkyRegion)):
        radius = item.radius.to_value("deg") if isinstance(item, CircleSkyRegion) else 0.0
        return Circle(_icrs_vector(item.center), radius + margin)
    part = _compound_part(item) if isinstance(item, CompoundSkyRegion) else _plane_part(item)
    if margin == 0:
        return part
    if isinstance(item, LineSkyRegion):
        points, spacing = np.linspace(_icrs_vector(item.start), _icrs_vector(item.end), RASTER_SIZE), 0.0
        points /= np.linalg.norm(points, axis=1, keepdims=True)
    else:
        points, spacing = _raster(part)
    return _widened(part, points, spacing, margin)


def _mask_part(data, margin):
    mask = data.to_map()
    geom = mask.geom
    axes = SkyCoord([0, 90, 0] * u.deg, [0, 0, 90] * u.deg, frame="icrs").transform_to(geom.frame)
    to_frame = axes.cartesian.xyz.value
    excluded = ~mask.data
    if not excluded.any():
        return _Mask(data, to_frame, to_frame[0], -np.inf)
    pixels = tuple(index[excluded] for index in geom.get_idx())
    lon, lat = geom.pix_to_coord(pixels)
    points = unit_vectors(lon.to_value("rad"), lat.to_value("rad")) @ to_frame
    center, radius = _circle_around(points)
    if isinstance(geom, WcsGeom):
        pixel = geom.pixel_scales.to_value("deg").max()
        points = points[_edge(excluded)[excluded]]
    else:
        pixel = np.degrees(np.sqrt(geom.solid_angle().to_value("sr").max()))
        if margin > 0:
            points = points[_healpix_edge(geom, pixels[0])]
    return _widened(_Mask(data, to_frame, center, radius + pixel), points, pixel, margin)


def _widened(part, points, spacing, margin):
    """The part and all closer than a margin to its points, which stand for cells of a spacing (both in deg)."""
    if margin == 0 or len(points) == 0:
        return part
    distance = margin + 0.5 * spacing
    chord = 2 * np.sin(0.5 * np.radians(min(distance, 180.0)))
    return _Widened(part, KDTree(points), chord, part.center, part.radius + distance)


def _raster(part, edge=True):
    """Points, shape (n, 3), that fill a part evenly, or its edge only, and their spacing in deg."""
    if isinstance(part, _Compound):
        # a hole has its edge in the inside of another part
        first, second = _raster(part.first, edge=False), _raster(part.second, edge=False)
        points = np.concatenate([first[0], second[0]])
        return points[part.contains(points)], max(first[1], second[1])
    # zenithal equal-area plane around the centre
    reach = 2 * np.sin(0.5 * np.radians(min(part.radius, 180.0)))
    n = int(np.clip(2 * np.degrees(reach) / RASTER, 2, RASTER_SIZE))
    x, y = np.meshgrid(*2 * [np.linspace(-reach, reach, n)])
    r = np.minimum(np.hypot(x, y), 2)[..., None]
    plane = np.stack([x, y], axis=-1) @ null_space(part.center[None]).T
    points = (1 - 0.5 * r**2) * part.center + np.sqrt(1 - 0.25 * r**2) * plane
    inside = part.contains(points.reshape(-1, 3)).reshape(n, n) & (r[..., 0] <= reach)
    return points[_edge(inside) if edge else inside], np.degrees(2 * reach / (n - 1))


def _edge(inside):
    """The pixels of a mask that touch what is outside."""
    return inside & ~binary_erosion(inside, np.ones((3, 3)))


def _healpix_edge(geom, pixels):
    """Which of some HEALPix pixels touch others."""
    from healpy import get_all_neighbours  # what gammapy needs for such a map

    around = get_all_neighbours(int(geom.nside.flat[0]), pixels, nest=geom.nest)
    # a pixel at the corner of a face has seven neighbours, and -1
    return ~(np.isin(around, pixels) | (around < 0)).all(axis=0)


def _circle_around(points):
    """Centre and radius (deg) of a circle around unit vectors, shape (n, 3)."""
    center = points.mean(0)
    norm = np.linalg.norm(center)
    center = center / norm if norm > 1e-6 else points[0]
    return center, float(separation(points, center).max())


def _icrs_vector(position):
    return unit_vectors(position.icrs.ra.rad, position.icrs.dec.rad)


def _some_position(region):
    """A position in or near the region, where its tangential plane can touch the sky."""
    if hasattr(region, "center"):
        return region.center.icrs
    for name in ("vertices", "start"):
        if hasattr(region, name):
            lon, lat = vectors_to_lonlat(_circle_around(np.atleast_2d(_icrs_vector(getattr(region, name))))[0])
            return SkyCoord(lon * u.rad, lat * u.rad, frame="icrs")
    raise InputError(f"exclusion: a {type(region).__name__} has no centre; draw it as a polygon or give a mask map")


def _compound_part(region):
    first, second = _region_part(region.region1, 0.0), _region_part(region.region2, 0.0)
    radius = max(first.radius, separation(second.center, first.center) + second.radius)
    return _Compound(first, second, region.operator, first.center, radius)


def _plane_part(region):
    wcs = WcsGeom.create(skydir=_some_position(region), binsz=RASTER, npix=(1, 1), proj="TAN", frame="icrs").wcs
    pixel_region = region.to_pixel(wcs)
    try:
        box = pixel_region.bounding_box
    except ValueError as error:  # a corner is not on the tangential plane
        raise InputError(f"exclusion: {region} spans more than half of the sky; split it or give a mask map") from error
    corners = np.array([[x, y] for x in (box.ixmin - 1, box.ixmax) for y in (box.iymin - 1, box.iymax)], dtype=float)
    center, radius = _circle_around(unit_vectors(*np.radians(wcs.wcs_pix2world(corners, 0)).T))
    return _PlaneRegion(pixel_region, wcs, center, radius)
