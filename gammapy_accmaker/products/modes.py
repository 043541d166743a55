"""Errors of the background of a run: of each bin, of sums, and as modes.

Errors of bins are correlated, over the field of view, in energy and, through the rate that they share, over runs: they
cannot be added up. What can be are the changes of the counts along independent directions of what is uncertain, each by
one standard deviation, the modes: the variance of any sum of counts is the sum over the directions of the squares of
what each changes in the sum.

The relative changes are smooth. They are worked out on a coarse polar grid in the camera, averaged over each energy bin
with the rate, and read between its nodes for each pixel, whose counts they multiply. The field stands as in the middle
of the run (of each part of it over which the zenith angle stands still).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from gammapy.maps import Map, RegionGeom
from regions import PointSkyRegion
from scipy.sparse import csr_array

from gammapy_accmaker.camera.bins import energy_edges_from_axis
from gammapy_accmaker.camera.track import FovTrack, time_nodes, unit_vectors
from gammapy_accmaker.models.base import RateModel
from gammapy_accmaker.products.background import (
    FieldPixels,
    expected_counts,
    polar_grid,
    polar_reading,
    region_pixels,
    run_slices,
)
from gammapy_accmaker.utils.threads import one_thread

_OFFSET_STEP, _ANGLE_STEPS = 0.15, 24  # deg; of the polar grid
_FINE_STEP = 0.03  # in log10 energy, of the points over which the changes in a bin are averaged


@dataclass(frozen=True)
class BackgroundErrors:
    """Errors of a background that `~gammapy_accmaker.products.background.make_background_map` made.

    Attributes
    ----------
    model : `RateModel`
        Acceptance, adapted to the run.
    track : `FovTrack`
    background : `~gammapy.maps.Map`
    time_step : float or None
        As for the background.
    model_number : int
        Runs whose models differ in more than what was adapted to them have other numbers: they share no directions.
    """

    model: RateModel
    track: FovTrack
    background: Map
    time_step: float | None
    model_number: int = 0

    def error(self) -> Map:
        """Standard deviation of each bin."""
        data = np.zeros((len(self._edges) - 1, self._pixels.n_bin))
        for k, parts in enumerate(self._at_energies()):
            if self._pixels.are_bins:
                # a pixel is as small as a point: errors are read between the nodes, where those of parts of a run are
                # nearly the same
                error = self._counts[k] * sum(
                    part.share * (part.nodes @ part.sd(covariance))
                    for part, covariance in zip(parts, self._covariances, strict=True)
                )
            else:
                shared, run = self._summed(parts, self._pixels.member * self._counts[k], leading=False)
                error = np.sqrt((shared**2).sum(1) + (run**2).sum(1))
            data[k] = self._pixels.in_all(error)
        return self._map(data)

    @one_thread()
    def modes(self) -> list[Map]:
        """What one standard deviation along each of the leading directions changes in each bin.

        The directions of the rate, the same for all runs and in one order, stand before those of the run; ``meta`` has
        ``kind``, "rate" or "run", and ``index``, the number of the direction.
        """
        maps = []
        for kind, by_energy in zip(("rate", "run"), zip(*self.along_leading(), strict=True), strict=True):
            for index in range(by_energy[0].shape[1]):
                data = np.array([changes[:, index] for changes in by_energy], dtype=np.float32)
                maps.append(self._map(data, {"kind": kind, "index": index, "model": self.model_number}))
        return maps

    def along_leading(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The same energy by energy, in the bins of an image: shapes (n_bin, k) for the rate and (n_bin, j)."""
        for k, parts in enumerate(self._at_energies()):
            found = self._summed(parts, self._pixels.member * self._counts[k], leading=True)
            yield tuple(self._pixels.in_all(changes) for changes in found)

    @property
    def n_leading(self) -> int:
        """Number of the leading directions of the rate."""
        _, cos_zenith, azimuth, *_ = self._nodes[2][0]
        return self.model.error_factor(cos_zenith, azimuth, leading=True).shape[1]

    def of_sum(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What one standard deviation along each direction changes in a weighted sum over the pixels of each energy.

        Parameters
        ----------
        weights : `~numpy.ndarray`
            Of the bins of an image of the map, raveled.

        Returns
        -------
        shared, run : `~numpy.ndarray`, shapes (n_energy, k), (n_energy, j)
            Along all directions that runs share, the same for all of them, and along those of the run.
        """
        member = csr_array(weights[None, self._pixels.places].astype(float)) @ self._pixels.member
        found = [
            self._summed(parts, member * self._counts[k], leading=False) for k, parts in enumerate(self._at_energies())
        ]
        return np.concatenate([shared for shared, _ in found]), np.concatenate([run for _, run in found])

    @property
    def _edges(self):
        return energy_edges_from_axis(self.background.geom.axes["energy"])

    @cached_property
    def _pixels(self):
        return _Pixels.of(self.background.geom, self.model, self.track)

    @cached_property
    def _counts(self):
        """In the pixels, shape (n_energy, n_pixel)."""
        data = self.background.data.reshape(len(self._edges) - 1, -1)
        if self._pixels.are_bins:
            return data[:, self._pixels.places]
        return expected_counts(
            self.model, self.track, self._pixels.xyz, self._pixels.solid_angle, self._edges, self.time_step
        )

    def _map(self, data, meta=None):
        geom = self.background.geom
        return Map.from_geom(geom, data=data.reshape(geom.data_shape), unit="", meta=meta)

    @cached_property
    def _nodes(self):
        """Of each part of the run: the model, its zenith angle and ontime, and how pixels are read from the nodes."""
        lon, lat, shape = polar_grid(self.model.offset_max, _OFFSET_STEP, _ANGLE_STEPS)
        parts = []
        for part in run_slices(self.model, self.track):
            middle, _ = time_nodes(part.intervals, None)
            camera = np.nan_to_num(self._pixels.xyz @ part.matrices_at(middle)[0].T)
            nodes = polar_reading(camera, shape, self.model.offset_max)
            here = self.model.at_azimuth(part.mean_azimuth)
            parts.append((here, part.mean_cos_zenith, part.mean_azimuth, part.ontime, nodes))
        return lon, lat, parts

    @cached_property
    def _covariances(self):
        factors = [self.model.error_factor(cos_zenith, azimuth) for _, cos_zenith, azimuth, *_ in self._nodes[2]]
        return [factor @ factor.T for factor in factors]

    def _at_energies(self) -> Iterator[list[_PartErrors]]:
        """The parts of the run at each energy bin."""
        lon, lat, parts = self._nodes
        for low, high in itertools.pairwise(np.clip(self._edges, *self.model.energy_edges[[0, -1]])):
            # the error of a bin is the mean of those inside of it as the rate weights them; in a wide one they differ
            n = max(int(np.ceil(np.log10(high / low) / _FINE_STEP)), 1)
            fine = np.geomspace(low, high, n + 1)
            energy = np.sqrt(fine[1:] * fine[:-1])
            found, counts = [], []
            for here, cos_zenith, azimuth, ontime, nodes in parts:
                rate = here.rate_grid(energy, lon, lat, cos_zenith) * (np.diff(fine)[:, None] + 1e-300)
                weights = (rate + 1e-300) / (rate + 1e-300).sum(0)
                shared, run = (
                    np.einsum("knm,nm->km", rows, weights) for rows in here.error_rows(energy, lon, lat, cos_zenith)
                )
                found.append((cos_zenith, azimuth, nodes, shared, run))
                counts.append(ontime * (nodes @ rate.sum(0)) + 1e-300)
            shares = np.array(counts) / np.sum(counts, axis=0)
            yield [_PartErrors(*part, share) for part, share in zip(found, shares, strict=True)]

    def _summed(self, parts, member, *, leading):
        """Changes in sums of pixels along the directions; ``member``: counts of the pixels in each sum."""
        shared, run = 0.0, 0.0
        for part in parts:
            by_node = (member * part.share) @ part.nodes
            factor = self.model.error_factor(part.cos_zenith, part.azimuth, leading=leading)
            # few directions are quickly had at all nodes, few sums quickly along all directions
            along = by_node @ (part.shared.T @ factor) if leading else (by_node @ part.shared.T) @ factor
            shared = shared + along
            run = run + by_node @ part.run.T
        return shared, run


@dataclass(frozen=True)
class _PartErrors:
    """A part of a run at one energy: relative changes at the nodes of the polar grid, shapes (k, n_node), (j, n_node),
    the matrix that reads pixels between them, and the share of the part in the counts of each pixel."""

    cos_zenith: float
    azimuth: float
    nodes: csr_array
    shared: np.ndarray
    run: np.ndarray
    share: np.ndarray

    def sd(self, covariance: np.ndarray) -> np.ndarray:
        """Relative standard deviation at the nodes; ``covariance``: of what runs share."""
        variance = np.einsum("km,km->m", self.shared, covariance @ self.shared)
        return np.sqrt(np.maximum(variance, 0) + (self.run**2).sum(0))


@dataclass(frozen=True)
class _Pixels:
    """Positions in the field of view that a geometry is counted at (ICRS unit vectors, solid angle in sr), the bins
    that they are of, and the numbers of these among all of the geometry."""

    xyz: np.ndarray
    solid_angle: np.ndarray
    member: csr_array
    places: np.ndarray
    n_bin: int

    @classmethod
    def of(cls, geom, model, track) -> _Pixels:
        if isinstance(geom, RegionGeom):
            if isinstance(geom.region, PointSkyRegion):
                center = geom.region.center.icrs
                xyz, solid_angle = unit_vectors(center.ra.rad, center.dec.rad)[None], np.ones(1)
            else:
                xyz, solid_angle = region_pixels(geom)
            return cls(xyz, solid_angle, csr_array(np.ones((1, len(xyz)))), np.zeros(1, dtype=int), 1)
        field = FieldPixels.of(geom.to_image(), model, track)
        return cls(field.xyz, field.solid_angle, field.member, field.places, field.shape[0] * field.shape[1])

    @property
    def are_bins(self) -> bool:
        """Whether each bin is counted at one position."""
        return len(self.places) == len(self.xyz)

    def in_all(self, values: np.ndarray) -> np.ndarray:
        """Values of the bins in the field, in all bins of the geometry, along the first axis."""
        if len(values) == self.n_bin:
            return values
        out = np.zeros((self.n_bin, *values.shape[1:]))
        out[self.places] = values
        return out
