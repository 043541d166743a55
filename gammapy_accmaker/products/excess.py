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
from gammapy_accmaker.products.background import icrs_vectors
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
_RATE_STEP = 0.2  # deg, between which the rate is interpolated in the camera
_RIM = 0.75 * SKY_PIXEL  # deg; a pixel closer to the edge of the field of view is not whole
_LONG, _WASTED = 0.6, 0.4  # deg, share: a larger circle that is filled by less is split in two


@dataclass(frozen=True)
class ExcessField:
    """Runs stacked on the sky.

    Attributes
    ----------
    geom : `~gammapy.maps.WcsGeom`
        Image.
    counts, expected : `~numpy.ndarray`, shape (n_band, ny, nx)
        What is excluded counts too.
    known : `~numpy.ndarray`, shape (n_band, ny, nx)
        What of the expected counts comes from sources that are known.
    covered : `~numpy.ndarray`, shape (ny, nx)
        Whether a pixel is in the field of view of some run.
    places : tuple of int
        Of the runs in the list of observations.
    """

    geom: WcsGeom
    counts: np.ndarray
    expected: np.ndarray
    known: np.ndarray
    covered: np.ndarray
    places: tuple[int, ...]


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
    fields = []
    for members in of_field:
        pointings = np.array([sky.matrix[0] for _, sky, _ in members])
        apart = np.degrees(np.arccos(np.clip(pointings @ pointings[0], -1, 1))).max()
        npix = 2 * int(np.ceil((offset_max + apart) / SKY_PIXEL) + 2)
        lon, lat = np.degrees(vectors_to_lonlat(pointings[0]))
        geom = WcsGeom.create(skydir=(lon % 360, lat), npix=npix, binsz=SKY_PIXEL, proj="TAN", frame="icrs")
        nx, size = geom.data_shape[1], np.prod(geom.data_shape)
        counts, expected, of_known = np.zeros((3, len(bands) - 1, size))
        covered = np.zeros(size)
        for run, sky, model in members:
            pixels = sky.pixels
            here, mu = _expected(run, sky, model, pixels, bands, min(offset_max, model.offset_max))
            image = np.add.reduceat(sky.image(n_band)[: first[-1]], first[:-1], axis=0)
            known = np.zeros(mu.shape)
            if sky.signal is not None:
                bins = np.searchsorted(energy_edges, bands * (1 - 1e-9))
                known += np.add.reduceat(sky.signal.toarray()[: bins[-1]], bins[:-1], axis=0)
            there = pixels[here] @ sky.matrix
            if exclusion is not None:
                kept = np.flatnonzero(here)[~exclusion.near(sky.matrix[0], offset_max).contains(there)]
                n, b = (image - known)[:, kept].sum(1), mu[:, kept].sum(1)
                mu *= np.where((n > 0) & (b > 0), n / np.where(b > 0, b, 1), 1)[:, None]
            lon, lat = vectors_to_lonlat(there)
            x, y = geom.coord_to_idx((np.degrees(lon) * u.deg, np.degrees(lat) * u.deg))
            for k in range(len(counts)):
                counts[k] += np.bincount(y * nx + x, image[k, here], size)
                expected[k] += np.bincount(y * nx + x, (mu + known)[k, here], size)
                of_known[k] += np.bincount(y * nx + x, known[k, here], size)
            covered[y * nx + x] = 1
        # pixels of a run and of the field do not fall together: one that no run's pixel fell on is no hole
        whole = binary_fill_holes(covered.reshape(geom.data_shape) > 0)
        in_image = (len(counts), *geom.data_shape)
        places = tuple(run.place for run, _, _ in members)
        counts, expected, of_known = (a.reshape(in_image) for a in (counts, expected, of_known))
        fields.append(ExcessField(geom, counts, expected, of_known, whole, places))
    return fields


def _expected(run, sky, model, pixels, bands, reach):
    """Whether each pixel of a run is seen during all of it, and the counts that are expected there."""
    n = int(np.ceil(reach / _RATE_STEP)) + 2
    at = np.arange(-n, n + 1) * _RATE_STEP
    lon, lat = np.meshgrid(at, at)
    # beyond the last offset the rate at it, so that the interpolation up to it is smooth; far out that of the nearest
    distance = offset(lon, lat)
    far = distance > reach + 2 * _RATE_STEP
    nearest = tuple(distance_transform_edt(far, return_distances=False, return_indices=True))
    inside = np.minimum(distance, reach * (1 - 1e-6))[~far]
    if model.is_radial:
        lon, place = np.unique(inside.round(9), return_inverse=True)
        lat = np.zeros(len(lon))
    else:
        lon, lat = (a[~far] * inside / np.maximum(distance[~far], 1e-9) for a in (lon, lat))
        place = np.arange(len(lon))
    expected, seen = np.zeros((len(bands) - 1, len(pixels))), np.ones(len(pixels), dtype=bool)
    for k, part in enumerate(run.slices):
        rate = np.zeros((len(bands) - 1, *far.shape))
        rate[:, ~far] = model.at_azimuth(part.azimuth).integral_grid(bands, lon, lat, part.cos_zenith)[:, place]
        splines = [spline_filter(band[nearest], order=3) for band in rate]
        for turn, seconds in zip(sky.turns[sky.slices == k], sky.seconds[sky.slices == k], strict=True):
            camera = pixels @ turn.T
            seen &= camera[:, 0] > np.cos(np.radians(reach - _RIM))
            x, y = (np.degrees(a) / _RATE_STEP + n for a in vectors_to_lonlat(camera))
            for out, spline in zip(expected, splines, strict=True):
                out += seconds * np.maximum(
                    map_coordinates(spline, [y, x], order=3, prefilter=False, mode="nearest"), 0
                )
    _, row = vectors_to_lonlat(pixels)
    return seen, expected * np.radians(SKY_PIXEL) ** 2 * np.cos(row)


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
    mu = np.where(enough, mu, 1.0)
    significance = np.where(enough, CashCountsStatistic(np.maximum(np.round(n), 0), mu).sqrt_ts, 0.0)
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
        xyz = icrs_vectors(field.geom)
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
