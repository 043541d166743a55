"""Counts and expectations of runs on the sky, stacked field by field, and their sums over discs."""

from __future__ import annotations

import astropy.units as u
import numpy as np
from astropy.coordinates import EarthLocation, SkyCoord
from gammapy.maps import Map, MapAxis, WcsGeom
from scipy.signal import fftconvolve

from gammapy_accmaker.models.base import RateModel
from gammapy_accmaker.products.background import icrs_vectors, make_background_map
from gammapy_accmaker.reduction.counts import observation_track
from gammapy_accmaker.reduction.exclusion import Exclusion

__all__ = ["SkyStack", "disc_sums"]

FIELD_RADIUS = 1.5  # deg; runs that point closer than this to the first of a field belong to it


class SkyStack:
    """Counts and expectations of runs, stacked on one map for each field.

    Parameters
    ----------
    observations : list of `~gammapy.data.Observation`
    energy_edges : `~numpy.ndarray`
        Edges of the energy bands in TeV.
    offset_max : float
        Largest offset in deg of an event.
    exclusion : `Exclusion`
        Its positions are left empty.
    pixel : float
        Side of a pixel in deg.
    alignment : {"altaz", "radec"}
        Of the models.
    location : `~astropy.coordinates.EarthLocation` or None
        Site, used where an observation has none.
    time_step : float or None
        Resolution in s inside a run.

    Attributes
    ----------
    counts, expected : list of `~gammapy.maps.Map`
        One for each field.
    kept : list of `~numpy.ndarray`
        Whether each pixel of a field lies outside of the exclusion.
    covered : list of `~numpy.ndarray`
        Whether each pixel of a field lies in the field of view of some run.
    """

    def __init__(
        self,
        observations,
        energy_edges,
        offset_max: float,
        exclusion: Exclusion,
        *,
        pixel: float,
        alignment: str,
        location: EarthLocation | None,
        time_step: float | None,
    ):
        self.pixel = pixel
        self._observations, self._offset_max = observations, offset_max
        self._alignment, self._location, self._time_step = alignment, location, time_step
        axis = MapAxis.from_energy_edges(energy_edges, unit="TeV")
        pointings = [o.get_pointing_icrs(o.tmid) for o in observations]
        centers, self._field = [], []
        for pointing in pointings:
            near = [i for i, c in enumerate(centers) if c.separation(pointing).deg < FIELD_RADIUS]
            self._field.append(near[0] if near else len(centers))
            if not near:
                centers.append(SkyCoord(pointing.ra, pointing.dec))
        width = 2 * (offset_max + FIELD_RADIUS) * u.deg
        geoms = [WcsGeom.create(skydir=c, width=width, binsz=pixel, proj="TAN", axes=[axis]) for c in centers]
        self.counts = [Map.from_geom(geom) for geom in geoms]
        self.expected = [Map.from_geom(geom) for geom in geoms]
        images = [geom.to_image() for geom in geoms]
        self.kept = [~exclusion.contains(icrs_vectors(image)).reshape(image.data_shape) for image in images]
        self.covered = [np.zeros(image.data_shape, dtype=bool) for image in images]

    def add(self, number: int, model: RateModel, norm: float = 1.0) -> None:
        """Add a run, by its number, with the model adapted to it and a norm."""
        observation, field = self._observations[number], self._field[number]
        counts, geom = Map.from_geom(self.counts[field].geom), self.counts[field].geom
        counts.fill_events(observation.events)
        near = geom.to_image().separation(observation.get_pointing_icrs(observation.tmid)).deg < self._offset_max
        track = observation_track(observation, self._alignment, self._location)
        background = make_background_map(model, track, geom, self._time_step)
        keep = near & self.kept[field]
        self.counts[field].data += counts.data * keep
        self.expected[field].data += norm * background.data * keep
        self.covered[field] |= near


def disc_sums(image: np.ndarray, pixel: float, radius: float) -> np.ndarray:
    """Sums of images over a disc around each pixel.

    Parameters
    ----------
    image : `~numpy.ndarray`
        Shape (..., nx, ny).
    pixel, radius : float
        Side of a pixel and radius of the disc, in deg.
    """
    n = int(np.ceil(radius / pixel))
    x = np.arange(-n, n + 1) * pixel
    disc = (np.hypot(*np.meshgrid(x, x, indexing="ij")) <= radius + 1e-9).astype(float)
    return fftconvolve(image, disc.reshape(*[1] * (image.ndim - 2), *disc.shape), mode="same", axes=(-2, -1))
