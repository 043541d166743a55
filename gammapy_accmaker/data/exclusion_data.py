"""Sky regions and mask maps as plain data, numbers and text, from which they are made again exactly.

What is excluded is computed from these data, in memory and after they were read from a file alike: the two cannot differ.
"""

from __future__ import annotations

import json
import operator
import zlib
from dataclasses import dataclass

import astropy.units as u
import numpy as np
from astropy.coordinates import SkyCoord, TimeAttribute
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
    PointSkyRegion,
    PolygonSkyRegion,
    RectangleAnnulusSkyRegion,
    RectangleSkyRegion,
    RegionMeta,
    SkyRegion,
)

from gammapy_accmaker.errors import InputError

__all__ = ["KINDS", "MaskData", "mask_to_data", "region_from_text", "region_to_text"]

POSITIONS = ("center", "vertices", "start", "end")
ANNULUS = ("center", "inner_width", "outer_width", "inner_height", "outer_height", "angle")
# kind: its class, and what a region of this kind consists of: positions, and lengths and angles in deg
KINDS = {
    "circle": (CircleSkyRegion, ("center", "radius")),
    "ellipse": (EllipseSkyRegion, ("center", "width", "height", "angle")),
    "rectangle": (RectangleSkyRegion, ("center", "width", "height", "angle")),
    "polygon": (PolygonSkyRegion, ("vertices",)),
    "circle annulus": (CircleAnnulusSkyRegion, ("center", "inner_radius", "outer_radius")),
    "ellipse annulus": (EllipseAnnulusSkyRegion, ANNULUS),
    "rectangle annulus": (RectangleAnnulusSkyRegion, ANNULUS),
    "line": (LineSkyRegion, ("start", "end")),
    "point": (PointSkyRegion, ("center",)),
}
# of two masks; on truth values, "greater" is "the first and not the second"
OPERATORS = {
    "or": operator.or_,
    "and": operator.and_,
    "xor": operator.xor,
    "without": operator.gt,
    "not in": operator.lt,
}
LABELS = ("text", "label", "comment")  # that are kept of what a region is called
MAX_PIXELS = 2**30  # of a mask; a file that claims more is not believed


def region_to_text(region: SkyRegion) -> str:
    """A sky region as one line of text, numbers to the last digit.

    Raises
    ------
    InputError
        For a region of an unknown kind, one that excludes the sky outside of it, or one that is not finite.
    """
    return json.dumps(_region_to_dict(region), allow_nan=False)


def _region_to_dict(region):
    if not region.meta.get("include", True):
        raise InputError(
            f"exclusion: {region} has a minus sign (all but the region); list the excluded regions without it"
        )
    data = {key: str(region.meta[key]) for key in LABELS if isinstance(region.meta.get(key), str)}
    if isinstance(region, CompoundSkyRegion):
        regions = [_region_to_dict(part) for part in (region.region1, region.region2)]
        return data | {"kind": "compound", "operator": _operator_name(region), "regions": regions}
    kind = next((name for name, (cls, _) in KINDS.items() if isinstance(region, cls)), None)
    if kind is None:
        raise InputError(
            f"exclusion: a {type(region).__name__} is not among {', '.join(KINDS)}; draw it as a polygon or give a mask map"
        )
    data["kind"], turn = kind, 0.0
    for name in KINDS[kind][1]:
        value = getattr(region, name)
        if name in POSITIONS:
            data[name], turn = _position_to_dict(value)
        else:
            data[name] = float(value.to_value("deg")) + (turn if name == "angle" else 0.0)
    numbers = [data[name] for name in KINDS[kind][1] if name not in POSITIONS]
    numbers += [x for name in POSITIONS if name in data for key in ("lon", "lat") for x in np.ravel(data[name][key])]
    if not np.all(np.isfinite(numbers)):
        raise InputError(f"exclusion: {region} is not finite; give its position and size, or leave it out")
    return data


def _operator_name(region):
    """Which of the known operators a compound region has, by what it makes of all pairs of truth values."""
    first, second = np.array([False, True, False, True]), np.array([False, False, True, True])
    made = np.asarray(region.operator(first, second), dtype=bool)
    for name, known in OPERATORS.items():
        if np.array_equal(made, known(first, second)):
            return name
    raise InputError(
        f"exclusion: {region} covers the sky outside of its two regions, or one of them alone; list the excluded regions "
        "themselves"
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


def region_from_text(text: str) -> SkyRegion:
    """The sky region of a line of text that `region_to_text` made."""
    return _region_from_dict(json.loads(text))


def _region_from_dict(data):
    meta = RegionMeta({key: data[key] for key in LABELS if key in data})
    if data["kind"] == "compound":
        first, second = (_region_from_dict(part) for part in data["regions"])
        return CompoundSkyRegion(first, second, OPERATORS[data["operator"]], meta=meta)
    cls, names = KINDS[data["kind"]]
    return cls(
        *(_position_from_dict(data[name]) if name in POSITIONS else float(data[name]) * u.deg for name in names),
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
class MaskData:
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
        """The mask as a map of truth values; of HEALPix the excluded pixels alone, since none other changes anything."""
        n = int(np.prod(self.shape, dtype=object))
        if not (0 <= n <= MAX_PIXELS and all(k >= 0 for k in self.shape)):
            raise InputError(f"exclusion mask: got {self.shape} pixels, but up to {MAX_PIXELS} are read")
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


def mask_to_data(mask: Map) -> MaskData:
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
        return MaskData(json.dumps(header), (len(pixels),), zlib.compress(content))
    if geom.wcs.cpdis1 is not None or geom.wcs.cpdis2 is not None or geom.wcs.det2im1 is not None:
        raise InputError("exclusion mask: its WCS has a table of distortions; resample it to a grid without")
    header = geom.wcs.to_header(relax=True).tostring()
    return MaskData(header, image.shape, zlib.compress(np.packbits(image).tobytes()))
