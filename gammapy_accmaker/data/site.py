"""Where on Earth an observation was taken, and where it points: gammapy's own properties fail without the keywords of a site."""

from __future__ import annotations

import numpy as np
from astropy.coordinates import EarthLocation, SkyCoord

from gammapy_accmaker.errors import ObservationError

__all__ = ["REMEDY", "file_site", "named_site", "observation_site", "pointing_icrs"]

REMEDY = "give the site as `observatory_location: {lon, lat, height}` in the configuration"


def named_site(observation) -> EarthLocation | None:
    """Site that the observation itself names, whatever it is."""
    try:
        return observation.observatory_earth_location
    except AttributeError:  # gammapy has no metadata at all where GEOLON, GEOLAT or ALTITUDE is missing
        return None


def file_site(observation) -> EarthLocation | None:
    """Site that the observation itself names; None where it names none, or one that cannot be (all numbers 0, or NaN)."""
    site = named_site(observation)
    # in geocentric coordinates, which are what astropy holds: NaN in them would warn on the way to degrees
    if site is None or not np.all(np.isfinite([x.value for x in site.geocentric])):
        return None
    numbers = [site.lon.deg, site.lat.deg, site.height.to_value("m")]
    return site if np.any(np.abs(numbers) > 1e-6) else None


def observation_site(observation, given: EarthLocation | None) -> EarthLocation | None:
    """The site that was given, which wins, or that of the observation."""
    return file_site(observation) if given is None else given


def pointing_icrs(observation, given: EarthLocation | None) -> SkyCoord:
    """Where an observation points in its middle; a site is needed for those at a fixed altitude and azimuth alone."""
    pointing = observation.pointing
    if pointing is None:
        raise ObservationError(
            f"observation {observation.obs_id}: it has no pointing; its events need the keywords RA_PNT and DEC_PNT"
        )
    site = observation_site(observation, given)
    if pointing.fixed_icrs is None and site is None:
        raise ObservationError(
            f"observation {observation.obs_id}: it has no observatory location, which a drift run needs; {REMEDY}"
        )
    return pointing.get_icrs(observation.tmid, site)
