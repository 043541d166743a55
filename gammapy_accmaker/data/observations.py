"""Observations as a caller gives them: the list, its files, and where they were taken and point.

What came instead of observations is refused with what to do about it; the headers of files are checked before anything
is allocated for them; and site and pointing are found where gammapy's own properties fail without the keywords of a
site.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from astropy.coordinates import EarthLocation, SkyCoord
from gammapy.data import DataStore, Observation
from gammapy.utils.fits import HDULocation

from gammapy_accmaker.errors import InputError, ObservationError
from gammapy_accmaker.utils.hdu_sizes import check_hdu_sizes

__all__ = [
    "SITE_REMEDY",
    "file_site",
    "named_site",
    "observation_site",
    "pointing_icrs",
    "check_files",
    "event_locations",
    "find_unreadable",
    "as_observations",
    "check_observation",
]


SITE_REMEDY = "give the site as `observatory_location: {lon, lat, height}` in the configuration"


def named_site(observation) -> EarthLocation | None:
    """Site that the observation itself names, whatever it is."""
    try:
        return observation.observatory_earth_location
    except AttributeError:  # gammapy has no metadata at all where GEOLON, GEOLAT or ALTITUDE is missing
        return None


def file_site(observation) -> EarthLocation | None:
    """Site that the observation itself names; None where it names none,
    or one that cannot be (all numbers 0, or NaN)."""
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
            f"observation {observation.obs_id}: it has no observatory location, which a drift run needs; {SITE_REMEDY}"
        )
    return pointing.get_icrs(observation.tmid, site)


READ_FOR_COUNTS = ("events", "gti", "pointing", "observation_metadata")


def event_locations(observation) -> list[HDULocation]:
    """Where the events of an observation, their times and their header will be read; none for one in memory.

    gammapy has no method that tells: what is looked for are its `HDULocation` among the attributes.
    """
    found = [value for value in vars(observation).values() if isinstance(value, HDULocation)]
    return [location for location in found if location.hdu_class in READ_FOR_COUNTS]


def check_files(observation) -> None:
    """That it is an observation; and the headers of what will be read, before anything is allocated for it."""
    check_observation(observation)
    names: dict[Path, set[str]] = {}
    for location in event_locations(observation):
        names.setdefault(location.path(), set()).add(str(location.hdu_name).strip().upper())
    for path, hdus in names.items():
        try:
            check_hdu_sizes(path, until=hdus)
        except InputError as error:
            raise ObservationError(f"observation {observation.obs_id}: {error}") from error


def find_unreadable(observations, location=None) -> dict[int, str]:
    """Why observations have no files, or no pointing, that can be read; by their position in the list.

    ``location``: the site, where it is given by the user.
    """
    reasons = {}
    for position, observation in enumerate(observations):
        try:
            check_files(observation)
            pointing_icrs(observation, location)
        except Exception as error:  # whatever a broken file makes the readers raise
            reasons[position] = f"{type(error).__name__}: {error}"
    return reasons


LIST_REMEDY = "take them from a data store: `data_store.get_observations(obs_ids, required_irf=[])`"


def as_observations(observations, argument: str = "observations") -> list[Observation]:
    """A list of one observation or more; a single one is a list of one."""
    if isinstance(observations, Observation):
        return [observations]
    wanted = "but `Observations` or a list of `Observation` is needed; "
    if isinstance(observations, DataStore):
        raise InputError(
            f"{argument}: got a DataStore, {wanted}give `data_store.get_observations(required_irf=[])`, with the "
            "numbers of the runs for some of them"
        )
    try:
        found = None if isinstance(observations, str | bytes | dict) else list(observations)
    except TypeError:  # some types can be looped over only where they are arrays
        found = None
    if found is None:
        raise InputError(f"{argument}: got {type(observations).__name__}, {wanted}{LIST_REMEDY}")
    if not found:
        raise InputError(f"{argument}: got none, but at least one is needed; check the selection of the data store")
    for one in found:
        if not isinstance(one, Observation):
            raise InputError(f"{argument}: got {type(one).__name__} among them, {wanted}{LIST_REMEDY}")
    return found


def check_observation(observation) -> None:
    """Raise an `InputError` for anything but one observation."""
    if not isinstance(observation, Observation):
        raise InputError(
            f"observation: got {type(observation).__name__}, but one `Observation` is needed; {LIST_REMEDY}"
        )
