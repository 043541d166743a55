"""The files of an observation, before they are read: which they are, where they lie, what their headers claim."""

from __future__ import annotations

import os
from pathlib import Path

from gammapy.data import DataStore
from gammapy.utils.fits import HDULocation
from gammapy.utils.scripts import make_path

from gammapy_accmaker.errors import InputError, ObservationError
from gammapy_accmaker.hdu_sizes import check_hdu_sizes

__all__ = ["check_files", "check_inside", "event_locations", "find_unreadable", "lies_outside"]

READ_FOR_COUNTS = ("events", "gti", "pointing", "observation_metadata")


def event_locations(observation) -> list[HDULocation]:
    """Where the events of an observation, their times and their header will be read; none for one in memory.

    gammapy has no method that tells: what is looked for are its `HDULocation` among the attributes.
    """
    found = [value for value in vars(observation).values() if isinstance(value, HDULocation)]
    return [location for location in found if location.hdu_class in READ_FOR_COUNTS]


def check_files(observation, outside_files: bool) -> None:
    """The places and the headers of what will be read, before anything is allocated for it."""
    check_inside(observation, outside_files)
    names = {}
    for location in event_locations(observation):
        names.setdefault(location.path(), set()).add(str(location.hdu_name).strip().upper())
    for path, hdus in names.items():
        try:
            check_hdu_sizes(path, until=hdus)
        except InputError as error:
            raise ObservationError(f"observation {observation.obs_id}: {error}") from error


def find_unreadable(observations, outside_files: bool) -> dict[int, str]:
    """Why observations have no files, or no pointing, that can be read; by their position in the list."""
    reasons = {}
    for position, observation in enumerate(observations):
        try:
            check_files(observation, outside_files)
            observation.get_pointing_icrs(observation.tmid)
        except Exception as error:  # whatever a broken file makes the readers raise
            reasons[position] = f"{type(error).__name__}: {error}"
    return reasons


def check_inside(observation, outside_files: bool) -> None:
    """Raise an `ObservationError` where what will be read lies outside of the data store, unless that is allowed."""
    for location in () if outside_files else event_locations(observation):
        if lies_outside(location):
            raise ObservationError(
                f"observation {observation.obs_id}: the index table of {make_path(location.base_dir).absolute()} names a file "
                f"outside of it, {Path(location.file_dir, location.file_name)}; if you trust it, set `outside_files: true`"
            )


def lies_outside(location: HDULocation) -> bool:
    """Whether an index table names a file outside of its own folder.

    A link within the folder was made by its owner, not by the table, and stores of links to large disks are common: as
    long as the table does not climb (``..``), its path counts as it is written, not where links lead to.
    """
    base, named = make_path(location.base_dir), Path(location.file_dir, location.file_name)
    if base == Path() and not Path(DataStore.DEFAULT_HDU_TABLE).is_file():
        return False  # of `DataStore.from_events_files`: the paths are those that the user gave
    path = location.path()  # relative to the working directory where the store does not have it
    if not path.exists():
        path = base / named
    if ".." not in named.parts and _is_below(os.path.abspath(path), os.path.abspath(base)):
        return False
    return not _is_below(os.path.realpath(path), os.path.realpath(base))


def _is_below(path, folder):
    return Path(path).is_relative_to(folder)
