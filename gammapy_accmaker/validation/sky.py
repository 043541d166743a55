"""Significance of held-out runs in the sky frame, field by field."""

from __future__ import annotations

import astropy.units as u
from astropy.coordinates import SkyCoord
from gammapy.maps import Map, MapAxis, WcsGeom

from gammapy_accmaker.config import AcceptanceConfig
from gammapy_accmaker.products.background import icrs_vectors, make_background_map
from gammapy_accmaker.reduction.counts import observation_track
from gammapy_accmaker.reduction.exclusion import Exclusion
from gammapy_accmaker.validation.significance import DISC_RADIUS, disc_significance

__all__ = ["SkyStack"]

PIXEL = 0.1  # deg
FIELD_RADIUS = 1.5  # deg; runs that point closer than this to the first of a field belong to it


class SkyStack:
    """Counts and expectations of runs, stacked on one map for each field.

    Parameters
    ----------
    observations : list of `~gammapy.data.Observation`
    bands : `~numpy.ndarray`
        Edges of the energy bands in TeV.
    offset_max : float
        Largest offset in deg of an event.
    config : `AcceptanceConfig`
    exclusion : `Exclusion`
    """

    def __init__(self, observations, bands, offset_max: float, config: AcceptanceConfig, exclusion: Exclusion):
        self._observations, self._offset_max, self._config = observations, offset_max, config
        axis = MapAxis.from_energy_edges(bands, unit="TeV")
        pointings = [o.get_pointing_icrs(o.tmid) for o in observations]
        centers, self._field = [], []
        for pointing in pointings:
            near = [i for i, c in enumerate(centers) if c.separation(pointing).deg < FIELD_RADIUS]
            self._field.append(near[0] if near else len(centers))
            if not near:
                centers.append(SkyCoord(pointing.ra, pointing.dec))
        width = 2 * (offset_max + FIELD_RADIUS) * u.deg
        geoms = [WcsGeom.create(skydir=c, width=width, binsz=PIXEL, proj="TAN", axes=[axis]) for c in centers]
        self._counts = [Map.from_geom(geom) for geom in geoms]
        self._expected = [Map.from_geom(geom) for geom in geoms]
        self._kept = [
            ~exclusion.contains(icrs_vectors(geom.to_image())).reshape(geom.to_image().data_shape) for geom in geoms
        ]

    def add(self, number: int, model, norm: float) -> None:
        """Add a run, by its number, with the model adapted to it and its norm."""
        observation, field = self._observations[number], self._field[number]
        counts, geom = Map.from_geom(self._counts[field].geom), self._counts[field].geom
        counts.fill_events(observation.events)
        near = geom.to_image().separation(observation.get_pointing_icrs(observation.tmid)).deg < self._offset_max
        track = observation_track(observation, self._config.fov_alignment, self._config.observatory_location)
        background = make_background_map(model, track, geom, self._config.time_step_seconds)
        keep = near & self._kept[field]
        self._counts[field].data += counts.data * keep
        self._expected[field].data += norm * background.data * keep

    def significance(self):
        """Scores of discs and counts by band, for each field; see `disc_significance`."""
        found = []
        for counts, expected, kept in zip(self._counts, self._expected, self._kept, strict=True):
            n = len(counts.data)
            # discs lie wholly outside of exclusions and within some run
            usable = kept & (expected.data.sum(0) > 0)
            inside = Map.from_geom(counts.geom.to_image(), data=usable).binary_erode(DISC_RADIUS * u.deg).data
            found.append(
                disc_significance(
                    counts.data.reshape(n, -1), expected.data.reshape(n, -1), kept.shape, PIXEL, inside.ravel()
                )
            )
        return found
