"""Excess of the counts of reduced runs over their acceptance on the sky, and the sources that stand out of it.

What the events of a fit are in excess of is known without reading them again: every reduced run has its counts on the
sky (`~gammapy_accmaker.data.sky_counts.SkyCounts`), and the rate that the model adapted to it expects is turned through
them. Runs that point to one part of the sky are stacked to a field.

A source is searched for at several scales, in all energies and in the hardest. An acceptance fitted with it in the
field eats a part of it, and more of a wide one: so what is left of it is weak, and is seen to grow when it is left out
and the fit is repeated. A disc that stands out is therefore followed down to a low significance where it is connected
to a strong one, and beside what was found before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import astropy.units as u
import numpy as np
from astropy.coordinates import SkyCoord
from astropy.table import Table
from gammapy.maps import WcsGeom
from gammapy.stats import CashCountsStatistic
from regions import CircleSkyRegion
from scipy.ndimage import (
    binary_dilation,
    binary_erosion,
    binary_fill_holes,
    distance_transform_edt,
    label,
    map_coordinates,
    spline_filter,
)

from gammapy_accmaker.camera.bins import offset
from gammapy_accmaker.camera.track import vectors_to_lonlat
from gammapy_accmaker.data.exclusion import Exclusion
from gammapy_accmaker.data.reduced_run import ReducedRun, in_own_order
from gammapy_accmaker.data.sky_counts import SKY_PIXEL, SkyCounts, sky_bands
from gammapy_accmaker.models.base import RateModel
from gammapy_accmaker.products.sky_stack import disc_sums

_SCALES = (1.0, 2.5, 5.0)  # radii of the discs, in the smallest
_FOLLOWED = 2.0  # sigma; down to which a source is followed around a peak
_BESIDE = 3.0  # sigma; a peak beside what was found before belongs to it
_BESIDE_REACH = 0.2  # deg
# of the counts, above the energies where the search in all and in the hardest begins
_SOFT_SHARE, _HARD_SHARE = 0.95, 0.15
_MIN_EXPECTED = 0.3  # counts in a disc, below which it is not searched
_WIDTH_EXPECTED = 10.0  # counts in a disc, from which on the width of the significance is taken
_KNOWN_PRECISION = 0.1  # of the counts of a source that is known, in a disc
_NEAR_POLE = 90 - 1e-7  # deg; an image around the pole itself would be turned around
_TANGENT_STEP = np.radians(SKY_PIXEL)  # between pixels of an image, on the tangential plane
_RATE_STEP = 0.2  # deg, between which the rate is interpolated in the camera
_TOGETHER = 16  # runs that are put on the image at once; of many of one field all would not fit in memory
_RIM = 0.75 * SKY_PIXEL  # deg; a pixel closer to the edge of the field of view is not whole
_LONG, _WASTED = 0.6, 0.4  # deg, share: a larger circle that is filled by less is split in two


@dataclass(frozen=True)
class ExcessField:
    """Runs stacked on the sky, on the tangential plane of one pointing.

    Attributes
    ----------
    matrix : `~numpy.ndarray`, shape (3, 3)
        From ICRS unit vectors to the axes of the image: to its middle, along its rows and along its columns.
    counts, expected : `~numpy.ndarray`, shape (n_band, ny, nx)
        What is excluded counts too.
    known : `~numpy.ndarray`, shape (n_band, ny, nx)
        What of the expected counts comes from sources that are known.
    covered : `~numpy.ndarray`, shape (ny, nx)
        Whether a pixel is in the field of view of some run.
    places : tuple of int
        Of the runs in the list of observations.
    """

    matrix: np.ndarray
    counts: np.ndarray
    expected: np.ndarray
    known: np.ndarray
    covered: np.ndarray
    places: tuple[int, ...]

    @cached_property
    def geom(self) -> WcsGeom:
        """Image."""
        lon, lat = np.degrees(vectors_to_lonlat(self.matrix[0]))
        npix, lat = len(self.covered), min(lat, _NEAR_POLE)
        return WcsGeom.create(skydir=(lon % 360, lat), npix=npix, binsz=SKY_PIXEL, proj="TAN", frame="icrs")

    @cached_property
    def xyz(self) -> np.ndarray:
        """ICRS unit vectors of the pixel centres, shape (ny * nx, 3): those of `geom`, at a tenth of its time."""
        at = (np.arange(len(self.covered)) - 0.5 * (len(self.covered) - 1)) * _TANGENT_STEP
        row, column = (a.ravel() for a in np.meshgrid(at, at, indexing="ij"))
        vectors = np.stack([np.ones_like(row), column, row], axis=1) @ self.matrix
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def search_bands(runs: Sequence[ReducedRun], energy_edges: np.ndarray) -> np.ndarray:
    """Energy edges in TeV of the search: its bands are the bulk of the events above the threshold of most runs, and the
    hardest of them."""
    edges = sky_bands(energy_edges)
    spectrum = np.sum([np.asarray(run.counts.sum(1)).ravel() for run in runs], axis=0)
    above = np.cumsum(spectrum[::-1])[::-1] / max(spectrum.sum(), 1)
    wanted = [energy_edges[:-1][above >= share][-1] for share in (_SOFT_SHARE, _HARD_SHARE)]
    chosen = [int(np.abs(np.log(edges[:-1] / e)).argmin()) for e in wanted]  # the last edge begins no band
    return edges[np.unique([*chosen, len(edges) - 1])]


def excess_fields(
    runs: Sequence[ReducedRun],
    models: Sequence[RateModel],
    bands: np.ndarray,
    energy_edges: np.ndarray,
    offset_max: float,
    exclusion: Exclusion | None = None,
) -> list[ExcessField]:
    """Counts and expectations of reduced runs, stacked on one image for each part of the sky.

    Parameters
    ----------
    runs : sequence of `ReducedRun`
    models : sequence of `RateModel`
        What is adapted to each of them.
    bands : `~numpy.ndarray`
        Energy edges in TeV, some of the `sky_bands` of the energy edges.
    energy_edges : `~numpy.ndarray`
        Of the reduction, in TeV.
    offset_max : float
        In deg, beyond which nothing is expected.
    exclusion : `Exclusion`, optional
        Where it is given, what is expected of a run in each band is scaled to its counts outside of it: a search is for
        what stands out of its surroundings, and not for runs or bands that are brighter as a whole.
    """
    of_field: list[list[tuple[ReducedRun, SkyCounts, RateModel]]] = []
    model_of = dict(zip(map(id, runs), models, strict=True))
    for run in in_own_order(runs):  # the first one chooses the pixels
        if run.sky is None:
            continue
        pointing = run.sky.matrix[0]
        near = [f for f in of_field if f[0][1].matrix[0] @ pointing > np.cos(np.radians(offset_max))]
        own = run, run.sky, model_of[id(run)]
        near[0].append(own) if near else of_field.append([own])
    stored = sky_bands(energy_edges)
    n_band, first = len(stored) - 1, np.searchsorted(stored, bands * (1 - 1e-9))
    bins = np.searchsorted(energy_edges, bands * (1 - 1e-9))
    fields = []
    for members in of_field:
        pointings = np.array([sky.matrix[0] for _, sky, _ in members])
        apart = np.degrees(np.arccos(np.clip(pointings @ pointings[0], -1, 1))).max()
        reach = np.degrees(np.tan(np.radians(offset_max + apart)))
        matrix, side = members[0][1].matrix, 2 * int(np.ceil(reach / SKY_PIXEL) + 2)
        numbers, values, sums = [], [], np.zeros((3 * (len(bands) - 1) + 1, side**2))
        for k, (run, sky, model) in enumerate(members, 1):
            here, mu = _expected(run, sky, model, bands, min(offset_max, model.offset_max))
            image = np.add.reduceat(sky.image(n_band)[: first[-1], here], first[:-1], axis=0)
            known = np.zeros(mu.shape)
            if sky.signal is not None:
                known += np.add.reduceat(sky.signal.toarray()[: bins[-1], here], bins[:-1], axis=0)
            there = sky.pixels[here] @ sky.matrix
            if exclusion is not None:
                kept = ~exclusion.near(sky.matrix[0], offset_max).contains(there)
                n, b = (image - known)[:, kept].sum(1), mu[:, kept].sum(1)
                mu *= np.where((n > 0) & (b > 0), n / np.where(b > 0, b, 1), 1)[:, None]
            numbers.append(_pixel_numbers(there, matrix, side))
            values.append(np.vstack([image, mu + known, known, np.ones(len(here))]))
            if len(numbers) == _TOGETHER or k == len(members):
                number = np.concatenate(numbers)
                sums += [np.bincount(number, one, side**2) for one in np.hstack(values)]
                numbers, values = [], []
        counts, expected, of_known = sums[:-1].reshape(3, -1, side, side)
        # pixels of a run and of the field do not fall together: one that no run's pixel fell on is no hole
        covered = binary_fill_holes(sums[-1].reshape(side, side) > 0)
        places = tuple(run.place for run, _, _ in members)
        fields.append(ExcessField(matrix, counts, expected, of_known, covered, places))
    return fields


def _pixel_numbers(xyz, matrix, side):
    """Numbers of the pixels, of an image of `ExcessField`, that ICRS unit vectors lie in."""
    depth, column, row = matrix @ xyz.T
    column, row = (np.floor(a / depth / _TANGENT_STEP + 0.5 * side).astype(int) for a in (column, row))
    return row * side + column


@lru_cache(maxsize=8)
def _rate_points(reach, radial):
    """Where the rate is worked out in the camera, to be interpolated up to an offset of ``reach`` deg: on a square of
    nodes, and beyond the last offset at it, so that the interpolation is smooth.

    It is the same for all runs of a fit.

    Returns
    -------
    lon, lat : `~numpy.ndarray`
        Different points in deg; of a radial model those of each offset are one.
    at_node : `~numpy.ndarray`, shape (n, n)
        Which of them each node takes, far out that of the nearest.
    """
    n = int(np.ceil(reach / _RATE_STEP)) + 2
    at = np.arange(-n, n + 1) * _RATE_STEP
    lon, lat = np.meshgrid(at, at)
    distance = offset(lon, lat)
    far = distance > reach + 2 * _RATE_STEP
    inside = np.minimum(distance, reach * (1 - 1e-6))[~far]
    if radial:
        lon, place = np.unique(inside.round(9), return_inverse=True)
        lat = np.zeros(len(lon))
    else:
        lon, lat = (a[~far] * inside / np.maximum(distance[~far], 1e-9) for a in (lon, lat))
        place = np.arange(len(lon))
    at_node = np.zeros(far.shape, dtype=int)
    at_node[~far] = place
    return lon, lat, at_node[tuple(distance_transform_edt(far, return_distances=False, return_indices=True))]


def _expected(run, sky, model, bands, reach):
    """Pixels of a run that are seen during all of it, and the counts that are expected there."""
    lon, lat, at_node = _rate_points(float(reach), model.is_radial)
    seen = np.flatnonzero(np.all(sky.turns[:, 0] @ sky.pixels.T > np.cos(np.radians(reach - _RIM)), axis=0))
    pixels, expected = sky.pixels[seen], np.zeros((len(bands) - 1, len(seen)))
    for k, part in enumerate(run.slices):
        rate = model.at_azimuth(part.azimuth).integral_grid(bands, lon, lat, part.cos_zenith)
        splines = [spline_filter(band, order=3) for band in rate[:, at_node]]
        for turn, seconds in zip(sky.turns[sky.slices == k], sky.seconds[sky.slices == k], strict=True):
            x, y = (np.degrees(a) / _RATE_STEP + len(at_node) // 2 for a in vectors_to_lonlat(pixels @ turn.T))
            for out, spline in zip(expected, splines, strict=True):
                out += seconds * np.maximum(
                    map_coordinates(spline, [y, x], order=3, prefilter=False, mode="nearest"), 0
                )
    return seen, expected * np.radians(SKY_PIXEL) ** 2 * np.hypot(pixels[:, 0], pixels[:, 1])  # the cosine of the row


def significance_map(
    counts: np.ndarray, expected: np.ndarray, searched: np.ndarray, radius: float
) -> tuple[np.ndarray, float]:
    """Significance of the excess in discs around the pixels, and its width.

    The expectation counts as known (Cash statistic). The width is that below zero, where sources do not reach.

    Parameters
    ----------
    counts, expected : `~numpy.ndarray`, shape (ny, nx)
    searched : `~numpy.ndarray`, shape (ny, nx)
        Pixels that count.
    radius : float
        Of the discs, in deg.
    """
    n, mu = disc_sums(np.where(searched, (counts, expected), 0), radius)
    enough = searched & (mu > _MIN_EXPECTED)
    significance = np.zeros(mu.shape)
    significance[enough] = CashCountsStatistic(np.maximum(np.round(n[enough]), 0), mu[enough]).sqrt_ts
    many = significance[enough & (mu > _WIDTH_EXPECTED)]
    return significance, max(-np.percentile(many, 15.87), 1.0) if len(many) > 100 else 1.0


def find_excess(
    fields: Sequence[ExcessField],
    exclusion: Exclusion,
    found: Exclusion,
    threshold: float,
    correlation_radius: float,
    dilation: float,
    radial: bool = False,
) -> Table:
    """Circles around what stands out.

    Where the background is not described to within the fluctuations of the counts, the significance is wider than 1,
    and is divided by its width.

    Parameters
    ----------
    fields : sequence of `ExcessField`
        In the bands of `search_bands`.
    exclusion, found : `Exclusion`
        All that is left out, and what of it was found before.
    threshold : float
        In sigma, of a peak.
    correlation_radius : float
        Of the smallest discs, in deg.
    dilation : float
        Added to the radius of what is found, in deg.
    radial : bool
        Whether the model knows no asymmetry of the camera, and leaves wide wells and humps that are no sources.

    Returns
    -------
    found : `~astropy.table.Table`
        RA, DEC and RADIUS of each, in deg, and its SIGNIFICANCE at the peak. A source that several fields show has one
        row; a long one has several.
    """
    rows: list[tuple[float, ...]] = []
    for field in fields:
        xyz = field.xyz
        kept = field.covered & ~exclusion.contains(xyz).reshape(field.covered.shape)
        before = found.contains(xyz).reshape(field.covered.shape)
        stands_out, peak = _stand_out(field, kept, before, threshold, correlation_radius, radial)
        labels, n = label(stands_out, np.ones((3, 3)))
        xyz = xyz.reshape(*labels.shape, 3)
        for k in range(1, n + 1):
            here = labels == k
            for center, radius in _circles(xyz[binary_fill_holes(here)]):
                lon, lat = np.degrees(vectors_to_lonlat(center))
                radius = max(radius, correlation_radius) + dilation
                rows.append((lon % 360, lat, radius, peak[here].max()))
    names = ["RA", "DEC", "RADIUS", "SIGNIFICANCE"]
    rows = _without_contained(rows)
    return Table(rows=rows or None, names=names, dtype=[float] * 4, units={"RA": "deg", "DEC": "deg", "RADIUS": "deg"})


def _stand_out(field, kept, before, threshold, correlation_radius, radial):
    """Pixels that a source reaches, without those found before, and the highest significance around each."""
    new, peak = np.zeros(kept.shape, dtype=bool), np.zeros(kept.shape)
    beside = binary_dilation(before, iterations=round(_BESIDE_REACH / SKY_PIXEL)) if before.any() else before
    n_band = len(field.counts)
    lowest = min(threshold, _BESIDE) if before.any() else threshold
    for start in range(n_band):  # all, and the hardest
        counts, expected, known = (a[start:].sum(0) for a in (field.counts, field.expected, field.known))
        smallest, own = None, np.zeros(kept.shape, dtype=bool)
        for radius in np.array(_SCALES) * correlation_radius:
            # what small discs have found is no news to those that are larger and reach it
            searched = kept & ~binary_dilation(own, _disc(correlation_radius)) if own.any() else kept
            significance, spread = significance_map(counts, expected, searched, radius)
            # that of the smallest discs for all: wide sources leave wide wells beside them
            smallest = spread if smallest is None or radial else smallest
            significance = significance / smallest
            if known.any():  # a source is never known so well that it leaves nothing
                bright, mu = (disc_sums(np.where(searched, a, 0), radius) for a in (known, expected))
                significance /= np.sqrt(1 + (_KNOWN_PRECISION * bright) ** 2 / np.maximum(mu, _MIN_EXPECTED))
            peak = np.maximum(peak, significance)
            labels, n = label(significance > _FOLLOWED, np.ones((3, 3))) if significance.max() > lowest else (None, 0)
            for k in range(1, n + 1):
                here = labels == k
                top = significance[here].max()
                if top > threshold or significance[here & beside].max(initial=0) > _BESIDE:
                    # a disc that stands out reaches out of the source by up to its radius
                    core = binary_erosion(here, _disc(radius / 2))
                    own |= core if core.any() else here & (significance == top)
        new |= own
    return new & kept, peak


def _disc(radius):
    n = round(radius / SKY_PIXEL)
    y, x = np.indices((2 * n + 1, 2 * n + 1)) - n
    return np.hypot(x, y) * SKY_PIXEL <= radius + 1e-9


def _circles(points):
    """Circles in deg that hold pixels, given by unit vectors: one, or more where one would hold much besides."""
    center = points.sum(0)
    center /= np.linalg.norm(center)
    radius = np.degrees(np.arccos(np.clip(points @ center, -1, 1))).max() + 0.5 * SKY_PIXEL
    if radius > _LONG and len(points) * SKY_PIXEL**2 < _WASTED * np.pi * radius**2:
        along = np.linalg.svd(points - points.mean(0), full_matrices=False)[2][0]
        side = (points - points.mean(0)) @ along > 0
        return [*_circles(points[side]), *_circles(points[~side])]
    return [(center, radius)]


def _without_contained(rows):
    """The circles, in deg, that do not lie within a larger one."""
    kept: list[tuple[float, ...]] = []
    for row in sorted(rows, key=lambda row: -row[2]):
        centers = SkyCoord([k[0] for k in kept], [k[1] for k in kept], unit="deg")
        distance = centers.separation(SkyCoord(row[0], row[1], unit="deg")).deg if kept else np.zeros(0)
        if not any(distance + row[2] <= [k[2] for k in kept]):
            kept.append(row)
    return sorted(kept, key=lambda row: -row[3])


def excess_regions(found: Table) -> list[CircleSkyRegion]:
    """The circles of a table that `find_excess` made."""
    if len(found) == 0:
        return []
    centers = SkyCoord(found["RA"], found["DEC"], unit="deg", frame="icrs")
    return [CircleSkyRegion(c, r * u.deg) for c, r in zip(centers, np.asarray(found["RADIUS"]), strict=True)]
