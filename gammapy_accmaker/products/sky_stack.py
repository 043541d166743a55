"""Counts and expectations of runs on the sky, stacked field by field, and their sums over discs."""

from __future__ import annotations

from dataclasses import dataclass

import astropy.units as u
import numpy as np
from astropy.coordinates import EarthLocation, SkyCoord
from gammapy.maps import Map, MapAxis, WcsGeom

from gammapy_accmaker.camera.bins import energy_edges_from_axis
from gammapy_accmaker.camera.track import vectors_to_lonlat
from gammapy_accmaker.data.counts import in_good_time, observation_track, source_counts
from gammapy_accmaker.data.exclusion import Exclusion
from gammapy_accmaker.data.observations import pointing_icrs
from gammapy_accmaker.data.sky_counts import SKY_PIXEL
from gammapy_accmaker.data.sources import NO_SOURCES, SourceList
from gammapy_accmaker.models.base import RateModel
from gammapy_accmaker.products.background import icrs_vectors, make_background_map

_FIELD_RADIUS = 1.5  # deg; runs that point closer than this to the first of a field belong to it


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


class SkyStack:
    """Counts and expectations of runs, stacked on one map for each field.

    Parameters
    ----------
    observations : dict of `~gammapy.data.Observation`
        By the numbers that the runs have here.
    energy_edges : `~numpy.ndarray`
        Edges of the energy bands in TeV.
    offset_max : float
        Largest offset in deg of an event.
    exclusion : `Exclusion`
        Its positions are left empty.
    alignment : {"altaz", "radec"}
        Of the models.
    location : `~astropy.coordinates.EarthLocation` or None
        Site; it wins over that of an observation.
    time_step : float or None
        Resolution in s inside a run.

    Attributes
    ----------
    fields : list of `SkyField`
    """

    def __init__(
        self,
        observations,
        energy_edges,
        offset_max: float,
        exclusion: Exclusion,
        *,
        alignment: str,
        location: EarthLocation | None,
        time_step: float | None,
    ):
        self._observations, self._offset_max = observations, offset_max
        self._alignment, self._location, self._time_step = alignment, location, time_step
        axis = MapAxis.from_energy_edges(energy_edges, unit="TeV")
        pointings = {number: pointing_icrs(o, location) for number, o in observations.items()}
        centers: list[SkyCoord] = []
        self._field = {}
        for number, pointing in pointings.items():
            near = [i for i, c in enumerate(centers) if c.separation(pointing).deg < _FIELD_RADIUS]
            self._field[number] = near[0] if near else len(centers)
            if not near:
                centers.append(SkyCoord(pointing.ra, pointing.dec))
        width = 2 * (offset_max + _FIELD_RADIUS) * u.deg
        geoms = [WcsGeom.create(skydir=c, width=width, binsz=SKY_PIXEL, proj="TAN", axes=[axis]) for c in centers]
        self.fields = [self._empty_field(geom, exclusion, k) for k, geom in enumerate(geoms)]

    def _empty_field(self, geom, exclusion, number):
        image = geom.to_image()
        kept = ~exclusion.contains(icrs_vectors(image)).reshape(image.data_shape)
        runs = [run for run, field in self._field.items() if field == number]
        return SkyField(Map.from_geom(geom), Map.from_geom(geom), kept, runs)

    def field_of(self, number: int) -> SkyField:
        """The field of a run."""
        return self.fields[self._field[number]]

    def add(
        self, number: int, model: RateModel, norm: float = 1.0, *, sources: SourceList = NO_SOURCES, bins=None
    ) -> None:
        """Add a run, by its number, with the model adapted to it, a norm, and sources of known flux, whose counts are
        worked out in the energies of ``bins`` (`CountsBins`), which those of the stack are edges of."""
        observation, geom = self._observations[number], self.field_of(number).counts.geom
        track = observation_track(observation, self._alignment, self._location)
        signal = np.zeros(geom.data_shape)
        for xyz, of_source in source_counts(observation, sources, track, bins):
            signal += counts_on_map(geom, xyz, of_source, bins.energy_edges)
        counts, expected = fill_sky(
            observation, track, model, geom, self._offset_max, self._time_step, self._location, signal
        )
        self.add_arrays(number, counts, norm * expected)

    def add_arrays(self, number: int, counts: np.ndarray, expected: np.ndarray) -> None:
        """Add what `fill_sky` made of a run."""
        field = self.field_of(number)
        field.counts.data += counts * field.kept
        field.expected.data += expected * field.kept


def counts_on_map(geom, xyz: np.ndarray, counts: np.ndarray, energy_edges: np.ndarray) -> np.ndarray:
    """Counts at positions, ICRS unit vectors of shape (n, 3), in energy bins with these edges in TeV, shape (n_energy,
    n), in the bins of a map: of each energy bin the share, by log energy, that lies in one of the map."""
    lon, lat = vectors_to_lonlat(xyz)
    at = geom.to_image().coord_to_idx(SkyCoord(lon, lat, unit="rad", frame="icrs"))
    inside, shape = np.all([index >= 0 for index in at], axis=0), geom.data_shape[-2:]
    number = np.ravel_multi_index([index[inside] for index in at[::-1]], shape)
    own, edges = np.log(energy_edges), np.log(energy_edges_from_axis(geom.axes["energy"]))
    common = np.minimum(edges[1:, None], own[1:]) - np.maximum(edges[:-1, None], own[:-1])
    in_map = np.clip(common, 0, None) / np.diff(own) @ counts[:, inside]
    return np.reshape([np.bincount(number, row, np.prod(shape)) for row in in_map], geom.data_shape)


def fill_sky(
    observation, track, model: RateModel, geom: WcsGeom, offset_max: float, time_step: float | None, location=None,
    signal=0.0,
):  # fmt: skip
    """Counts of a run and what its model expects, each an array of the shape of the map, 0 beyond the largest offset.

    Parameters
    ----------
    observation : `~gammapy.data.Observation`
    track : `~gammapy_accmaker.camera.track.FovTrack`
        Of the run, in the alignment of the model.
    model : `RateModel`
        Acceptance, adapted to the run.
    geom : `~gammapy.maps.WcsGeom`
        With the axis "energy".
    offset_max : float
        In deg.
    time_step : float or None
        Resolution in s inside the run.
    location : `~astropy.coordinates.EarthLocation`, optional
        Site; it wins over that of the observation.
    signal : `~numpy.ndarray`, optional
        Counts that sources add, of the shape of the map.
    """
    counts = Map.from_geom(geom)
    events = observation.events
    counts.fill_events(events.select_row_subset(in_good_time(events, track)))
    near = geom.to_image().separation(pointing_icrs(observation, location)).deg < offset_max
    return counts.data * near, (make_background_map(model, track, geom, time_step).data + signal) * near


def disc_sums(image: np.ndarray, radius: float) -> np.ndarray:
    """Sums of images of `SKY_PIXEL`, shape (..., nx, ny), over a disc around each pixel; its radius in deg."""
    n = int(np.ceil(radius / SKY_PIXEL))
    x = np.arange(-n, n + 1) * SKY_PIXEL
    widths = (np.hypot(*np.meshgrid(x, x)) <= radius + 1e-9).sum(1)
    nx, ny = image.shape[-2:]
    # of each line of the disc, as a difference of sums along it
    up_to = np.zeros((*image.shape[:-2], nx + 2 * n, ny + 2 * n + 1))
    up_to[..., n : nx + n, n + 1 : ny + n + 1] = image
    np.cumsum(up_to, axis=-1, out=up_to)
    sums = np.zeros(image.shape)
    for k, width in enumerate(widths):
        if width:
            half = width // 2
            line = up_to[..., k : k + nx, :]
            sums += line[..., n + half + 1 :][..., :ny] - line[..., n - half :][..., :ny]
    return sums
