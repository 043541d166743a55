"""Which sky positions are left out of a fit: regions, region files and mask maps made into one question."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from pathlib import Path

import astropy.units as u
import numpy as np
from astropy.coordinates import SkyCoord
from gammapy.maps import Map
from regions import CompoundSkyRegion, Regions, SkyRegion

from gammapy_accmaker.errors import InputError
from gammapy_accmaker.reduction.exclusion_parts import Circle, make_part, separation
from gammapy_accmaker.reduction.region_files import read_regions

__all__ = ["Exclusion"]


class Exclusion:
    """Sky positions that are left out of a fit.

    Parameters
    ----------
    exclusion : `~regions.SkyRegion`, `~regions.Regions`, str, `~pathlib.Path`, `~gammapy.maps.Map` or list of these
        Sky regions of any kind, region files (ds9, crtf, fits), masks that are False where excluded.
    margin : `~astropy.units.Quantity`
        Everything closer than this to a region is excluded too. A point or a line needs one to exclude anything.
    """

    def __init__(self, exclusion=None, margin: u.Quantity = 0 * u.deg):
        margin = u.Quantity(margin).to_value("deg")
        if not margin >= 0:
            raise InputError(f"exclusion margin: got {margin} deg, but a margin is >= 0 deg")
        self._set(make_part(item, margin) for item in _flatten(exclusion))

    def _set(self, parts):
        self._parts = tuple(parts)
        self._centers = np.array([part.center for part in self._parts]).reshape(-1, 3)
        self._radii = np.array([part.radius for part in self._parts])
        return self

    def __len__(self):
        return len(self._parts)

    def near(self, center: np.ndarray, radius: float) -> Exclusion:
        """The part of the exclusion that can touch a circle around an ICRS unit vector (radius in deg)."""
        near = separation(self._centers, center) < radius + self._radii
        return Exclusion()._set(self._parts[k] for k in np.flatnonzero(near))

    def with_regions(self, regions) -> Exclusion:
        """This exclusion and more: anything that the class takes, without a margin."""
        return Exclusion()._set((*self._parts, *Exclusion(regions)._parts))

    def with_half_sky(self, pole: np.ndarray) -> Exclusion:
        """This exclusion and the half of the sky around an ICRS unit vector."""
        return Exclusion()._set((*self._parts, Circle(pole, 90.0)))

    def contains(self, xyz: np.ndarray) -> np.ndarray:
        """Whether each ICRS unit vector, shape (n, 3), is excluded."""
        excluded = np.zeros(len(xyz), dtype=bool)
        for part in self._parts:
            excluded |= part.contains(xyz)
        return excluded


def _flatten(exclusion):
    if exclusion is None:
        return
    if isinstance(exclusion, (str, Path)):
        yield from read_regions(exclusion)
    elif isinstance(exclusion, CompoundSkyRegion) and exclusion.operator is operator.or_:
        yield from _flatten((exclusion.region1, exclusion.region2))
    elif isinstance(exclusion, (SkyRegion, Map)):
        yield exclusion
    elif isinstance(exclusion, (Regions, Iterable)) and not isinstance(exclusion, SkyCoord):
        for item in exclusion:
            yield from _flatten(item)
    else:
        raise InputError(
            f"exclusion: got {type(exclusion).__name__}, but sky regions, a region file, a mask map or a list of "
            "these are needed; convert a pixel region with `region.to_sky(wcs)`"
        )
