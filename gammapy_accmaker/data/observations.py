"""Observations as a caller gives them: the list, its files, and where they were taken and point.

What came instead of observations is refused with what to do about it; the headers of files are checked before anything
is allocated for them; and site and pointing are found where gammapy's own properties fail without the keywords of a
site.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from functools import lru_cache
from pathlib import Path

import astropy.units as u
import numpy as np
from astropy.coordinates import EarthLocation, SkyCoord
from astropy.table import Table
from gammapy.data import GTI, DataStore, EventList, FixedPointingInfo, Observation, ObservationMetaData
from gammapy.data.io import EventListReader
from gammapy.utils.fits import HDULocation, earth_location_from_dict
from gammapy.utils.metadata import TargetMetaData
from gammapy.utils.time import time_ref_from_dict

from gammapy_accmaker.camera.track import site_numbers
from gammapy_accmaker.errors import InputError, ObservationError
from gammapy_accmaker.utils.hdu_sizes import FitsTable, read_tables
from gammapy_accmaker.utils.run_key import reason_of

SITE_REMEDY = "give the site as `observatory_location: {lon, lat, height}` in the configuration"


def named_site(observation) -> EarthLocation | None:
    """Site that the observation itself names, whatever it is."""
    try:
        return observation.observatory_earth_location
    except AttributeError:  # gammapy has no metadata at all where GEOLON, GEOLAT or ALTITUDE is missing
        return None


def _file_site(observation) -> EarthLocation | None:
    """Site that the observation itself names; None where it names none,
    or one that cannot be (all numbers 0, or NaN)."""
    site = named_site(observation)
    # in geocentric coordinates, which are what astropy holds: NaN in them would warn on the way to degrees
    if site is None or not np.all(np.isfinite([x.value for x in site.geocentric])):
        return None
    return site if np.any(np.abs(site_numbers(site)) > 1e-6) else None


def observation_site(observation, given: EarthLocation | None) -> EarthLocation | None:
    """The site that was given, which wins, or that of the observation."""
    return _file_site(observation) if given is None else given


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


_FRAME_KEYS = ("CREATOR", "HDUVERS")  # by which gammapy tells in which frame a background is
_TIME_KEYS = ("MJDREFI", "MJDREFF", "TIMESYS")
_SITE_KEYS = ("GEOLON", "GEOLAT", "GEOALT", "ALTITUDE")
_TARGET_KEYS = ("OBJECT", "RA_OBJ", "DEC_OBJ")
_POINTING_KEYS, _DRIFT_KEYS = ("OBS_MODE", "RA_PNT", "DEC_PNT"), ("OBS_MODE", "ALT_PNT", "AZ_PNT")
_READ_FOR_COUNTS = ("events", "gti", "pointing", "observation_metadata")


def event_locations(observation) -> list[HDULocation]:
    """Where the events of an observation, their times and their header will be read; none for one in memory.

    gammapy has no method that tells: what is looked for are its `HDULocation` among the attributes.
    """
    found = [value for value in vars(observation).values() if isinstance(value, HDULocation)]
    return [location for location in found if location.hdu_class in _READ_FOR_COUNTS]


class _ReadLocation(HDULocation):
    """Where a table was read already: what gammapy makes of it is made of what was read, as far as counts need it.

    ``whole``: the events have all of their columns.
    """

    def __init__(self, location: HDULocation, table: FitsTable, whole: bool):
        self.__dict__.update(location.__dict__)
        self._table, self._whole, self._made = table, whole, None

    @property
    def header(self):
        return self._table.header

    def event_values(self):
        """Columns of the events, without the checks and the table of gammapy; None where that is needed."""
        return _event_values(self._table) if self.hdu_class == "events" else None

    def get_hdu(self):
        return self._table.to_hdu()

    def load(self):
        if self._made is None:
            self._made = self._make()
        return self._made

    def _make(self):
        if self.hdu_class == "events":
            return EventListReader.from_gadf_hdu(self.get_hdu()) if self._whole else _make_events(self._table)
        if self.hdu_class == "gti":
            return _make_gti(self._table)
        if self.hdu_class == "pointing":
            return _make_pointing(self._table.header)
        return _make_metadata(self._table.header)


# What gammapy's readers make of a whole table and all of its header, at three times the cost


def _made_once(make, header, keywords):
    """What gammapy makes of some keywords of a header: once, where they are the same in many of them."""
    return _make_of(make, tuple((keyword, header[keyword]) for keyword in keywords if keyword in header))


@lru_cache(maxsize=512)
def _make_of(make, values):
    return make(dict(values))


def _make_events(stored):
    values = _event_values(stored)
    if values is None:
        return EventListReader.from_gadf_hdu(stored.to_hdu())
    table = Table(values, copy=False)
    table.meta = dict(stored.header)
    return EventList(table)


def _event_values(stored):
    values = _quantities(stored, ("TIME", "RA", "DEC", "ENERGY"))
    if values is not None:
        values["TIME"] = _made_once(time_ref_from_dict, stored.header, _TIME_KEYS) + values["TIME"]
    return values


def _make_gti(stored):
    values = _quantities(stored, ("START", "STOP"), stored.header.get("TIMEUNIT", "s"))
    if values is None or not all(np.isfinite(value).all() for value in values.values()):
        return GTI.from_table_hdu(stored.to_hdu())
    return GTI.create(values["START"], values["STOP"], _made_once(time_ref_from_dict, stored.header, _TIME_KEYS))


def _make_pointing(header):
    drifts = str(header.get("OBS_MODE")).upper() == "DRIFT"
    return _made_once(FixedPointingInfo.from_fits_header, header, _DRIFT_KEYS if drifts else _POINTING_KEYS)


def _make_metadata(header):
    return ObservationMetaData.model_construct(
        location=_made_once(earth_location_from_dict, header, _SITE_KEYS),
        deadtime_fraction=1 - header["DEADC"],
        target=_made_once(TargetMetaData.from_header, header, _TARGET_KEYS),
        optional={key: header[key] for key in _FRAME_KEYS if key in header},
    )


def _quantities(stored, names, unit=""):
    """Columns of a table, None where gammapy's reader is needed; ``unit``: where they have none."""
    columns = stored.columns(names)
    if columns is None:
        return None
    return {name: u.Quantity(values.astype(float), own or unit) for name, (values, own) in columns.items()}


def read_files(observation) -> Observation:
    """The observation with what its counts need in memory: its files are checked and read once, and it is not changed.

    gammapy opens, and unpacks, a file for each of the events, good time intervals, pointing and metadata.
    """
    _check_observation(observation)
    locations = [location for location in event_locations(observation) if not isinstance(location, _ReadLocation)]
    if not locations:
        return observation
    names: dict[Path, set[str]] = {}
    for location in locations:
        names.setdefault(location.path(), set()).add(_hdu_name(location))
    tables = {}
    for path, wanted in names.items():
        try:
            tables[path] = read_tables(path, wanted)
        except InputError as error:
            raise ObservationError(f"observation {observation.obs_id}: {error}") from error
    read, whole = copy(observation), bool(observation.obs_filter.event_filters)  # they may be by any column
    for name, value in vars(observation).items():
        if any(value is location for location in locations):
            setattr(read, name, _ReadLocation(value, tables[value.path()][_hdu_name(value)], whole))
    return read


def event_columns(observation) -> tuple[Mapping, Mapping]:
    """TIME, RA, DEC and ENERGY of the events of an observation, as they are in their table, and its header."""
    held, chosen = vars(observation).values(), observation.obs_filter
    as_stored = (
        chosen.time_filter is None and not chosen.event_filters and not any(isinstance(v, EventList) for v in held)
    )
    if as_stored and type(observation).events is Observation.events:  # a class of its own may give other events
        for value in held:
            if isinstance(value, _ReadLocation) and (columns := value.event_values()) is not None:
                return columns, value.header
    events = observation.events  # once: gammapy reads the file at each access
    if events is None:
        raise ValueError("there is no event list")
    return {"TIME": events.time, **{name: events.table[name] for name in ("RA", "DEC", "ENERGY")}}, events.table.meta


def _hdu_name(location):
    return str(location.hdu_name).strip().upper()


def find_unreadable(observations, location=None) -> dict[int, str]:
    """Why observations have no files, or no pointing, that can be read; by their position in the list.

    ``location``: the site, where it is given by the user.
    """
    reasons = {}
    for position, observation in enumerate(observations):
        try:
            pointing_icrs(read_files(observation), location)
        except Exception as error:  # whatever a broken file makes the readers raise
            reasons[position] = reason_of(error, observation.obs_id)
    return reasons


_LIST_REMEDY = "take them from a data store: `data_store.get_observations(obs_ids, required_irf=[])`"


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
        raise InputError(f"{argument}: got {type(observations).__name__}, {wanted}{_LIST_REMEDY}")
    if not found:
        raise InputError(f"{argument}: got none, but at least one is needed; check the selection of the data store")
    for one in found:
        if not isinstance(one, Observation):
            raise InputError(f"{argument}: got {type(one).__name__} among them, {wanted}{_LIST_REMEDY}")
    return found


def _check_observation(observation) -> None:
    """Raise an `InputError` for anything but one observation."""
    if not isinstance(observation, Observation):
        raise InputError(
            f"observation: got {type(observation).__name__}, but one `Observation` is needed; {_LIST_REMEDY}"
        )
