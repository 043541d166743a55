"""Significance of counts against a prediction, in discs of the camera frame or of the sky."""

from __future__ import annotations

import numpy as np

from gammapy_accmaker.products.sky_stack import disc_sums
from gammapy_accmaker.utils.statistics import poisson_pulls

__all__ = ["DISC_RADIUS", "disc_scores", "disc_significance"]

DISC_RADIUS = 0.2  # deg


def disc_scores(counts, mu, shape, pixel: float, inside, radius: float = DISC_RADIUS, seed: int = 0) -> np.ndarray:
    """Normal scores of the counts in discs around pixels, by energy band.

    Parameters
    ----------
    counts, mu : `~numpy.ndarray`
        Observed and expected counts, shape (band, number of pixels).
    shape : tuple of int
        Of the grid of square pixels.
    pixel : float
        Side of a pixel in deg.
    inside : `~numpy.ndarray`
        Pixels around which a disc is taken, shape (number of pixels,).
    radius : float
        Of the discs in deg.
    seed : int
        The scores are exactly normal at few counts too, for which they are randomised within the step of a count.

    Returns
    -------
    scores : `~numpy.ndarray`
        Shape (band, number of pixels); NaN outside and where nothing is expected.
    """
    n, expected = (
        disc_sums(np.asarray(a).reshape(len(counts), *shape), pixel, radius).reshape(len(counts), -1)
        for a in (counts, mu)
    )
    n = np.round(n)
    rng = np.random.default_rng(seed)
    scores = np.full(n.shape, np.nan)
    for k in range(len(counts)):
        seen = inside & (expected[k] > 1e-3)
        scores[k, seen] = poisson_pulls(n[k, seen], expected[k, seen], rng)
    return scores


def disc_significance(counts, mu, shape, pixel: float, inside, radius: float = DISC_RADIUS, seed: int = 0):
    """The scores of `disc_scores` in a row, and the counts, by energy band.

    Returns
    -------
    bands : list of (`~numpy.ndarray`, int)
        The scores of all discs with an expectation, and the counts of the band.
    """
    scores = disc_scores(counts, mu, shape, pixel, inside, radius, seed)
    return [(row[~np.isnan(row)], int(n.sum())) for row, n in zip(scores, counts, strict=True)]
