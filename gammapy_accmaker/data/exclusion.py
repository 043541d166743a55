"""What is left out of a fit: sky regions and mask maps, each with a margin, and the half of the camera on the side of a
source.

From the top: regions and masks as plain data, numbers and text, from which they are made again exactly; the parts of an
exclusion, which answer whether they hold a position; `Exclusion`, all of them together; and `without_source_half`, as
pybkgmodel treats wobble observations.

What is excluded is computed from the data, in memory and after they were read from a file alike: the two cannot differ.
Each region is projected on a plane of its own, so that regions may lie anywhere on the sky, and circles, by far the
most common, are answered by one scalar product.
"""

from __future__ import annotations

import json
import operator
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import astropy.units as u
import numpy as np
from astropy.coordinates import EarthLocation, SkyCoord, TimeAttribute
from astropy.io import fits
from astropy.time import Time
from astropy.wcs import WCS
from gammapy.maps import HpxGeom, Map, WcsGeom
from regions import (
    CircleAnnulusSkyRegion,
    CircleSkyRegion,
    CompoundSkyRegion,
    EllipseAnnulusSkyRegion,
    EllipseSkyRegion,
    LineSkyRegion,
    PixCoord,
    PixelRegion,
    PointSkyRegion,
    PolygonSkyRegion,
    RectangleAnnulusSkyRegion,
    RectangleSkyRegion,
    RegionMeta,
    Regions,
    SkyRegion,
)
from scipy.linalg import null_space
from scipy.ndimage import binary_erosion
from scipy.spatial import KDTree

from gammapy_accmaker.camera.track import unit_vectors, vectors_to_lonlat
from gammapy_accmaker.data.observations import pointing_icrs
from gammapy_accmaker.data.region_files import read_regions
from gammapy_accmaker.errors import InputError, ObservationError, reading

# ---- Regions and masks as data ----

_POSITIONS = ("center", "vertices", "start", "end")
_ANNULUS = ("center", "inner_width", "outer_width", "inner_height", "outer_height", "angle")
# kind: its class, and what a region of this kind consists of: positions, and lengths and angles in deg
_KINDS = {
    "circle": (CircleSkyRegion, ("center", "radius")),
    "ellipse": (EllipseSkyRegion, ("center", "width", "height", "angle")),
    "rectangle": (RectangleSkyRegion, ("center", "width", "height", "angle")),
    "polygon": (PolygonSkyRegion, ("vertices",)),
    "circle annulus": (CircleAnnulusSkyRegion, ("center", "inner_radius", "outer_radius")),
    "ellipse annulus": (EllipseAnnulusSkyRegion, _ANNULUS),
    "rectangle annulus": (RectangleAnnulusSkyRegion, _ANNULUS),
    "line": (LineSkyRegion, ("start", "end")),
    "point": (PointSkyRegion, ("center",)),
}
# of two masks; on truth values, "greater" is "the first and not the second"
_OPERATORS = {
    "or": operator.or_,
    "and": operator.and_,
    "xor": operator.xor,
    "without": operator.gt,
    "not in": operator.lt,
}
LABELS = ("text", "label", "comment")  # that are kept of what a region is called
_MAX_PIXELS = 2**30  # of a mask; a file that claims more is not believed


def _region_to_dict(region: SkyRegion) -> dict[str, Any]:
    """A sky region as data, numbers to the last digit; an `InputError` for one of an unknown kind, one that excludes
    the sky outside of it, or one that is not finite."""
    if not region.meta.get("include", True):
        raise InputError(
            f"exclusion: {region} has a minus sign (all but the region); list the excluded regions without it"
        )
    data: dict[str, Any] = {key: str(region.meta[key]) for key in LABELS if isinstance(region.meta.get(key), str)}
    if isinstance(region, CompoundSkyRegion):
        regions = [_region_to_dict(part) for part in (region.region1, region.region2)]
        return data | {"kind": "compound", "operator": _operator_name(region), "regions": regions}
    kind = next((name for name, (cls, _) in _KINDS.items() if isinstance(region, cls)), None)
    if kind is None:
        raise InputError(
            f"exclusion: a {type(region).__name__} is not among {', '.join(_KINDS)}; "
            "draw it as a polygon or give a mask map"
        )
    data["kind"], turn = kind, 0.0
    for name in _KINDS[kind][1]:
        value = getattr(region, name)
        if name in _POSITIONS:
            data[name], turn = _position_to_dict(value)
        else:
            data[name] = float(value.to_value("deg")) + (turn if name == "angle" else 0.0)
    numbers = [data[name] for name in _KINDS[kind][1] if name not in _POSITIONS]
    numbers += [x for name in _POSITIONS if name in data for key in ("lon", "lat") for x in np.ravel(data[name][key])]
    if not np.all(np.isfinite(numbers)):
        raise InputError(f"exclusion: {region} is not finite; give its position and size, or leave it out")
    return data


def _operator_name(region):
    """Which of the known operators a compound region has, by what it makes of all pairs of truth values."""
    first, second = np.array([False, True, False, True]), np.array([False, False, True, True])
    made = np.asarray(region.operator(first, second), dtype=bool)
    for name, known in _OPERATORS.items():
        if np.array_equal(made, known(first, second)):
            return name
    raise InputError(
        f"exclusion: {region} covers the sky outside of its two regions, or one of them alone; list the excluded "
        "regions themselves"
    )


def _position_to_dict(position):
    """Data of one or more positions, and by how many deg north of their frame is turned in that of the data."""
    turn, frame = 0.0, position.frame
    plain = type(frame).__module__.startswith("astropy.coordinates") and all(
        isinstance(attribute, TimeAttribute) and getattr(frame, name).isscalar
        for name, attribute in type(frame).frame_attributes.items()
    )
    if not plain:  # the frame hangs on a place or on another position
        if position.isscalar:
            north = position.directional_offset_by(0 * u.deg, 1 * u.arcsec)
            turn = float(position.icrs.position_angle(north.icrs).wrap_at("180d").deg)
        position = position.icrs
    there = position.spherical
    data = {"frame": position.frame.name, "lon": there.lon.deg.tolist(), "lat": there.lat.deg.tolist()}
    for name in position.frame.frame_attributes:
        time = getattr(position.frame, name)
        data[name] = [float(time.jd1), float(time.jd2), time.scale]
    return data, turn


def _region_from_dict(data: dict[str, Any]) -> SkyRegion:
    """The sky region of what `_region_to_dict` made."""
    meta = RegionMeta({key: data[key] for key in LABELS if key in data})
    if data["kind"] == "compound":
        first, second = (_region_from_dict(part) for part in data["regions"])
        return CompoundSkyRegion(first, second, _OPERATORS[data["operator"]], meta=meta)
    cls, names = _KINDS[data["kind"]]
    return cls(
        *(_position_from_dict(data[name]) if name in _POSITIONS else float(data[name]) * u.deg for name in names),
        meta=meta,
    )


def _position_from_dict(data):
    times = {
        name: Time(value[0], value[1], format="jd", scale=value[2])
        for name, value in data.items()
        if name not in ("frame", "lon", "lat")
    }
    lon, lat = (np.asarray(data[key], dtype=float) for key in ("lon", "lat"))
    return SkyCoord(lon * u.deg, lat * u.deg, frame=data["frame"], **times)


@dataclass(frozen=True)
class _MaskData:
    """A mask that is False where the sky is excluded, without axes besides those of the sky.

    Attributes
    ----------
    header : str
        Of a WCS grid: its FITS header. Of a HEALPix grid: its properties as JSON.
    shape : tuple of int
        Of the image. Of a HEALPix grid: number of the excluded pixels.
    content : bytes
        Compressed: a bit for each pixel of an image; or the numbers of the excluded pixels, each less the one before.
    """

    header: str
    shape: tuple[int, ...]
    content: bytes

    def to_map(self) -> Map:
        """The mask as a map of truth values; of HEALPix the excluded pixels alone,
        since none other changes anything."""
        n = int(np.prod(self.shape, dtype=object))
        if not (0 <= n <= _MAX_PIXELS and all(k >= 0 for k in self.shape)):
            raise InputError(f"exclusion mask: got {self.shape} pixels, but up to {_MAX_PIXELS} are read")
        if len(self.shape) == 2:
            bits = np.frombuffer(self._unpacked((n + 7) // 8), dtype=np.uint8)
            values = np.unpackbits(bits, count=n).reshape(self.shape).astype(bool)
            # astropy mends what is odd in a header with a warning
            wcs = WCS(fits.Header.fromstring(self.header), relax=True, fix=False)
            return Map.from_geom(WcsGeom(wcs, npix=self.shape[::-1]), data=values)
        steps = np.frombuffer(self._unpacked(8 * n), dtype="<i8")
        if np.any(steps[1:] <= 0):
            raise InputError("exclusion mask: the numbers of its pixels do not increase")
        pixels = np.cumsum(steps)
        # a map without pixels cannot be made
        geom = HpxGeom(**json.loads(self.header), region=(pixels if n else np.zeros(1, dtype=int),))
        return Map.from_geom(geom, data=np.full(geom.data_shape, n == 0))

    def _unpacked(self, size):
        content = zlib.decompressobj().decompress(self.content, size + 1)
        if len(content) != size:
            raise InputError(f"exclusion mask: got {len(content)} bytes of pixels, but {size} are needed")
        return content


def _mask_to_data(mask: Map) -> _MaskData:
    """Data of a mask; what is excluded at any energy, or along any other axis, is excluded.

    Raises
    ------
    InputError
        For a map on another grid than WCS or HEALPix, or with other values than 0 (excluded) and 1.
    """
    geom = mask.geom
    if not isinstance(geom, (WcsGeom, HpxGeom)):
        raise InputError(f"exclusion mask: got a {type(geom).__name__}, but a map on a WCS or HEALPix grid is needed")
    if not geom.is_regular:
        raise InputError("exclusion mask: its pixels differ from energy to energy, but one grid is needed; resample it")
    if not np.isin(mask.data, (0, 1)).all():
        raise InputError("exclusion mask: its values must be 0 (excluded) and 1, or bool; convert with `mask > 0`")
    image = mask.data.astype(bool).all(axis=tuple(range(len(geom.axes))))
    if isinstance(geom, HpxGeom):
        header = {"nside": int(geom.nside.flat[0]), "nest": bool(geom.nest), "frame": geom.frame}
        pixels = np.sort(np.asarray(geom.to_image().get_idx(flat=True)[0]).ravel()[~image.ravel()])
        content = np.diff(pixels, prepend=0).astype("<i8").tobytes()
        return _MaskData(json.dumps(header), (len(pixels),), zlib.compress(content))
    if geom.wcs.cpdis1 is not None or geom.wcs.cpdis2 is not None or geom.wcs.det2im1 is not None:
        raise InputError("exclusion mask: its WCS has a table of distortions; resample it to a grid without")
    header = geom.wcs.to_header(relax=True).tostring()
    return _MaskData(header, image.shape, zlib.compress(np.packbits(image).tobytes()))


# ---- Parts ----

_RASTER = 0.01  # deg; between the points of a region that is widened by a margin
_RASTER_SIZE = 1000  # points across the largest regions


class _Part(Protocol):
    """Part of an exclusion, and a circle around it: ICRS vector and deg."""

    @property
    def center(self) -> np.ndarray: ...

    @property
    def radius(self) -> float: ...

    def contains(self, xyz: np.ndarray) -> np.ndarray:
        """Whether ICRS unit vectors, shape (n, 3), lie in it."""


@dataclass(frozen=True)
class _Circle:
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

    first: _Part
    second: _Part
    operator: Callable
    center: np.ndarray
    radius: float

    def contains(self, xyz):
        return self.operator(self.first.contains(xyz), self.second.contains(xyz))


@dataclass(frozen=True)
class _Mask:
    """A map that is False where the sky is excluded; what lies outside of the map is not excluded."""

    data: _MaskData
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

    part: _Part
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


def _make_part(data: str | _MaskData, margin: float):
    """The part that the data of a sky region or of a mask make, widened by a margin (deg)."""
    if isinstance(data, _MaskData):
        return _mask_part(data, margin)
    return _region_part(_region_from_dict(json.loads(data)), margin)


def _region_part(item, margin):
    if isinstance(item, (CircleSkyRegion, PointSkyRegion)):
        radius = item.radius.to_value("deg") if isinstance(item, CircleSkyRegion) else 0.0
        return _Circle(_icrs_vector(item.center), radius + margin)
    part = _compound_part(item) if isinstance(item, CompoundSkyRegion) else _plane_part(item)
    if margin == 0:
        return part
    if isinstance(item, LineSkyRegion):
        points, spacing = np.linspace(_icrs_vector(item.start), _icrs_vector(item.end), _RASTER_SIZE), 0.0
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
    n = int(np.clip(2 * np.degrees(reach) / _RASTER, 2, _RASTER_SIZE))
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
    points = region.vertices if isinstance(region, PolygonSkyRegion) else region.start
    lon, lat = vectors_to_lonlat(_circle_around(np.atleast_2d(_icrs_vector(points)))[0])
    return SkyCoord(lon * u.rad, lat * u.rad, frame="icrs")


def _compound_part(region):
    first, second = _region_part(region.region1, 0.0), _region_part(region.region2, 0.0)
    radius = max(first.radius, separation(second.center, first.center) + second.radius)
    return _Compound(first, second, region.operator, first.center, radius)


def _plane_part(region):
    wcs = WcsGeom.create(skydir=_some_position(region), binsz=_RASTER, npix=(1, 1), proj="TAN", frame="icrs").wcs
    pixel_region = region.to_pixel(wcs)
    try:
        box = pixel_region.bounding_box
    except ValueError as error:  # a corner is not on the tangential plane
        raise InputError(f"exclusion: {region} spans more than half of the sky; split it or give a mask map") from error
    corners = np.array([[x, y] for x in (box.ixmin - 1, box.ixmax) for y in (box.iymin - 1, box.iymax)], dtype=float)
    center, radius = _circle_around(unit_vectors(*np.radians(wcs.wcs_pix2world(corners, 0)).T))
    return _PlaneRegion(pixel_region, wcs, center, radius)


# ---- All parts together ----


@dataclass(frozen=True)
class _Excluded:
    """A region or mask as data, its margin in deg, the name of the file it came from,
    and the part of the sky it makes."""

    data: str | _MaskData
    margin: float
    origin: str
    part: _Part = field(compare=False)

    @classmethod
    def of(cls, item, margin: float, origin: str) -> _Excluded:
        data = _mask_to_data(item) if isinstance(item, Map) else json.dumps(_region_to_dict(item))
        return cls(data, margin, origin, _make_part(data, margin))

    @property
    def key(self):
        return self.data, self.margin


class Exclusion(Sequence):
    """Sky positions that are left out of a fit; a sequence of the sky regions and mask maps that it is made of.

    It holds them as data: no file is read again, and `to_arrays` stores all. Wherever an exclusion is taken, so is an
    `Exclusion`, which keeps the margins that it was made with.

    Parameters
    ----------
    exclusion : `~regions.SkyRegion`, `~regions.Regions`, str, path, `~gammapy.maps.Map`, `Exclusion` or list of these
        Sky regions of any kind, region files (ds9, crtf, fits), masks that are False where excluded. What comes twice
        counts once.
    margin : `~astropy.units.Quantity`
        Everything closer than this to a region is excluded too. A point or a line needs one to exclude anything.
    origin : str
        Name of the file that the regions or the mask came from, to be told with them; that of a region file is known.
    """

    def __init__(self, exclusion=None, margin: u.Quantity = 0 * u.deg, origin: str = ""):
        margin = u.Quantity(margin).to_value("deg")
        if not margin >= 0:
            raise InputError(f"exclusion margin: got {margin} deg, but a margin is >= 0 deg")
        self._set(
            item if isinstance(item, _Excluded) else _Excluded.of(item, float(margin), named)
            for item, named in _flatten(exclusion, origin)
        )

    def _set(self, items):
        self._items = tuple({item.key: item for item in items}.values())
        self._centers = np.array([item.part.center for item in self._items]).reshape(-1, 3)
        self._radii = np.array([item.part.radius for item in self._items])
        return self

    def __len__(self):
        return len(self._items)

    # one at a time
    def __getitem__(self, number: int) -> SkyRegion | Map:  # type: ignore[override]
        data = self._items[number].data
        return data.to_map() if isinstance(data, _MaskData) else _region_from_dict(json.loads(data))

    @property
    def margins(self) -> u.Quantity:
        """Margin around each of the regions and masks."""
        return [item.margin for item in self._items] * u.deg

    @property
    def is_empty(self) -> bool:
        """Whether no position can be excluded, as without regions, or with points alone that have no margin."""
        return not np.any(self._radii > 0)

    def near(self, center: np.ndarray, radius: float) -> Exclusion:
        """The part of the exclusion that can touch a circle around an ICRS unit vector (radius in deg)."""
        near = separation(self._centers, center) < radius + self._radii
        return Exclusion()._set(self._items[k] for k in np.flatnonzero(near))

    def with_regions(self, regions) -> Exclusion:
        """This exclusion and more: anything that the class takes, without a margin."""
        return Exclusion()._set((*self._items, *Exclusion(regions)._items))

    def with_half_sky(self, pole: np.ndarray) -> Exclusion:
        """This exclusion and the half of the sky around an ICRS unit vector."""
        lon, lat = vectors_to_lonlat(pole)
        return self.with_regions(CircleSkyRegion(SkyCoord(lon * u.rad, lat * u.rad), 90 * u.deg))

    def contains(self, xyz: np.ndarray) -> np.ndarray:
        """Whether each ICRS unit vector, shape (n, 3), is excluded."""
        excluded = np.zeros(len(xyz), dtype=bool)
        for item in self._items:
            excluded |= item.part.contains(xyz)
        return excluded

    def inside(self, camera: np.ndarray, matrix: np.ndarray) -> np.ndarray:
        """ICRS unit vectors, shape (m, 3), of those of some camera unit vectors, (n, 3), that are excluded.

        ``matrix``: from ICRS to the camera.
        """
        reach = np.cos(np.radians(np.clip(self._radii + 1e-6, 0, 180)))
        near = np.any(camera @ (self._centers @ matrix.T).T > reach, axis=1)
        xyz = camera[near] @ matrix
        return xyz[self.contains(xyz)]

    def in_brief(self) -> str:
        """How many regions and masks it has, in words."""
        n_mask = sum(isinstance(item.data, _MaskData) for item in self._items)
        counted = {"sky region": len(self) - n_mask, "mask": n_mask}
        return " and ".join(f"{n} {word}{'s' if n > 1 else ''}" for word, n in counted.items() if n) or "nothing"

    def lines(self) -> list[str]:
        """What each of the regions and masks is, in words."""
        return [_line(item) for item in self._items]

    def __str__(self):
        return "\n".join(self.lines()) if len(self) else "nothing"

    def to_arrays(self) -> tuple[str, dict[str, np.ndarray]]:
        """Serial form, exact: text, and the pixels of the masks as bytes."""
        found = []
        arrays: dict[str, np.ndarray] = {}
        for item in self._items:
            entry = {"margin": item.margin, "origin": item.origin}
            if isinstance(item.data, _MaskData):
                name = f"mask {len(arrays)}"
                arrays[name] = np.frombuffer(item.data.content, dtype=np.uint8)
                entry |= {"mask": name, "header": item.data.header, "shape": item.data.shape}
            else:
                entry["region"] = json.loads(item.data)
            found.append(entry)
        return json.dumps(found), arrays

    @classmethod
    def from_arrays(cls, text: str, arrays: dict[str, np.ndarray]) -> Exclusion:
        """The inverse of `to_arrays`.

        Raises
        ------
        InputError
            Where a part is missing or does not fit.
        """
        with reading("exclusion: a region or mask cannot be read"):
            items = []
            for entry in json.loads(text):
                data: str | _MaskData
                if "mask" in entry:
                    shape = tuple(int(n) for n in entry["shape"])
                    data = _MaskData(str(entry["header"]), shape, arrays[entry["mask"]].astype(np.uint8).tobytes())
                else:
                    data = json.dumps(_region_to_dict(_region_from_dict(entry["region"])))
                margin = float(entry["margin"])
                if not 0 <= margin < 360:
                    raise ValueError(f"margin of {margin} deg")
                items.append(_Excluded(data, margin, str(entry["origin"]), _make_part(data, margin)))
            return cls()._set(items)


def _flatten(exclusion, origin):
    """The regions and masks, each with the name of its file."""
    if exclusion is None:
        return
    if isinstance(exclusion, Exclusion):
        yield from ((item, item.origin) for item in exclusion._items)
    elif isinstance(exclusion, (str, Path)):
        yield from ((region, Path(exclusion).name) for region in read_regions(exclusion))
    elif isinstance(exclusion, CompoundSkyRegion) and exclusion.operator is operator.or_:
        yield from _flatten((exclusion.region1, exclusion.region2), origin)
    elif isinstance(exclusion, (SkyRegion, Map)):
        yield exclusion, origin
    elif isinstance(exclusion, (Regions, Iterable)) and not isinstance(exclusion, SkyCoord | u.Quantity | bytes | dict):
        for item in exclusion:
            yield from _flatten(item, origin)
    else:
        raise InputError(
            f"exclusion: got {type(exclusion).__name__}, but sky regions, a region file, a mask map or a list of "
            "these are needed; convert a pixel region with `region.to_sky(wcs)`"
        )


def _line(item):
    more = f", and {item.margin:.4g} deg around it" if item.margin else ""
    more += f" ({item.origin})" if item.origin else ""
    if isinstance(item.data, _MaskData):
        part = getattr(item.part, "part", item.part)  # without the margin
        shape = item.data.shape
        size = "HEALPix mask" if len(shape) == 1 else f"mask of {shape[1]} x {shape[0]} pixels"
        if part.radius < 0:
            return f"{size}, nothing excluded{more}"
        excluded = f"{shape[0]} pixels" if len(shape) == 1 else f"{100 * (1 - part.mask.data.mean()):.3g} % of them"
        ra, dec = np.degrees(vectors_to_lonlat(part.center))
        where = f"within {part.radius:.4g} deg around RA {ra % 360:.3f}, Dec {dec:+.3f} deg"
        return f"{size}, {excluded} excluded, {where}{more}"
    return f"{_in_words(json.loads(item.data))}{more}"


def _in_words(data):
    if data["kind"] == "compound":
        first, second = (f"({_in_words(part)})" for part in data["regions"])
        return f"{first} {data['operator']} {second}"
    words = []
    for name, value in data.items():
        if isinstance(value, dict):
            lon, lat = np.ravel(value["lon"]), np.ravel(value["lat"])
            places = ", ".join(f"{a:.3f} {b:+.3f}" for a, b in zip(lon[:4], lat[:4], strict=True))
            more = f" and {len(lon) - 4} more" if len(lon) > 4 else ""
            words.append(f"{name} {value['frame']} {places}{more}")
        elif isinstance(value, float):
            words.append(f"{name.replace('_', ' ')} {value:.4g} deg")
    label = next((f" {value!r}" for key, value in data.items() if key in ("text", "label", "comment")), "")
    return f"{_KINDS[data['kind']][0].__name__}{label}: {', '.join(words)}"


# ---- The half of the camera on the side of a source ----

_MIN_SEPARATION = 0.05  # deg; of pointing and source, below which the halves are not defined


def without_source_half(
    observation, exclusion: Exclusion, source: SkyCoord | None, offset_max: float, location: EarthLocation | None = None
) -> Exclusion:
    """The exclusion and, for a run with the source in its field of view, the half of the field on the source's side.

    The halves are divided by the great circle through the pointing at a right angle to the direction of the source, and
    turn in the camera with the field.

    Parameters
    ----------
    observation : `~gammapy.data.Observation`
    exclusion : `Exclusion`
    source : `~astropy.coordinates.SkyCoord` or None
        None: the target in the header of the observation.
    offset_max : float
        Largest offset in deg of the field of view.
    location : `~astropy.coordinates.EarthLocation`, optional
        Site; it wins over that of the observation.

    Raises
    ------
    ObservationError
        For a run without a target, and for one that points at its source.
    """
    if source is None:
        target = None if observation.meta is None else observation.meta.target
        source = None if target is None else target.position
        if source is None or not np.isfinite([source.icrs.ra.deg, source.icrs.dec.deg]).all():
            raise ObservationError(
                f"observation {observation.obs_id}: its header names no target position (RA_OBJ, DEC_OBJ); "
                "give it as `exclusion: {wobble_half: {lon, lat, frame}}`"
            )
    pointing = pointing_icrs(observation, location)
    separation = float(source.icrs.separation(pointing).deg)
    if separation > offset_max:
        return exclusion
    if separation < _MIN_SEPARATION:
        raise ObservationError(
            f"observation {observation.obs_id}: it points at the source ({separation:.3f} deg), so that no half of the "
            "camera is free of it; exclude a region instead"
        )
    there, here = (unit_vectors(p.icrs.ra.rad, p.icrs.dec.rad) for p in (source, pointing))
    pole = there - (there @ here) * here
    return exclusion.with_half_sky(pole / np.linalg.norm(pole))
