"""One number for what a reduction depends on, the same in every process and session."""

from __future__ import annotations

import hashlib
from dataclasses import fields, is_dataclass

import astropy.units as u
import numpy as np
from astropy.coordinates import EarthLocation, SkyCoord
from astropy.time import Time
from astropy.wcs import WCS
from gammapy.data import GTI, FixedPointingInfo, ObservationMetaData
from gammapy.maps import Map
from scipy.spatial import KDTree

__all__ = ["fingerprint"]


def fingerprint(*values) -> str:
    """SHA-256 of values: numbers, text, arrays, times, regions, maps, and what holds them.

    Arrays count to the last digit; caches that an object fills as it is used do not.
    """
    digest = hashlib.sha256()
    _add(digest, values)
    return digest.hexdigest()


def _add(digest, value):
    digest.update(f"<{type(value).__name__}>".encode())
    if value is None or isinstance(value, (bool, int, float, str, bytes, np.generic)):
        digest.update(repr(value).encode())
    elif isinstance(value, u.Quantity):
        _add(digest, (np.asarray(value.value), str(value.unit)))
    elif isinstance(value, np.ndarray):
        digest.update(f"{value.dtype.str}{value.shape}".encode() + np.ascontiguousarray(value).tobytes())
    elif isinstance(value, dict):
        _add(digest, sorted(value.items()))
    elif isinstance(value, (list, tuple)):
        for item in value:
            _add(digest, item)
    elif is_dataclass(value):
        _add(digest, [(f.name, getattr(value, f.name)) for f in fields(value)])
    else:
        _add(digest, _content(value))
    digest.update(b";")


def _content(value):
    """What counts of the objects of other packages."""
    if isinstance(value, Map):
        # a partial HEALPix map knows its pixels by number alone
        pixels = value.geom.get_idx(flat=True) if value.geom.is_hpx else None
        return {key: str(item) for key, item in dict(value.geom.to_header()).items()}, pixels, value.data
    if isinstance(value, WCS):
        return value.to_header_string()
    if isinstance(value, KDTree):
        return np.asarray(value.data)
    if isinstance(value, EarthLocation):
        return [float(x.to_value("m")) for x in value.geocentric]
    if isinstance(value, Time):
        return np.asarray(value.tt.jd1), np.asarray(value.tt.jd2)
    if isinstance(value, SkyCoord):
        data = value.spherical
        return value.frame.name, data.lon.to_value("deg"), data.lat.to_value("deg")
    if isinstance(value, GTI):
        return value.time_start, value.time_stop
    if isinstance(value, FixedPointingInfo):
        return value.fixed_icrs, value.fixed_altaz
    if isinstance(value, ObservationMetaData):
        return value.deadtime_fraction, value.location
    if callable(value):
        return value.__module__, value.__qualname__
    return vars(value)
