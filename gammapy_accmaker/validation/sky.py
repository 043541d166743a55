"""Significance of held-out runs in the sky frame, field by field."""

from __future__ import annotations

import astropy.units as u
from gammapy.maps import Map

from gammapy_accmaker.config import AcceptanceConfig
from gammapy_accmaker.products.sky_stack import SkyStack
from gammapy_accmaker.reduction.exclusion import Exclusion
from gammapy_accmaker.validation.significance import DISC_RADIUS, disc_significance

__all__ = ["make_sky_stack", "sky_significance"]

PIXEL = 0.1  # deg


def make_sky_stack(observations, bands, offset_max: float, config: AcceptanceConfig, exclusion: Exclusion) -> SkyStack:
    """Empty stack of the runs in energy bands (TeV)."""
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


def sky_significance(stack: SkyStack):
    """Scores of discs and counts by band, for each field; see `disc_significance`."""
    found = []
    for counts, expected, kept in zip(stack.counts, stack.expected, stack.kept, strict=True):
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
