"""Which sky positions are left out of a fit: regions, region files and mask maps made into one question.

Each region is projected on a plane of its own, so that regions may lie anywhere on the sky, and circles, by far the
most common, are answered by one scalar product.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import astropy.units as u
import numpy as np
from astropy.coordinates import SkyCoord
from gammapy.maps import Map, WcsGeom
from gammapy.utils.scripts import make_path
from regions import CircleSkyRegion, CompoundSkyRegion, PixCoord, PointSkyRegion, Regions, SkyRegion

from gammapy_accmaker.errors import InputError
from gammapy_accmaker.reduction.fov import unit_vectors, vectors_to_lonlat

__all__ = ["Exclusion"]

RASTER = 0.01  # deg; of regions that are widened by a margin


@dataclass(frozen=True)
class _Circle:
    center: np.ndarray
    radius: float  # deg

    def contains(self, xyz):
        return xyz @ self.center > np.cos(np.radians(self.radius))


@dataclass(frozen=True)
class _PlaneRegion:
    """A region on the tangential plane around its own centre."""

    pixel_region: object
    wcs: object
    center: np.ndarray
    radius: float  # deg; of a circle around the region

    def contains(self, xyz):
        inside = xyz @ self.center > np.cos(np.radians(self.radius))
        lon, lat = vectors_to_lonlat(xyz[inside])
        x, y = self.wcs.wcs_world2pix(np.degrees(lon), np.degrees(lat), 0)
        inside[inside] = self.pixel_region.contains(PixCoord(x, y))
        return inside


@dataclass(frozen=True)
class _Mask:
    """A map that is False where the sky is excluded; what lies outside of the map is not excluded."""

    mask: Map
    to_frame: np.ndarray  # ICRS vectors -> vectors of the map's frame

    def contains(self, xyz):
        lon, lat = vectors_to_lonlat(xyz @ self.to_frame.T)
        value = self.mask.get_by_coord((np.degrees(lon) * u.deg, np.degrees(lat) * u.deg))
        return np.asarray(value) == 0


class Exclusion:
    """Sky positions that are left out of a fit.

    Parameters
    ----------
    exclusion : None, `~regions.SkyRegion`, `~regions.Regions`, str, `~pathlib.Path`, `~gammapy.maps.Map` or a list of these
        Sky regions of any kind, region files (ds9, crtf, fits), masks that are False where excluded.
    margin : `~astropy.units.Quantity`
        Everything closer than this to a region is excluded too. A point needs one to exclude anything.
    """

    def __init__(self, exclusion=None, margin: u.Quantity = 0 * u.deg):
        margin = u.Quantity(margin).to_value("deg")
        if not margin >= 0:
            raise InputError(f"exclusion margin: got {margin} deg, but a margin is >= 0 deg")
        self._parts = tuple(_make_part(item, margin) for item in _flatten(exclusion))

    def __len__(self):
        return len(self._parts)

    def near(self, center: np.ndarray, radius: float) -> Exclusion:
        """The part of the exclusion that can touch a circle around an ICRS unit vector (radius in deg)."""
        close = Exclusion()
        close._parts = tuple(p for p in self._parts if isinstance(p, _Mask) or _separation(p.center, center) < radius + p.radius)
        return close

    def contains(self, xyz: np.ndarray) -> np.ndarray:
        """Whether each ICRS unit vector, shape (n, 3), is excluded."""
        excluded = np.zeros(len(xyz), dtype=bool)
        for part in self._parts:
            excluded |= part.contains(xyz)
        return excluded


def _separation(a, b):
    return np.degrees(np.arctan2(np.linalg.norm(np.cross(a, b)), a @ b))


def _flatten(exclusion):
    if exclusion is None:
        return
    if isinstance(exclusion, (str, Path)):
        yield from _read_regions(exclusion)
    elif isinstance(exclusion, (SkyRegion, Map)):
        yield exclusion
    elif isinstance(exclusion, Iterable):
        for item in exclusion:
            yield from _flatten(item)
    else:
        raise InputError(
            f"exclusion: got {type(exclusion).__name__}, but sky regions, a region file, a mask map or a list of "
            "these are needed; convert a pixel region with `region.to_sky(wcs)`"
        )


def _read_regions(path):
    path = make_path(path)
    if not path.is_file():
        raise InputError(f"exclusion: there is no region file {path}; give the path of a ds9, crtf or fits region file")
    try:
        found = Regions.read(path)
    except Exception as error:  # the parsers of `regions` raise many kinds
        raise InputError(f"exclusion: {path} cannot be read as a ds9, crtf or fits region file ({error})") from error
    for region in found:
        if not isinstance(region, SkyRegion):
            raise InputError(f"exclusion: {path} holds a {type(region).__name__} in pixel coordinates; sky coordinates are needed")
    return found


def _make_part(item, margin):
    if isinstance(item, Map):
        return _mask_part(item, margin)
    if not item.meta.get("include", True):
        raise InputError(f"exclusion: {item} has a minus sign (all but the region); list the excluded regions without it")
    if isinstance(item, (CircleSkyRegion, PointSkyRegion)):
        radius = item.radius.to_value("deg") if isinstance(item, CircleSkyRegion) else 0.0
        return _Circle(_icrs_vector(item.center), radius + margin)
    return _region_part(item, margin)


def _mask_part(mask, margin):
    values = mask.data
    if values.dtype != bool:
        if not np.isin(values, (0, 1)).all():
            raise InputError("exclusion mask: its values must be 0 (excluded) and 1, or bool; convert with `mask > 0`")
        mask = Map.from_geom(mask.geom, data=values == 1)
    if mask.geom.is_image is False:
        mask = mask.reduce_over_axes(np.logical_and)
    if margin > 0:
        mask = mask.binary_erode(radius=margin * u.deg)
    axes = SkyCoord([0, 90, 0] * u.deg, [0, 0, 90] * u.deg, frame="icrs").transform_to(mask.geom.frame)
    return _Mask(mask, axes.cartesian.xyz.value)


def _icrs_vector(position):
    return unit_vectors(position.icrs.ra.rad, position.icrs.dec.rad)


def _some_position(region):
    """A position in or near the region, where its tangential plane can touch the sky."""
    if isinstance(region, CompoundSkyRegion):
        return _some_position(region.region1)
    if hasattr(region, "center"):
        return region.center.icrs
    for name in ("vertices", "start"):
        if hasattr(region, name):
            points = np.atleast_2d(_icrs_vector(getattr(region, name)))
            lon, lat = vectors_to_lonlat(points.mean(0) / np.linalg.norm(points.mean(0)))
            return SkyCoord(lon * u.rad, lat * u.rad, frame="icrs")
    raise InputError(f"exclusion: a {type(region).__name__} has no position that can be used; draw it as a polygon or give a mask map")


def _region_part(region, margin):
    position = _some_position(region)
    wcs = WcsGeom.create(skydir=position, binsz=RASTER, npix=(1, 1), proj="TAN", frame="icrs").wcs
    pixel_region = region.to_pixel(wcs)
    box = pixel_region.bounding_box
    corners = np.array([[x, y] for x in (box.ixmin, box.ixmax) for y in (box.iymin, box.iymax)], dtype=float)
    vectors = unit_vectors(*np.radians(wcs.wcs_pix2world(corners, 0)).T)
    center = vectors.mean(0) / np.linalg.norm(vectors.mean(0))
    radius = max(_separation(center, v) for v in vectors)
    if margin == 0:
        return _PlaneRegion(pixel_region, wcs, center, radius)
    lon, lat = np.degrees(vectors_to_lonlat(center))
    width = 2 * (radius + margin + 2 * RASTER)
    geom = WcsGeom.create(skydir=(lon, lat), binsz=RASTER, width=width, proj="TAN", frame="icrs")
    return _mask_part(~geom.region_mask([region], inside=True), margin)
