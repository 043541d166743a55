"""The files of an observation, before they are read: which they are, and what their headers claim."""

from __future__ import annotations

from gammapy.utils.fits import HDULocation

from gammapy_accmaker.data.observations import check_observation
from gammapy_accmaker.data.site import pointing_icrs
from gammapy_accmaker.errors import InputError, ObservationError
from gammapy_accmaker.utils.hdu_sizes import check_hdu_sizes

__all__ = ["check_files", "event_locations", "find_unreadable"]

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
    names = {}
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
