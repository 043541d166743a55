"""Counts, expectation and significance of runs in the sky frame, field by field."""

from __future__ import annotations

from dataclasses import dataclass

import astropy.units as u
import numpy as np
from astropy.coordinates import SkyCoord
from gammapy.maps import Map, MapAxis, WcsGeom

from gammapy_accmaker.config import AcceptanceConfig
from gammapy_accmaker.products.background import icrs_vectors, make_background_map
from gammapy_accmaker.reduction.counts import observation_track
from gammapy_accmaker.reduction.exclusion import Exclusion
from gammapy_accmaker.validation.significance import DISC_RADIUS, disc_scores, disc_significance

__all__ = ["SkyField", "SkyStack", "fill_sky"]

PIXEL = 0.1  # deg
FIELD_RADIUS = 1.5  # deg; runs that point closer than this to the first of a field belong to it


def fill_sky(observation, model, geom: WcsGeom, offset_max: float, config: AcceptanceConfig):
    """Counts of a run and what its model expects, each an array of the shape of the map, 0 beyond the largest offset.

    Parameters
    ----------
    observation : `~gammapy.data.Observation`
    model : `RateModel`
        Acceptance, adapted to the run.
    geom : `~gammapy.maps.WcsGeom`
        With the axis "energy".
    offset_max : float
        In deg.
    config : `AcceptanceConfig`
    """
    counts = Map.from_geom(geom)
    counts.fill_events(observation.events)
    near = geom.to_image().separation(observation.get_pointing_icrs(observation.tmid)).deg < offset_max
    track = observation_track(observation, config.fov_alignment, config.observatory_location)
    background = make_background_map(model, track, geom, config.time_step_seconds)
    return counts.data * near, background.data * near


@dataclass(frozen=True)
class SkyField:
    """Stacked runs of one field.

    Attributes
    ----------
    counts, expected : `~gammapy.maps.Map`
        0 where excluded.
    kept : `~numpy.ndarray`
        Whether a pixel lies outside of the exclusion, shape of the image.
    numbers : list of int
        Which runs belong to the field.
    """

    counts: Map
    expected: Map
    kept: np.ndarray
    numbers: list[int]

    def usable(self) -> np.ndarray:
        """Pixels whose discs lie wholly outside of exclusions and within some run, shape of the image."""
        seen = self.kept & (self.expected.data.sum(0) > 0)
        return Map.from_geom(self.counts.geom.to_image(), data=seen).binary_erode(DISC_RADIUS * u.deg).data

    def score_image(self) -> Map:
        """Scores of discs, all bands together; NaN where they are not `usable`."""
        image = self.counts.geom.to_image()
        counts, expected = (m.data.sum(0).reshape(1, -1) for m in (self.counts, self.expected))
        scores = disc_scores(counts, expected, image.data_shape, PIXEL, self.usable().ravel())
        return Map.from_geom(image, data=scores.reshape(image.data_shape))


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
        self.fields = [self._empty_field(geom, exclusion, k) for k, geom in enumerate(geoms)]

    def _empty_field(self, geom, exclusion, number):
        image = geom.to_image()
        kept = ~exclusion.contains(icrs_vectors(image)).reshape(image.data_shape)
        runs = [run for run, field in enumerate(self._field) if field == number]
        return SkyField(Map.from_geom(geom), Map.from_geom(geom), kept, runs)

    def field_of(self, number: int) -> SkyField:
        """The field of a run."""
        return self.fields[self._field[number]]

    def add(self, number: int, model, norm: float) -> None:
        """Add a run, by its number, with the model adapted to it and its norm."""
        geom = self.field_of(number).counts.geom
        counts, expected = fill_sky(self._observations[number], model, geom, self._offset_max, self._config)
        self.add_arrays(number, counts, norm * expected)

    def add_arrays(self, number: int, counts: np.ndarray, expected: np.ndarray) -> None:
        """Add what `fill_sky` made of a run."""
        field = self.field_of(number)
        field.counts.data += counts * field.kept
        field.expected.data += expected * field.kept

    def significance(self):
        """Scores of discs and counts by band, for each field; see `disc_significance`."""
        found = []
        for field in self.fields:
            counts, expected = (m.data.reshape(len(m.data), -1) for m in (field.counts, field.expected))
            found.append(disc_significance(counts, expected, field.kept.shape, PIXEL, field.usable().ravel()))
        return found
