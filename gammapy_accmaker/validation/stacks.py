"""Counts against their prediction, in the camera frame and in the sky: what is expected in the bins, and the
significance of the difference in discs around them, for runs that are stacked.
"""

from __future__ import annotations

from dataclasses import dataclass

import astropy.units as u
import numpy as np
from gammapy.maps import Map

from gammapy_accmaker.camera.bins import FovBins
from gammapy_accmaker.camera.track import FovTrack
from gammapy_accmaker.config.config import AcceptanceConfig
from gammapy_accmaker.data.exclusion import Exclusion
from gammapy_accmaker.models.base import RateModel
from gammapy_accmaker.products.background import run_slices
from gammapy_accmaker.products.sky_stack import SkyField, SkyStack, disc_sums
from gammapy_accmaker.utils.statistics import poisson_pulls

DISC_RADIUS = 0.2  # deg


def disc_scores(counts, mu, shape, inside, seed: int = 0) -> np.ndarray:
    """Normal scores of the counts in discs of `DISC_RADIUS` around pixels, by energy band.

    Parameters
    ----------
    counts, mu : `~numpy.ndarray`
        Observed and expected counts, shape (band, number of pixels).
    shape : tuple of int
        Of the grid of square pixels of `SKY_PIXEL`.
    inside : `~numpy.ndarray`
        Pixels around which a disc is taken, shape (number of pixels,).
    seed : int
        The scores are exactly normal at few counts too, for which they are randomised within the step of a count.

    Returns
    -------
    scores : `~numpy.ndarray`
        Shape (band, number of pixels); NaN outside and where nothing is expected.
    """
    n, expected = (
        disc_sums(np.asarray(a).reshape(len(counts), *shape), DISC_RADIUS).reshape(len(counts), -1)
        for a in (counts, mu)
    )
    n = np.round(n)
    rng = np.random.default_rng(seed)
    scores = np.full(n.shape, np.nan)
    for k in range(len(counts)):
        seen = inside & (expected[k] > 1e-3)
        scores[k, seen] = poisson_pulls(n[k, seen], expected[k, seen], rng)
    return scores


def disc_significance(counts, mu, shape, inside, seed: int = 0):
    """The scores of `disc_scores` in a row, and the counts, by energy band.

    Returns
    -------
    bands : list of (`~numpy.ndarray`, int)
        The scores of all discs with an expectation, and the counts of the band.
    """
    scores = disc_scores(counts, mu, shape, inside, seed)
    return [(row[~np.isnan(row)], int(n.sum())) for row, n in zip(scores, counts, strict=True)]


@dataclass(frozen=True)
class _SeenSlice:
    """A slice of a run without its events, of which nothing is excluded; see `RateModel.expected_counts`."""

    exposure: np.ndarray
    cos_zenith: float
    azimuth: float
    displacement: None = None


def expected_in_camera(model: RateModel, track: FovTrack, energy_edges: np.ndarray, fov: FovBins) -> np.ndarray:
    """Background counts that a model expects in a run, nothing excluded.

    Parameters
    ----------
    model : `RateModel`
        Acceptance, adapted to the run.
    track : `FovTrack`
        Camera track of the run.
    energy_edges : `~numpy.ndarray`
        In TeV, shape (nbin + 1,).
    fov : `FovBins`
        Bins in the alignment of the model.

    Returns
    -------
    counts : `~numpy.ndarray`
        Shape (nbin, fov.size).
    """
    slices = [
        _SeenSlice(np.full(fov.size, part.ontime), part.mean_cos_zenith, part.mean_azimuth)
        for part in run_slices(model, track)
    ]
    return model.expected_counts(slices, energy_edges, fov)


def make_sky_stack(observations, bands, offset_max: float, config: AcceptanceConfig, exclusion: Exclusion) -> SkyStack:
    """Empty stack of the runs, by their numbers, in energy bands (TeV)."""
    return SkyStack(
        observations,
        bands,
        offset_max,
        exclusion,
        alignment=config.fov_alignment,
        location=config.observatory_location,
        time_step=config.time_step_seconds,
    )


def whole_discs(field: SkyField) -> np.ndarray:
    """Pixels whose discs lie wholly outside of exclusions and within some run, shape of the image."""
    seen = field.kept & (field.expected.data.sum(0) > 0)
    return Map.from_geom(field.counts.geom.to_image(), data=seen).binary_erode(DISC_RADIUS * u.deg).data


def score_image(field: SkyField) -> Map:
    """Scores of discs, all bands together; NaN where they are not `whole_discs`."""
    image = field.counts.geom.to_image()
    counts, expected = (m.data.sum(0).reshape(1, -1) for m in (field.counts, field.expected))
    scores = disc_scores(counts, expected, image.data_shape, whole_discs(field).ravel())
    return Map.from_geom(image, data=scores.reshape(image.data_shape))


def sky_significance(fields: list[SkyField]):
    """Scores of discs and counts by band, for each field; see `disc_significance`."""
    found = []
    for field in fields:
        counts, expected = (m.data.reshape(len(m.data), -1) for m in (field.counts, field.expected))
        found.append(disc_significance(counts, expected, field.kept.shape, whole_discs(field).ravel()))
    return found
