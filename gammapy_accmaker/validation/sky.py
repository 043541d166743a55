"""Significance of held-out runs in the sky frame, field by field."""

from __future__ import annotations

import astropy.units as u
import numpy as np
from gammapy.maps import Map

from gammapy_accmaker.config.config import AcceptanceConfig
from gammapy_accmaker.data.exclusion import Exclusion
from gammapy_accmaker.products.sky_stack import SkyField, SkyStack
from gammapy_accmaker.validation.significance import DISC_RADIUS, disc_scores, disc_significance

__all__ = ["make_sky_stack", "score_image", "sky_significance", "whole_discs"]

PIXEL = 0.1  # deg


def make_sky_stack(observations, bands, offset_max: float, config: AcceptanceConfig, exclusion: Exclusion) -> SkyStack:
    """Empty stack of the runs, by their numbers, in energy bands (TeV)."""
    return SkyStack(
        observations,
        bands,
        offset_max,
        exclusion,
        pixel=PIXEL,
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
    scores = disc_scores(counts, expected, image.data_shape, PIXEL, whole_discs(field).ravel())
    return Map.from_geom(image, data=scores.reshape(image.data_shape))


def sky_significance(stack: SkyStack):
    """Scores of discs and counts by band, for each field; see `disc_significance`."""
    found = []
    for field in stack.fields:
        counts, expected = (m.data.reshape(len(m.data), -1) for m in (field.counts, field.expected))
        found.append(disc_significance(counts, expected, field.kept.shape, PIXEL, whole_discs(field).ravel()))
    return found
