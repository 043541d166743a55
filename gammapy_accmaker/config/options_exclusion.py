"""Options of the exclusion."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from gammapy_accmaker.config.types import (
    OneAngle,
    OnePath,
    Options,
)

__all__ = [
    "CatalogOptions",
    "ExclusionOptions",
    "IterativeOptions",
    "SkyPosition",
]


class SkyPosition(Options):
    """A position on the sky, ``{lon: 83.63 deg, lat: 22.01 deg, frame: icrs}``."""

    lon: OneAngle
    lat: OneAngle
    frame: Literal["icrs", "galactic"] = "icrs"

    @model_validator(mode="after")
    def _latitude(self):
        if not abs(self.lat.deg) <= 90:
            raise ValueError(f"lat: got {self.lat}, but -90 to 90 deg are needed")
        return self


class CatalogOptions(Options):
    """Circles around the stars or sources of a table.

    Attributes
    ----------
    path : path
        Table that astropy reads: ecsv, fits, csv, votable.
    ra, dec : str
        Its columns of ICRS coordinates; in deg where they have no unit.
    radius : angle
        Of all circles.
    radius_column : str
        Column with the radius of each, in place of ``radius``.
    magnitude : str
        Column of which only values up to ``magnitude_max`` are taken.
    magnitude_max : float
        Of the faintest star.
    """

    path: OnePath
    ra: str = "ra"
    dec: str = "dec"
    radius: OneAngle | None = None
    radius_column: str | None = None
    magnitude: str | None = None
    magnitude_max: float | None = None

    @model_validator(mode="after")
    def _complete(self):
        if (self.radius is None) == (self.radius_column is None):
            raise ValueError("got both radius and radius_column or neither, but one of them is needed")
        if self.radius is not None and self.radius.deg < 0:
            raise ValueError(f"radius: got {self.radius}, but a radius is >= 0 deg")
        if (self.magnitude is None) != (self.magnitude_max is None):
            raise ValueError("got one of magnitude and magnitude_max, but both or none are needed")
        return self


class IterativeOptions(Options):
    """Significant excess in the stacked sky map of the runs of the fit is excluded, and the fit repeated until none is left.

    Attributes
    ----------
    threshold : float
        In sigma; in widths of the significance over the field where that is wider than 1.
    correlation_radius : angle
        Of the discs in which counts are summed; emission that is much larger is found in part.
    dilation : angle
        Added to the radius of what is found.
    max_iterations : int
        Searches, after which a warning comes where the last one still found something.
    """

    threshold: Annotated[float, Field(gt=0)] = 5.0
    correlation_radius: OneAngle = "0.1 deg"
    dilation: OneAngle = "0.1 deg"
    max_iterations: Annotated[int, Field(ge=1)] = 5

    @model_validator(mode="after")
    def _positive(self):
        if not (self.correlation_radius.deg > 0 and self.dilation.deg >= 0):
            raise ValueError(
                f"got correlation_radius {self.correlation_radius} and dilation {self.dilation}, but > 0 and >= 0 are needed"
            )
        return self


class ExclusionOptions(Options):
    """Sky positions left out of the fit, of the run effects and of the renormalisation.

    Attributes
    ----------
    regions : path or list of paths
        Region files: ds9, crtf or fits.
    mask : path
        Map that is False where excluded.
    margin : angle
        Around regions, mask and catalog.
    catalog : mapping
        Circles around the stars or sources of a table: path, ra, dec, radius or radius_column, magnitude, magnitude_max.
    wobble_half : bool or mapping
        Of a run with the source in its field of view, use the half of the camera opposite to it (not for rings); true: the source
        is the target in the header of each run; else its lon, lat and frame. Norms and a gradient over the camera are told
        apart only by runs with several wobble positions.
    iterative : mapping
        Leave out what is found in the data as well, and fit again: threshold, correlation_radius, dilation, max_iterations.
    """

    # lists first: pydantic 2.8 would write one as the text of a path
    regions: list[OnePath] | OnePath | None = None
    mask: OnePath | None = None
    margin: OneAngle = "0 deg"
    catalog: CatalogOptions | None = None
    wobble_half: bool | SkyPosition = False
    iterative: IterativeOptions | None = None

    @model_validator(mode="after")
    def _files_exist(self):
        for path in self.files():
            if not path.is_file():
                raise ValueError(f"there is no file {path}; give the path of an existing one")
        return self

    def files(self) -> list[Path]:
        """All files that are named."""
        regions = self.regions if isinstance(self.regions, list) else [self.regions]
        catalog = None if self.catalog is None else self.catalog.path
        return [path for path in (*regions, self.mask, catalog) if path is not None]
