"""Significant excess in stacked sky maps -> circles that hold it."""

from __future__ import annotations

import astropy.units as u
import numpy as np
from astropy.coordinates import SkyCoord
from astropy.table import Table
from gammapy.maps import Map
from gammapy.stats import CashCountsStatistic
from regions import CircleSkyRegion
from scipy.ndimage import label

from gammapy_accmaker.camera.track import vectors_to_lonlat
from gammapy_accmaker.products.background import icrs_vectors
from gammapy_accmaker.products.sky_stack import SkyField, SkyStack, disc_sums

__all__ = ["excess_regions", "find_excess"]

MIN_EXPECTED = 0.1  # counts in a disc, below which it is not searched
WIDTH_EXPECTED = 10.0  # counts in a disc, from which on the width of the significance is taken


def find_excess(stack: SkyStack, threshold: float, correlation_radius: float, dilation: float) -> Table:
    """Circles around the significant excesses of a stack, all energies together.

    The significance of a disc is that of its counts against the expectation as if this were known (Cash statistic).
    Where the background is not described to within the fluctuations of the counts, the significance of the discs of a
    field is wider than 1, and the threshold is as many times higher.

    Parameters
    ----------
    stack : `SkyStack`
    threshold : float
        In sigma.
    correlation_radius : float
        Of the discs, in deg.
    dilation : float
        Added to the radius of what lies above the threshold, in deg.

    Returns
    -------
    found : `~astropy.table.Table`
        RA, DEC and RADIUS of each, in deg, and its SIGNIFICANCE at the peak. A source that several fields show has one
        row.
    """
    rows = []
    for field in stack.fields:
        significance = significance_map(field, stack.pixel, correlation_radius)
        labels, n = label(significance.data > threshold, np.ones((3, 3)))
        xyz = icrs_vectors(significance.geom).reshape(*labels.shape, 3)
        for k in range(1, n + 1):
            here = labels == k
            center = significance.data[here] @ xyz[here]
            center /= np.linalg.norm(center)
            distance = np.degrees(np.arccos(np.clip(xyz[here] @ center, -1, 1))).max() + 0.5 * stack.pixel
            lon, lat = vectors_to_lonlat(center)
            radius = max(distance, correlation_radius) + dilation
            rows.append((np.degrees(lon) % 360, np.degrees(lat), radius, significance.data[here].max()))
    names = ["RA", "DEC", "RADIUS", "SIGNIFICANCE"]
    rows = _without_contained(rows)
    return Table(rows=rows or None, names=names, dtype=[float] * 4, units={"RA": "deg", "DEC": "deg", "RADIUS": "deg"})


def _without_contained(rows):
    """The circles, in deg, that do not lie within a larger one."""
    kept: list[tuple[float, ...]] = []
    for row in sorted(rows, key=lambda row: -row[2]):
        centers = SkyCoord([k[0] for k in kept], [k[1] for k in kept], unit="deg")
        distance = centers.separation(SkyCoord(row[0], row[1], unit="deg")).deg if kept else np.zeros(0)
        if not any(distance + row[2] <= [k[2] for k in kept]):
            kept.append(row)
    return sorted(kept, key=lambda row: -row[3])


def significance_map(field: SkyField, pixel: float, correlation_radius: float) -> Map:
    """Significance of the excess in discs around the pixels of a field, over the width that it has there, if this is
    more than 1.

    It is 0 where nothing is expected, and where a disc reaches beyond the field of view.
    """
    image = field.counts.geom.to_image()
    counts, expected = (disc_sums(m.data.sum(0), pixel, correlation_radius) for m in (field.counts, field.expected))
    counts, expected = np.round(counts), np.maximum(expected, 0)
    whole = Map.from_geom(image, data=field.covered).binary_erode(correlation_radius * u.deg).data
    searched = whole & field.kept & (expected > MIN_EXPECTED)
    mu = np.where(searched, expected, 1.0)
    significance = np.where(searched, CashCountsStatistic(counts, mu).sqrt_ts, 0.0)
    many = significance[searched & (expected > WIDTH_EXPECTED)]
    width = 0.5 * np.subtract(*np.percentile(many, [84.13, 15.87])) if len(many) > 100 else 1.0
    return Map.from_geom(image, data=significance / max(width, 1.0))


def excess_regions(found: Table) -> list[CircleSkyRegion]:
    """The circles of a table that `find_excess` made."""
    if len(found) == 0:
        return []
    centers = SkyCoord(found["RA"], found["DEC"], unit="deg", frame="icrs")
    return [CircleSkyRegion(c, r * u.deg) for c, r in zip(centers, np.asarray(found["RADIUS"]), strict=True)]
