"""Region files, and catalogues of stars or sources, read as sky regions."""

from __future__ import annotations

import warnings
from pathlib import Path

import astropy.units as u
import numpy as np
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.table import Table
from astropy.utils.exceptions import AstropyUserWarning
from astropy.wcs import WCS
from gammapy.utils.scripts import make_path
from regions import CircleSkyRegion, PixelRegion, Regions, SkyRegion

from gammapy_accmaker.errors import InputError, reading

_REGION_FORMATS = {".reg": "ds9", ".crtf": "crtf", ".fits": "fits"}


def read_regions(path):
    """The sky regions of a ds9, crtf or fits region file, one after the other."""
    path = make_path(path)
    if not path.is_file():
        raise InputError(f"exclusion: there is no region file {path}; give the path of a ds9, crtf or fits region file")
    with reading(f"exclusion: {path} cannot be read as a ds9, crtf or fits region file"):
        # files without the first line that names their format are told by their ending
        kind = _REGION_FORMATS.get(path.suffix)
        with warnings.catch_warnings():
            # the ds9 parser skips what it cannot read with a warning, and a source would be left in
            warnings.simplefilter("error", AstropyUserWarning)
            found = Regions.read(path, format=kind) if kind else Regions.read(path)
    if len(found) == 0:
        raise InputError(f"exclusion: {path} holds no region; leave it out, or check its format")
    wcs = _fits_wcs(path) if any(isinstance(region, PixelRegion) for region in found) else None
    for region in found:
        if isinstance(region, PixelRegion) and wcs is None:
            raise InputError(
                f"exclusion: {path} holds a {type(region).__name__} in pixel coordinates; sky coordinates are needed, "
                "or a fits region file with a celestial WCS in its header"
            )
        yield region if isinstance(region, SkyRegion) else region.to_sky(wcs)


def _fits_wcs(path):
    """Celestial WCS in the header of a fits region file; None where there is none."""
    try:
        wcs = WCS(fits.getheader(path, "REGION"))
    except (OSError, KeyError):
        return None
    return wcs if wcs.has_celestial else None


def catalog_regions(
    path: Path,
    *,
    ra: str,
    dec: str,
    radius: u.Quantity | None,
    radius_column: str | None,
    magnitude: str | None,
    magnitude_max: float | None,
) -> list[CircleSkyRegion]:
    """Circles around the stars or sources of a table.

    Parameters
    ----------
    path : `~pathlib.Path`
        Table that astropy reads: ecsv, fits, csv, votable.
    ra, dec : str
        Columns of ICRS coordinates; in deg where they have no unit.
    radius : `~astropy.units.Quantity` or None
        Radius of all circles.
    radius_column : str or None
        Column with the radius of each, in place of ``radius``.
    magnitude, magnitude_max : str, float or None
        Only stars with a magnitude up to this in this column.
    """
    with reading(f"exclusion.catalog: {path} cannot be read as a table"):
        table = Table.read(path)
    wanted = [name for name in (ra, dec, radius_column, magnitude) if name is not None]
    missing = [name for name in wanted if name not in table.colnames]
    if missing:
        raise InputError(
            f"exclusion.catalog: {path} has no column {', '.join(map(repr, missing))}, but "
            f"{', '.join(table.colnames)}; name the columns by `ra`, `dec`, `radius_column` and `magnitude`"
        )
    if magnitude is not None:
        # a star of unknown magnitude is taken for a faint one
        table = table[np.ma.filled(np.ma.asarray(table[magnitude], dtype=float), np.inf) <= magnitude_max]
    lon, lat = (_degrees(path, table, name) for name in (ra, dec))
    radii = _degrees(path, table, radius_column) if radius is None else np.full(len(table), radius.to_value("deg"))
    if not np.all(radii >= 0):
        raise InputError(f"exclusion.catalog: {path} has radii < 0 in {radius_column!r}, but a radius is >= 0 deg")
    centers = SkyCoord(lon, lat, unit="deg", frame="icrs")
    return [CircleSkyRegion(center, r * u.deg) for center, r in zip(centers, radii, strict=True)]


def _degrees(path, table, name):
    column = table[name]
    try:
        values = np.ma.filled(np.ma.asarray(column, dtype=float), np.nan) * (column.unit or u.deg).to("deg")
    except (ValueError, TypeError, u.UnitConversionError) as error:
        raise InputError(f"exclusion.catalog: the column {name!r} of {path} holds no angles ({error})") from error
    if not np.all(np.isfinite(values)):
        raise InputError(
            f"exclusion.catalog: {np.sum(~np.isfinite(values))} rows of {path} have no {name!r}; "
            "remove them or fill it in"
        )
    return values
