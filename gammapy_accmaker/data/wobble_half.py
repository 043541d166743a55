"""The half of the camera on the side of the source, as pybkgmodel leaves it out of wobble observations."""

from __future__ import annotations

import numpy as np
from astropy.coordinates import EarthLocation, SkyCoord

from gammapy_accmaker.camera.track import unit_vectors
from gammapy_accmaker.data.exclusion import Exclusion
from gammapy_accmaker.data.site import pointing_icrs
from gammapy_accmaker.errors import ObservationError

__all__ = ["without_source_half"]

MIN_SEPARATION = 0.05  # deg; of pointing and source, below which the halves are not defined


def without_source_half(
    observation, exclusion: Exclusion, source: SkyCoord | None, offset_max: float, location: EarthLocation | None = None
) -> Exclusion:
    """The exclusion and, for a run with the source in its field of view, the half of the field on the source's side.

    The halves are divided by the great circle through the pointing at a right angle to the direction of the source, and
    turn in the camera with the field.

    Parameters
    ----------
    observation : `~gammapy.data.Observation`
    exclusion : `Exclusion`
    source : `~astropy.coordinates.SkyCoord` or None
        None: the target in the header of the observation.
    offset_max : float
        Largest offset in deg of the field of view.
    location : `~astropy.coordinates.EarthLocation`, optional
        Site; it wins over that of the observation.

    Raises
    ------
    ObservationError
        For a run without a target, and for one that points at its source.
    """
    if source is None:
        target = None if observation.meta is None else observation.meta.target
        source = None if target is None else target.position
        if source is None or not np.isfinite([source.icrs.ra.deg, source.icrs.dec.deg]).all():
            raise ObservationError(
                f"observation {observation.obs_id}: its header names no target position (RA_OBJ, DEC_OBJ); "
                "give it as `exclusion: {wobble_half: {lon, lat, frame}}`"
            )
    pointing = pointing_icrs(observation, location)
    separation = float(source.icrs.separation(pointing).deg)
    if separation > offset_max:
        return exclusion
    if separation < MIN_SEPARATION:
        raise ObservationError(
            f"observation {observation.obs_id}: it points at the source ({separation:.3f} deg), so that no half of the "
            "camera is free of it; exclude a region instead"
        )
    there, here = (unit_vectors(p.icrs.ra.rad, p.icrs.dec.rad) for p in (source, pointing))
    pole = there - (there @ here) * here
    return exclusion.with_half_sky(pole / np.linalg.norm(pole))
